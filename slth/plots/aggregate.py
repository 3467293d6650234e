"""Several runs in one figure: runs that differ in their seed alone are aggregated, what varies otherwise is a series.

A kind of table says by its `Curve` what of it is drawn against what; everything else is the same for all: a series
for each combination of values that vary, the mean over its seeds as a line, a Student interval as a band. No line
joins two series, and every point of a line is a mean over the same seeds: seeds that were measured at other x are a
series of their own.
"""

import itertools
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator
from scipy.special import stdtrit

from slth.plots.style import LOOKS, ZERO, make_panels, mark_float64, require, styled

Run = tuple[Mapping[str, Any], pd.DataFrame]
"""Of one run: its config, and its table of measurements."""

NOT_SHOWN = ("seed", "seeds", "checkpoints")  # config keys over which runs are aggregated
OF_COLUMN = {"lengths": "length", "variants": "variant"}  # config keys, by the columns that hold their values
LEVEL = 0.95
MARKERS = "os^DvP<X>*"
DASHES: tuple[Any, ...] = (
    *("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 2, 1, 2))),
    *((0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2))),
)  # with ten markers, 70 looks before one is there again
LETTERS_PER_INCH = 13  # of a legend, in its font
BAND: dict[str, Any] = {"err_style": "band", "err_kws": {"alpha": 0.18, "linewidth": 0}}
BAR: dict[str, Any] = {"err_style": "bars", "err_kws": {"capsize": 4}}
INTERVAL = "95 % interval (Student)"
CUT = "; intervals that reach far beyond the means are cut off"
KEY_INCHES = 0.75  # of a legend's line before its label
NAMED = 8  # values of a list in a label; of a longer one the first and the last


