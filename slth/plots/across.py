"""Figures of several runs: each series as a line, its centre over the seeds, with an interval.

The centre is the mean, with the 95 % interval of Student's t, or the median, with the middle half of the seeds.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.special import stdtrit

from slth.plots.curves import Curve, Run, over_seeds, text_of
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import PLAIN, Look, looks_of, patch, properties
from slth.plots.marks import BAND, ZERO, decimal_ticks, mark_float64
from slth.plots.page import Page, panels

LEVEL = 0.95
BAR: dict[str, Any] = {"err_style": "bars", "err_kws": {"capsize": 4}}
CUT = "; intervals that reach far beyond the means are cut off"


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the 95 % interval of Student's t for the mean of independent values; (nan, nan) for fewer than two."""
    values = np.asarray([*values], dtype=float)
    if values.size < 2:
        return math.nan, math.nan
    half = float(stdtrit(values.size - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(values.size))
    return float(values.mean()) - half, float(values.mean()) + half


def quartiles(values: Iterable[float]) -> tuple[float, float]:
    """Return the first and third quartile of the values; (nan, nan) for fewer than two."""
    values = np.asarray([*values], dtype=float)
    if values.size < 2:
        return math.nan, math.nan
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


@dataclass(frozen=True)
class Center:
    """An aggregation over seeds: the name of seaborn's estimator, its interval, and the interval's label."""

    name: str
    interval: Callable[[Iterable[float]], tuple[float, float]]
    said: str


CENTERS = {
    "mean": Center("mean", interval, "95 % interval (Student)"),
    "median": Center("median", quartiles, "middle half of the seeds"),
}


def overlay(
    runs: Sequence[Run],
    curve: Curve,
    *,
    center: str = "mean",
    axes: Sequence[Axes] | None = None,
    layout: Layout = SCREEN,
) -> list[Axes]:
    """Draw several runs in one figure: each series as a line, its centre over the seeds, with an interval.

    If there is only a single x, each series is a row with a point and a bar. Seeds, series and panels are those of
    `curves.over_seeds`.

    Args:
        runs: (config, table) of each run; tables have the curve's columns.
        curve: the columns to draw.
        center: "mean", with the 95 % interval of Student's t, or "median", with the middle half of the seeds.
        axes: axes to draw in, one per panel. None: a new figure.
        layout: of a figure of its own; its log replaces the curve's if the values allow it.

    Returns:
        The axes.

    Raises:
        ValueError: for another center, if a table has no rows or lacks a column, if there is nothing to draw, if a
            logarithmic axis has values that are not positive, or if there are more or fewer axes than panels.
    """
    if center not in CENTERS:
        raise ValueError(f"center={center!r}: must be one of {', '.join(CENTERS)}")
    frame = over_seeds(runs, curve)
    if frame.empty:
        raise ValueError(f"the tables have no rows with a {curve.y} that {curve.name} shows")
    if layout.log is not None:
        curve, layout = replace(curve, log=_possible(layout.log, frame)), replace(layout, log=None)
    if ("x" in curve.log and (frame["x"] <= 0).any()) or ("y" in curve.log and (frame["y"] < 0).any()):
        raise ValueError(f"log={curve.log!r}: must be an axis with positive values; {curve.name} has others")
    if "y" in curve.log:
        frame = frame.assign(y=frame["y"].clip(lower=ZERO))
    draw = _draw_points if frame["x"].nunique() == 1 else _draw_lines
    return draw(frame, curve, CENTERS[center], axes, layout)


def _possible(log: str, frame: pd.DataFrame) -> str:
    """Return those axes of log that can be logarithmic: x if all values are > 0, y if all are >= 0."""
    can_be = {"x": (frame["x"] > 0).all(), "y": (frame["y"] >= 0).all()}
    return "".join(axis for axis in log if can_be[axis])


def values_of_x(runs: Sequence[Run], curve: Curve) -> int:
    """Return the number of different x of the longest series of these runs; 0 if there is nothing to draw."""
    frame = over_seeds(runs, curve)
    return int(frame.groupby(["panel", "series"])["x"].nunique().max()) if len(frame) else 0


def _draw_lines(
    frame: pd.DataFrame, curve: Curve, center: Center, axes: Sequence[Axes] | None, layout: Layout
) -> list[Axes]:
    labels = _labels(frame, center)
    of_series = looks_of(labels)
    groups = list(frame.groupby("panel", sort=False))
    with panels(len(groups), axes, layout, share_y=True) as page:
        for panel, (value, rows) in zip(page.axes, groups, strict=True):
            for series, own in rows.groupby("series", sort=False):
                style = BAND if own["x"].nunique() > 1 else BAR  # a band at a single x has no width
                _aggregate(
                    panel,
                    own,
                    {"x": "x", "y": "y"},
                    center,
                    of_series[str(series)],
                    {**style, "label": labels[str(series)]},
                )
            panel.set(xlabel=curve.labels[0], ylabel="", title=_title(frame, curve, value))
        # After the lines: seaborn would aggregate logarithms on a logarithmic axis.
        for panel in page.axes:
            if "x" in curve.log and (frame["x"] % 1 == 0).all():
                panel.set_xscale("log", base=2)
            elif "x" in curve.log:
                panel.set_xscale("log")
                decimal_ticks(panel.xaxis, "{:g}".format)
            if "y" in curve.log:
                panel.set_yscale("log")
                mark_float64(panel)
        page.ylabel(curve.labels[1])
        cut = _bound(page.axes[0], frame, center, log="y" in curve.log)
        page.heading = _heading(frame, center) + CUT * cut
        _name_series(page, groups, labels, of_series, center)
        page.legend(_interval_keys(frame, center))
    return page.axes


def _name_series(
    page: Page,
    groups: Sequence[tuple[Any, pd.DataFrame]],
    labels: dict[str, str],
    of_series: dict[Any, Look],
    center: Center,
) -> None:
    for panel, (_, rows) in zip(page.axes, groups, strict=True):
        for series, own in rows.groupby("series", sort=False):
            line = own.groupby("x")["y"].agg(center.name)
            page.name(panel, labels[str(series)], of_series[str(series)], line, PLAIN)


def _draw_points(
    frame: pd.DataFrame, curve: Curve, center: Center, axes: Sequence[Axes] | None, layout: Layout
) -> list[Axes]:
    labels = _labels(frame, center)
    of_series = looks_of(labels)
    groups = list(frame.groupby("panel", sort=False))
    with panels(len(groups), axes, layout, stacked=True) as page:
        for panel, (value, rows) in zip(page.axes, groups, strict=True):
            parts = list(rows.groupby("series", sort=False))
            for place, (series, own) in enumerate(parts):
                across = {"x": "y", "y": "place", "orient": "y"}
                _aggregate(
                    panel,
                    own.assign(place=place),
                    across,
                    center,
                    of_series[str(series)],
                    {**BAR, "label": labels[str(series)]},
                )
            page.rows(panel, [labels[str(series)] for series, _ in parts])
            at = f"{curve.x}={text_of(rows['x'].iloc[0])}" if curve.x else ""
            title = ", ".join(filter(None, (_title(frame, curve, value), at)))
            panel.set(xlabel="", ylabel="", title=title)
            if "y" in curve.log:
                panel.set_xscale("log")
                decimal_ticks(panel.xaxis, "{:g}".format)
        page.axes[-1].set_xlabel(curve.labels[1])
        bars = f"; bar: {center.said}" if _interval_keys(frame, center) else ""
        page.heading = _heading(frame, center) + bars
    return page.axes


def _aggregate(
    axes: Axes, own: pd.DataFrame, across: dict[str, str], center: Center, look: Look, style: dict[str, Any]
) -> None:
    """Draw one series: its centre over the seeds at each x, and the interval."""
    line = properties(look, PLAIN)
    how: Any = {"estimator": center.name, "errorbar": center.interval, "legend": False}
    seaborn.lineplot(own, **across, ax=axes, **how, **style, **line)


def _title(frame: pd.DataFrame, curve: Curve, panel: Any) -> str:
    return frame.attrs["titles"].get(str(panel), f"{curve.panel}={text_of(panel)}" if curve.panel else "")  # type: ignore[no-any-return]


def _interval_keys(frame: pd.DataFrame, center: Center) -> list[Artist]:
    """Return the legend's entries for bands and bars, if there are any."""
    counts = frame.groupby(["panel", "series"]).agg({"seed": "nunique", "x": "nunique"})
    shown = counts.loc[counts["seed"] > 1, "x"]
    bar = Line2D([], [], color="0.5", marker="|", markersize=8, label=f"bar: {center.said}")
    keys = ((patch(f"band: {center.said}"), (shown > 1).any()), (bar, (shown == 1).any()))
    return [key for key, there in keys if there]


def _bound(axes: Axes, frame: pd.DataFrame, center: Center, log: bool) -> bool:
    """Limit the vertical axis to the range of the values plus once that range on each side; return whether it cuts any.

    Intervals can be much larger than that: with two seeds an interval is 13 times as wide as their distance.
    """
    intervals = [center.interval(values) for _, values in frame.groupby(["panel", "series", "x"])["y"]]
    scaled, back = (np.log10, lambda value: 10.0**value) if log else (np.asarray, float)
    values = scaled(frame["y"][np.isfinite(frame["y"])])
    reach = np.ptp(values) if len(values) else 0.0
    if reach == 0.0 or not np.isfinite(intervals).any():
        return False
    least, most = back(values.min() - reach), back(values.max() + reach)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, least), min(high, most))
    return any(below < least or above > most for below, above in intervals)


def _labels(frame: pd.DataFrame, center: Center) -> dict[str, str]:
    """Return the label of each series: its values, and the number of seeds."""
    counts = frame.groupby(["series", "panel", "x"], sort=False)["seed"].nunique().groupby("series", sort=False)
    numbers = {
        str(series): _seeds(least, most, center)
        for series, least, most in zip(counts.min().index, counts.min(), counts.max(), strict=True)
    }
    return {series: f"{series} ({number})" if series else number for series, number in numbers.items()}


def _seeds(least: int, most: int, center: Center) -> str:
    """Describe the number of seeds of a line, which may differ between panels."""
    if most == 1:
        return "1 seed"
    return f"{center.name} of {most} seeds" if least == most else f"{center.name} of {least} to {most} seeds"


def _heading(frame: pd.DataFrame, center: Center) -> str:
    seeds = int(frame.groupby(["panel", "series", "x"])["seed"].nunique().max())
    said = f"{center.name}s over seeds" if seeds > 1 else "one seed each: no interval"
    return ", ".join([said, *frame.attrs["same"]])
