"""How much faster than its peers the package is."""

import itertools

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from slth.plots.aggregate import Curve
from slth.plots.style import (
    GREY,
    LOOKS,
    MEDIAN,
    Kind,
    Look,
    legend_below,
    make_panels,
    properties_of,
    require,
    styled,
)

SPEED_TIMES = {f"{who}_s{bound}" for who in ("ours", "peer") for bound in ("", "_low", "_high")}
SPEED_COLUMNS = frozenset({"what", "size", "peer", "ratio"} | SPEED_TIMES)
SPEED_CURVES = (
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
IDEAL: Kind = {"marker": "|", "markersize": 17, "markeredgewidth": 2.5, "linestyle": ""}


@styled
def speed(table: pd.DataFrame) -> Figure:
    """How much faster than its peers the package is: one panel for each `what`.

    Rows with a number of candidates: seconds against it, medians and their whole range, and beside each peer's the
    ratio to ours. Rows with a number of scores: the same, with the ratios at the most of them in the legend. Others:
    the ratio of each size and peer as a bar, and as a stroke the `ideal` one where it is given.

    Args:
        table: one row per (what, size, peer), with SPEED_COLUMNS, all times in seconds; the columns `candidates`,
            `scores` and `ideal` may be missing or empty.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, SPEED_COLUMNS)
    table = table.reindex(columns=[*dict.fromkeys([*table.columns, "candidates", "scores", "ideal"])])
    figure, panels = make_panels(table["what"].nunique(), share_y=False)
    for axes, (what, rows) in zip(panels, table.groupby("what", sort=False), strict=True):
        draw = next((draw for column, draw in BY_COLUMN.items() if rows[column].notna().all()), _ratios)
        draw(axes, rows)
        axes.set_title(str(what).replace("_", " "))
    return figure


def _seconds(axes: Axes, rows: pd.DataFrame) -> None:
    axes.set_yscale("log")
    _timed(axes, rows.drop_duplicates("candidates"), "candidates", "ours", "ours_s", LOOKS[0])
    above, below = {"xytext": (-6, 5), "ha": "right"}, {"xytext": (6, -11)}  # where a rising line leaves room
    for look, (peer, theirs) in zip(itertools.cycle(LOOKS[1:]), rows.groupby("peer", sort=False), strict=False):
        _timed(axes, theirs, "candidates", str(peer), "peer_s", look)
        place = above if look is LOOKS[1] else below
        for x, y, ratio in theirs[["candidates", "peer_s", "ratio"]].itertuples(index=False):
            axes.annotate(_times(ratio), (x, y), textcoords="offset points", fontsize=8, color=GREY, **place)
    axes.set(xlabel="candidates $n$", ylabel="seconds per problem")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.2)
    legend_below(axes, axes.get_legend_handles_labels()[0], columns=3)


def _seconds_by_scores(axes: Axes, rows: pd.DataFrame) -> None:
    axes.set(xscale="log", yscale="log", xlabel="scores (ratios: at the most of them)", ylabel="seconds per selection")
    _timed(axes, rows.drop_duplicates("scores"), "scores", "ours", "ours_s", LOOKS[0])
    most = rows["scores"].max()
    for look, (peer, theirs) in zip(itertools.cycle(LOOKS[1:]), rows.groupby("peer", sort=False), strict=False):
        ratio = theirs.loc[theirs["scores"] == most, "ratio"].iloc[0]
        _timed(axes, theirs, "scores", f"{peer}: {_times(ratio)}", "peer_s", look)
    sizes = sorted(rows["scores"].unique())
    axes.set_xticks(sizes, [f"{n / 1e6:.3g}M" for n in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    legend_below(axes, axes.get_legend_handles_labels()[0], columns=2)


def _timed(axes: Axes, rows: pd.DataFrame, against: str, label: str, column: str, look: Look) -> None:
    x = rows[against].astype(float)
    axes.vlines(x, rows[f"{column}_low"], rows[f"{column}_high"], color=look.color, linewidth=1)
    axes.plot(x, rows[column], label=label, **properties_of(look, MEDIAN))


def _ratios(axes: Axes, rows: pd.DataFrame) -> None:
    axes.set_xscale("log")
    places = range(len(rows))
    axes.barh(places, rows["ratio"] - 1, left=1, color=LOOKS[0].color, height=0.4, label="measured")
    if rows["ideal"].notna().any():
        axes.plot(rows["ideal"].astype(float), places, label="ideal", **properties_of(LOOKS[1], IDEAL))
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.use_sticky_edges = False
    axes.set_yticks(
        places,
        [
            f"{size}\n{_times(ratio)} as fast as {peer}"
            for size, ratio, peer in zip(rows["size"], rows["ratio"], rows["peer"], strict=True)
        ],
    )
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda ratio, _: _times(ratio))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("times as fast as the peer")
    legend_below(axes, axes.get_legend_handles_labels()[0], columns=2)


BY_COLUMN = {"candidates": _seconds, "scores": _seconds_by_scores}


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×"