@dataclass(frozen=True)
class Curve:
    """What a figure of several runs shows of their tables.

    Attributes:
        name: of the figure.
        columns: that a table must have for it.
        x: the column on the horizontal axis; None where there is nothing to go along.
        y: the column that is aggregated.
        labels: of the two axes.
        by: columns whose values are series of their own, where they vary.
        panel: the column whose values are panels; None: one panel.
        titles: of the panels, by the value.
        rows: from a run's table, the rows that are shown, with columns x and y.
        log: the axes that are logarithmic, "", "x", "y" or "xy".
        least: values of x that one series must have at least, or there is no figure.
    """

    name: str
    columns: frozenset[str]
    x: str | None
    y: str
    labels: tuple[str, str]
    by: tuple[str, ...] = ()
    panel: str | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
    log: str = ""
    least: int = 1


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The 95 % interval of Student's t for the mean of independent values; (nan, nan) below two of them."""
    values = np.asarray([*values], dtype=float)
    if values.size < 2:
        return math.nan, math.nan
    half = float(stdtrit(values.size - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(values.size))
    return float(values.mean()) - half, float(values.mean()) + half


def varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that are not the same in all configs, in their order; a key that is missing counts as None."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({_json(config.get(key)) for config in configs}) > 1]


def over_seeds(runs: Sequence[Run], curve: Curve) -> pd.DataFrame:
    """One row per (panel, series, x, seed), with columns of these names and y: the mean over all else.

    A series is named by the values, as key=value, of the config keys and of the columns `by` that vary among the runs;
    seeds are the table's own where it has such a column. Rows without a y are left out. Where the seeds of a series
    were not measured at the same x, those that were are a series each, named by their seeds and x as well.
    attrs["same"] names the values of `by` that do not vary.

    Args:
        runs: with tables that have the curve's columns.
        curve: what is shown of them.

    Raises:
        ValueError: if a table has no rows or lacks a column.
    """
    parts = []
    for config, table in runs:
        require(table, curve.columns)
        parts.append(curve.rows(table).assign(**{} if "seed" in table else {"seed": config.get("seed", 0)}))
    own = [name for name in (curve.x, curve.panel, *curve.by) if name and all(name in part for part in parts)]
    keys = [
        key
        for key in varying([config for config, _ in runs])
        if key not in NOT_SHOWN and OF_COLUMN.get(key, key) not in own
    ]
    parts = [
        part.assign(**{f"config.{key}": _text(config.get(key)) for key in keys})
        for part, (config, _) in zip(parts, runs, strict=True)
    ]
    table = pd.concat(parts, ignore_index=True).dropna(subset=curve.y)
    series = {name: name for name in curve.by if name in own and table[name].nunique() > 1}
    series |= {f"config.{key}": key for key in keys}
    named = [table[column].map(_text).radd(f"{key}=") for column, key in series.items()]
    frame = pd.DataFrame(
        {
            "panel": table[curve.panel] if curve.panel else "",
            "series": _joined(named) if named else "",
            "x": table[curve.x] if curve.x else 0,
            "seed": table["seed"],
            "y": table[curve.y].astype(float),
        }
    )
    means = frame.groupby(["panel", "series", "x", "seed"], sort=False)["y"].mean().reset_index()
    if curve.x:
        means["series"] = _split_by_grid(means, curve.x)
    same = [name for name in curve.by if name in own and name not in series and len(table)]
    means.attrs["same"] = [f"{name}={_text(table[name].iloc[0])}" for name in same]
    return means


def _split_by_grid(means: pd.DataFrame, x: str) -> "pd.Series[str]":
    """The series of each row, such that in no panel two seeds of a series have values of x that are not the same."""
    names = means["series"].astype(str)
    for series, rows in means.groupby("series", sort=False):
        groups = _of_one_grid(rows)
        for seeds in groups if len(groups) > 1 else []:
            own = rows[rows["seed"].isin(seeds)]
            parts = [str(series), f"seed={_listed(seeds)}", f"{x}=[{_listed(sorted(own['x'].unique()))}]"]
            names[own.index] = ", ".join(filter(None, parts))
    return names


def _of_one_grid(rows: pd.DataFrame) -> list[list[Any]]:
    """The seeds of one series, in groups that have the same x wherever they share a panel."""
    groups: list[tuple[dict[Any, frozenset[Any]], list[Any]]] = []
    for seed, own in rows.groupby("seed"):
        grids = {panel: frozenset(values) for panel, values in own.groupby("panel")["x"]}
        for known, seeds in groups:
            if all(known.get(panel, grid) == grid for panel, grid in grids.items()):
                known |= grids
                seeds.append(seed)
                break
        else:
            groups.append((grids, [seed]))
    return [seeds for _, seeds in groups]


def _listed(values: Sequence[Any]) -> str:
    texts = [_text(value) for value in values]
    return ",".join(texts if len(texts) <= NAMED else [*texts[:2], "...", texts[-1]])


def across_runs(runs: Sequence[Run], curves: Iterable[Curve]) -> dict[str, Figure]:
    """By its name, the figure of each curve that at least two of the runs have the columns and rows for."""
    drawn = {}
    for curve in curves:
        fit = [(config, table) for config, table in runs if {*table.columns} >= curve.columns]
        fit = [(config, table) for config, table in fit if len(curve.rows(table))]
        if len(fit) > 1:
            frame = over_seeds(fit, curve)
            if len(frame) and frame.groupby(["panel", "series"])["x"].nunique().max() >= curve.least:
                drawn[curve.name] = draw(frame, curve)
    return drawn


@styled
def draw(frame: pd.DataFrame, curve: Curve) -> Figure:
    """The mean over seeds of each series as a line with its interval; where there is a single x, below each other.

    Args:
        frame: from `over_seeds`.
        curve: the one it was made for.
    """
    if "y" in curve.log:
        frame = frame.assign(y=frame["y"].clip(lower=ZERO))
    return _draw_points(frame, curve) if frame["x"].nunique() == 1 else _draw_lines(frame, curve)


def _draw_lines(frame: pd.DataFrame, curve: Curve) -> Figure:
    labels = _labels(frame)
    looks = dict(zip(labels, _looks(len(labels)), strict=True))
    groups = list(frame.groupby("panel", sort=False))
    figure, panels = make_panels(len(groups))
    for axes, (panel, rows) in zip(panels, groups, strict=True):
        for series, own in rows.groupby("series", sort=False):
            style = BAND if own["x"].nunique() > 1 else BAR  # a band at a single x has no width
            _aggregate(axes, own, {"x": "x", "y": "y"}, labels[str(series)], looks[str(series)], style)
        axes.set(xlabel=curve.labels[0], title=_title(curve, panel))
    # After the lines: seaborn would aggregate logarithms on a logarithmic axis.
    for axes in panels:
        if "x" in curve.log:
            axes.set_xscale("log", base=2)
        if "y" in curve.log:
            axes.set_yscale("log")
            mark_float64(axes)
    panels[0].set_ylabel(curve.labels[1])
    cut = _bound(panels[0], frame, log="y" in curve.log)
    figure.suptitle(_heading(frame) + CUT * cut, fontsize=10)
    _legend(figure, labels, looks, _interval_keys(frame))
    return figure


def _draw_points(frame: pd.DataFrame, curve: Curve) -> Figure:
    labels = _labels(frame)
    looks = dict(zip(labels, _looks(len(labels)), strict=True))
    groups = list(frame.groupby("panel", sort=False))
    counts = [rows["series"].nunique() for _, rows in groups]
    figure = Figure(figsize=(9.0, 0.8 + 0.9 * len(groups) + 0.45 * sum(counts)))
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[count + 0.5 for count in counts])[:, 0]
    for axes, (panel, rows) in zip(panels, groups, strict=True):
        parts = list(rows.groupby("series", sort=False))
        for place, (series, own) in enumerate(parts):
            across = {"x": "y", "y": "place", "orient": "y"}
            _aggregate(axes, own.assign(place=place), across, labels[str(series)], looks[str(series)], BAR)
        axes.set_yticks(range(len(parts)), [textwrap.fill(labels[str(series)], 45) for series, _ in parts])
        at = f"{curve.x}={_text(rows['x'].iloc[0])}" if curve.x else ""
        title = ", ".join(filter(None, (_title(curve, panel), at)))
        axes.set(ylim=(len(parts) - 0.5, -0.5), xlabel="", ylabel="", title=title)
        if "y" in curve.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[-1].set_xlabel(curve.labels[1])
    bars = f"; bar: {INTERVAL}" if _interval_keys(frame) else ""
    figure.suptitle(_heading(frame) + bars, fontsize=10)
    return figure


