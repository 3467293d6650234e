"""Language models hidden in random networks: how far the ticket is from its target."""

import itertools
from collections.abc import Iterable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slth.plots.aggregate import Curve
from slth.plots.style import (
    CERTIFICATE,
    FORMULA,
    GREY,
    LOOKS,
    MEDIAN,
    POINTS,
    Look,
    draw_line,
    legend_key,
    make_panels,
    mark_float64,
    properties_of,
    require,
    styled,
)

HIDDEN_COLUMNS = frozenset(
    {"candidates", "block", "error", "certificate", "norm", "val_loss_target", "val_loss_ticket", "agreement"}
)
MARKERS = "os^DvP<X>*"  # as many as a sweep has numbers of candidates, and more
GAP_KEYS = (legend_key("measured", LOOKS[0]), legend_key("exactly 0, shown at the lower end", LOOKS[0], POINTS))
BLOCK_LABEL = "approximation error\n(Euclidean norm, maximum over tokens)"
GAP_LABELS = (
    "|loss of ticket − loss of target|\n(nats per token)",
    "share of tokens where ticket and target differ",
)


def _gaps(table: pd.DataFrame) -> pd.DataFrame:
    """How far a ticket is from its target in the end, a row for each number of candidates."""
    rows = table.drop_duplicates("candidates")
    gap = (rows["val_loss_ticket"] - rows["val_loss_target"]).abs()
    return rows.assign(gap=gap, disagreement=1.0 - rows["agreement"])


HIDDEN_CURVES = (
    Curve(
        name="error_vs_block",
        columns=HIDDEN_COLUMNS,
        x="block",
        y="error",
        labels=("after block", BLOCK_LABEL),
        by=("candidates",),
        log="y",
    ),
    *(
        Curve(
            name=name,
            columns=HIDDEN_COLUMNS,
            x="candidates",
            y=y,
            labels=("candidates per entry", label),
            rows=_gaps,
            log="y",
            least=2,
        )
        for name, y, label in (
            ("gap_vs_candidates", "gap", GAP_LABELS[0]),
            ("disagreement_vs_candidates", "disagreement", GAP_LABELS[1]),
        )
    ),
)


@styled
def error_against_block(table: pd.DataFrame) -> Figure:
    """Error and certificate after each block of a hidden language model, a look for each number of candidates.

    Args:
        table: one row per (candidates, block), with HIDDEN_COLUMNS; `error` and `certificate` are Euclidean norms of
            a token's difference, the largest over tokens, and `norm` is that of the target's tokens.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, HIDDEN_COLUMNS)
    figure, (axes,) = make_panels(1)
    axes.set_yscale("log")
    looks = _graded_looks(sorted(table["candidates"].unique()))
    for candidates, look in looks.items():
        by_block = table[table["candidates"] == candidates].set_index("block").sort_index()
        draw_line(axes, by_block["error"], look, MEDIAN)
        draw_line(axes, by_block["certificate"], look, CERTIFICATE)
    draw_line(axes, table.groupby("block")["norm"].max(), Look(GREY, ""), FORMULA)
    mark_float64(axes)
    axes.set(xlabel="after block", title="hidden language model, by candidates per entry")
    axes.set_ylabel(BLOCK_LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    kinds = {"error": MEDIAN, "certificate": CERTIFICATE, "norm of the target": FORMULA}
    keys = [legend_key(f"{candidates} candidates", look) for candidates, look in looks.items()]
    keys += [legend_key(label, kind=kind) for label, kind in kinds.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=4)
    return figure


@styled
def gap_against_candidates(table: pd.DataFrame) -> Figure:
    """Against candidates per entry: the loss gap of a hidden language model, and how often its next token differs.

    Args:
        table: one row per (candidates, block), with HIDDEN_COLUMNS; losses in nats per token, `agreement` the share of
            next tokens on which target and ticket agree.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, HIDDEN_COLUMNS)
    rows = _gaps(table).set_index("candidates").sort_index()
    figure, (left, right) = make_panels(2, share_y=False)
    _gap(left, rows["gap"])
    _gap(right, rows["disagreement"])
    left.set(title="validation loss", ylabel=GAP_LABELS[0])
    right.set(title="most likely next token", ylabel=GAP_LABELS[1])
    figure.legend(handles=list(GAP_KEYS), loc="outside lower center", ncols=2)
    return figure


def _graded_looks(values: Iterable[int]) -> dict[int, Look]:
    """Looks of ordered series, from dark to light."""
    values = list(values)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(values)))  # (count, 4)
    return {
        value: Look(to_hex(color), marker)
        for value, color, marker in zip(values, colors, itertools.cycle(MARKERS), strict=False)
    }


def _gap(axes: Axes, values: "pd.Series[float]") -> None:
    """Values from 0 up on a logarithmic axis, zeros hollow and below the least other value; all zeros: linear."""
    zero, least = values == 0, values[values > 0].min()
    lower_end = 0.0 if np.isnan(least) else least / 3
    if lower_end > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(-0.05, 1)
    draw_line(axes, values.mask(zero), LOOKS[0], MEDIAN)
    axes.plot(values.index[zero], [lower_end] * zero.sum(), **properties_of(LOOKS[0], POINTS))
    axes.set_xlabel("candidates per entry")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
