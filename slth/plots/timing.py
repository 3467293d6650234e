"""The package's speed relative to its peers."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from slth.plots.curves import Curve
from slth.plots.entries import Entry, plain
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import COLORS, GREY, PLAIN, Kind, Look, key, looks_of, patch
from slth.plots.marks import decimal_ticks, draw_line, draw_ranges
from slth.plots.page import Page, panels
from slth.plots.tables import require

SPEED_TIMES = {f"{who}_s{bound}" for who in ("ours", "peer") for bound in ("", "_low", "_high")}
SPEED_COLUMNS = frozenset({"what", "size", "peer", "ratio"} | SPEED_TIMES)
CURVES = (
    Curve(
        name="speed",
        columns=SPEED_COLUMNS,
        x=None,
        y="ratio",
        labels=("", "times as fast as the peer"),
        by=("size", "peer"),
        panel="what",
    ),
)
OURS = "ours"
IDEAL: Kind = {"marker": "|", "markersize": 15, "markeredgewidth": 2.5, "linestyle": ""}
BAR = Look(COLORS[0], "")
STROKE = Look(COLORS[1], "|")


def speed(table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN) -> list[Axes]:
    """Draw the package's speed relative to its peers, one panel for each `what`.

    Rows with a number of candidates or of scores are drawn as seconds against that number, medians with the whole
    range; a peer's label has its ratio to ours at the largest number. Other rows are drawn as a bar, the ratio of each
    size and peer, with a stroke for the `ideal` ratio if it is given.

    Args:
        table: one row per (what, size, peer), with SPEED_COLUMNS, all times in seconds; the columns `candidates`,
            `scores` and `ideal` may be missing or empty.
        axes: axes to draw in, one per `what`. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there are more or fewer axes than panels.
    """
    require(table, SPEED_COLUMNS)
    table = table.reindex(columns=[*dict.fromkeys([*table.columns, "candidates", "scores", "ideal"])])
    with panels(table["what"].nunique(), axes, layout) as page:
        for panel, (what, rows) in zip(page.axes, table.groupby("what", sort=False), strict=True):
            for column, draw in (("candidates", _by_candidates), ("scores", _by_scores)):
                if rows[column].notna().all():
                    draw(page, panel, rows)
                    break
            else:
                _draw_ratios(page, panel, rows)
            panel.set_title(str(what).replace("_", " "))
    return page.axes


def _by_candidates(page: Page, axes: Axes, rows: pd.DataFrame) -> None:
    axes.set_yscale("log")
    _draw_seconds(page, axes, rows, "candidates")
    axes.set(xlabel="candidates $n$ (ratios: at the largest $n$)", ylabel="seconds per problem")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _by_scores(page: Page, axes: Axes, rows: pd.DataFrame) -> None:
    axes.set_yscale("log")
    _draw_seconds(page, axes, rows, "scores")
    sizes = sorted(rows["scores"].unique())
    axes.set_xlim(0.8 * sizes[0], 1.25 * sizes[-1])
    axes.set(xscale="log", xlabel="scores (ratios: at the largest number)", ylabel="seconds per selection")
    axes.set_xticks(sizes, [f"{n / 1e6:.3g}M" for n in sizes])
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_seconds(page: Page, axes: Axes, rows: pd.DataFrame, against: str) -> None:
    """Draw the seconds of the package and of each peer."""
    of_side = looks_of([OURS, *rows["peer"].unique()])
    sides: list[tuple[str, str, pd.DataFrame]] = [(OURS, OURS, rows.drop_duplicates(against))]
    sides += [("peer", str(peer), own) for peer, own in rows.groupby("peer", sort=False)]
    for side, name, own in sides:
        timed = own.set_index(against).sort_index()
        seconds = timed[f"{side}_s"].astype(float)
        label = name if side == OURS else f"{name}: {_times(timed['ratio'].iloc[-1])}"
        draw_ranges(axes, timed[f"{side}_s_low"], timed[f"{side}_s_high"], of_side[name])
        draw_line(axes, seconds, of_side[name], PLAIN)
        page.name(axes, label, of_side[name], seconds, PLAIN)


def _draw_ratios(page: Page, axes: Axes, rows: pd.DataFrame) -> None:
    """Draw a bar from 1 to each ratio."""
    places = list(range(len(rows)))
    bars: Any = {"left": 1, "color": BAR.color, "saturation": 1, "width": 0.4, "orient": "h", "errorbar": None}
    seaborn.barplot(x=rows["ratio"].to_numpy() - 1, y=places, ax=axes, **bars)
    axes.set_xscale("log")
    axes.use_sticky_edges = False
    page.legend([patch("measured", BAR.color)], axes)
    if rows["ideal"].notna().any():
        for place, ideal in zip(places, rows["ideal"].astype(float), strict=True):
            draw_line(axes, pd.Series([float(place)], index=[ideal]).dropna(), STROKE, IDEAL)
        page.legend([key("ideal", STROKE, IDEAL)], axes)
    axes.axvline(1, color=GREY, linewidth=0.8)
    named = zip(rows["size"], rows["ratio"], rows["peer"], strict=True)
    page.rows(axes, [f"{size}\n{_times(ratio)} as fast as {peer}" for size, ratio, peer in named])
    decimal_ticks(axes.xaxis, _times)
    axes.set(xlabel="slower ← times as fast as the peer → faster", ylabel="")


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×"


FIGURES = (Entry("speed", SPEED_COLUMNS, plain(speed)),)