def _aggregate(
    axes: Axes, own: pd.DataFrame, across: dict[str, str], label: str, look: dict[str, Any], style: dict[str, Any]
) -> None:
    """One series: its mean over the seeds at each x, and the interval of that."""
    import seaborn  # takes a second, and is needed only here

    seaborn.lineplot(own, **across, errorbar=interval, label=label, legend=False, ax=axes, **style, **look)


def _title(curve: Curve, panel: Any) -> str:
    return curve.titles.get(str(panel), f"{curve.panel}={_text(panel)}" if curve.panel else "")


def _interval_keys(frame: pd.DataFrame) -> list[Patch | Line2D]:
    """What the legend says of bands and bars, of those that there are."""
    counts = frame.groupby(["panel", "series"]).agg({"seed": "nunique", "x": "nunique"})
    shown = counts.loc[counts["seed"] > 1, "x"]
    band = Patch(color="0.5", alpha=0.35, linewidth=0, label=f"band: {INTERVAL}")
    bar = Line2D([], [], color="0.5", marker="|", markersize=8, label=f"bar: {INTERVAL}")
    return [key for key, there in ((band, (shown > 1).any()), (bar, (shown == 1).any())) if there]


def _legend(
    figure: Figure,
    labels: Mapping[str, str],
    looks: Mapping[str, dict[str, Any]],
    others: Sequence[Patch | Line2D],
) -> None:
    """Below the panels, in as many columns as there is room for; the figure grows by its rows."""
    width, height = figure.get_size_inches()
    fold = max(20, int((width - KEY_INCHES) * LETTERS_PER_INCH))
    folded = {series: textwrap.fill(label, fold) for series, label in labels.items()}
    texts = [*folded.values(), *(str(key.get_label()) for key in others)]
    longest = max(len(line) for text in texts for line in text.splitlines())
    columns = max(1, min(len(texts), int(width / (longest / LETTERS_PER_INCH + KEY_INCHES))))
    lines = sum(text.count("\n") + 1 for text in texts)
    figure.set_size_inches(width, height + 0.22 * math.ceil(lines / columns))
    keys = [Line2D([], [], label=folded[series], **look) for series, look in looks.items()]
    figure.legend(handles=[*keys, *others], loc="outside lower center", ncols=columns)


def _bound(axes: Axes, frame: pd.DataFrame, log: bool) -> bool:
    """Leave intervals room, at each side as much as all values take together; returns whether one needs more.

    With two seeds an interval is 13 times as wide as the seeds are apart.
    """
    intervals = [interval(values) for _, values in frame.groupby(["panel", "series", "x"])["y"]]
    scaled, back = (np.log10, lambda value: 10.0**value) if log else (np.asarray, float)
    values = scaled(frame["y"][np.isfinite(frame["y"])])
    reach = np.ptp(values) if len(values) else 0.0
    if reach == 0.0 or not np.isfinite(intervals).any():
        return False
    least, most = back(values.min() - reach), back(values.max() + reach)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, least), min(high, most))
    return any(below < least or above > most for below, above in intervals)


def _labels(frame: pd.DataFrame) -> dict[str, str]:
    """What the legend says of each series: its values, and how many seeds there are."""
    counts = frame.groupby(["series", "panel", "x"], sort=False)["seed"].nunique().groupby("series", sort=False)
    numbers = {
        str(series): _seeds(least, most)
        for series, least, most in zip(counts.min().index, counts.min(), counts.max(), strict=True)
    }
    return {series: f"{series} ({number})" if series else number for series, number in numbers.items()}


def _seeds(least: int, most: int) -> str:
    """How many seeds, between the panels, a mean is of."""
    if most == 1:
        return "1 seed"
    return f"mean of {most} seeds" if least == most else f"mean of {least} to {most} seeds"


def _heading(frame: pd.DataFrame) -> str:
    seeds = int(frame.groupby(["panel", "series", "x"])["seed"].nunique().max())
    said = "means over seeds" if seeds > 1 else "one seed each: no interval"
    return ", ".join([said, *frame.attrs["same"]])


def _looks(count: int) -> list[dict[str, Any]]:
    """So many looks, apart in grey: no two with the same line and marker below 70."""
    colors = [look.color for look in LOOKS]
    if count > len(colors):
        colors = [to_hex(color) for color in matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, count))]
    faces = itertools.cycle((True, False))
    rest = zip(itertools.cycle(MARKERS), itertools.cycle(DASHES), faces, strict=False)
    return [
        {
            "color": color,
            "marker": marker,
            "linestyle": dashes,
            "linewidth": 1.6,
            "markersize": 5,
            "markeredgecolor": color,
            "markerfacecolor": color if full else "white",
        }
        for color, (marker, dashes, full) in zip(colors[:count], rest, strict=False)
    ]


def _joined(named: Sequence["pd.Series[str]"]) -> list[str]:
    return [", ".join(parts) for parts in zip(*named, strict=True)]


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:g}"
    if isinstance(value, list | tuple | dict):
        return _json(value)
    return str(value)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
