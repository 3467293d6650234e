"""Language models hidden in random networks: the difference between ticket and target."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from slth.plots.curves import Curve
from slth.plots.entries import Entry, plain
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import CERTIFICATE, FORMULA, GREY, MEDIAN, POINTS, Look, key, looks_of
from slth.plots.marks import draw_line, mark_float64
from slth.plots.page import panels, single
from slth.plots.tables import require

HIDDEN_COLUMNS = frozenset(
    {"candidates", "block", "error", "certificate", "norm", "val_loss_target", "val_loss_ticket", "agreement"}
)
BLOCK_LABEL = "approximation error\n(Euclidean norm, maximum over tokens)"
GAP_LABELS = (
    "|loss of ticket − loss of target|\n(nats per token)",
    "share of tokens whose prediction differs",
)


def _gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Return the final differences between ticket and target, one row per number of candidates."""
    rows = table.drop_duplicates("candidates")
    gap = (rows["val_loss_ticket"] - rows["val_loss_target"]).abs()
    return rows.assign(gap=gap, disagreement=1.0 - rows["agreement"])


CURVES = (
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


def error_against_block(table: pd.DataFrame, *, ax: Axes | None = None, layout: Layout = SCREEN) -> Axes:
    """Draw error and certificate after each block of a hidden language model, one series per number of candidates.

    Args:
        table: one row per (candidates, block), with HIDDEN_COLUMNS; `error` and `certificate` are Euclidean norms of
            a token's difference, the largest over tokens, and `norm` is the norm of the target's tokens.
        ax: axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, HIDDEN_COLUMNS)
    with panels(1, single(ax), layout) as page:
        (axes,) = page.axes
        axes.set_yscale("log")
        for candidates, look in looks_of(sorted(table["candidates"].unique())).items():
            by_block = table[table["candidates"] == candidates].set_index("block").sort_index()
            draw_line(axes, by_block["certificate"], look, CERTIFICATE)
            draw_line(axes, by_block["error"], look, MEDIAN)
            page.name(axes, f"{candidates} candidates", look, by_block["error"])
        norm = table.groupby("block")["norm"].max()
        draw_line(axes, norm, Look(GREY, ""), FORMULA)
        mark_float64(axes)
        axes.set(xlabel="after block", ylabel=BLOCK_LABEL, title="hidden language model, by candidates per entry")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        kinds = {"error": MEDIAN, "certificate": CERTIFICATE, "norm of the target": FORMULA}
        page.legend([key(label, kind=kind) for label, kind in kinds.items()])
    return axes


def gap_against_candidates(
    table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN
) -> list[Axes]:
    """Draw a hidden language model's loss gap, and how often its next token differs, against candidates per entry.

    Args:
        table: one row per (candidates, block), with HIDDEN_COLUMNS; losses in nats per token, `agreement` the share of
            next tokens on which target and ticket agree.
        axes: two axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The two axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there are not two axes.
    """
    require(table, HIDDEN_COLUMNS)
    rows = _gaps(table).set_index("candidates").sort_index()
    (look,) = looks_of(["gap"]).values()
    with panels(2, axes, layout) as page:
        left, right = page.axes
        _gap(left, rows["gap"], look)
        _gap(right, rows["disagreement"], look)
        left.set(title="validation loss", ylabel=GAP_LABELS[0])
        right.set(title="most likely next token", ylabel=GAP_LABELS[1])
        if (rows[["gap", "disagreement"]] == 0).any(axis=None):
            page.legend([key("measured", look), key("exactly 0, shown at the lower end", look, POINTS)])
    return page.axes


def _gap(axes: Axes, values: "pd.Series[float]", look: Look) -> None:
    """Draw values >= 0 on a logarithmic axis, zeros as hollow markers below the rest; linear if all are 0."""
    zero, least = values == 0, values[values > 0].min()
    lower_end = 0.0 if np.isnan(least) else float(least) / 3
    if lower_end > 0:
        axes.set_yscale("log")
    draw_line(axes, values.mask(zero), look, MEDIAN)
    draw_line(axes, values[zero] + lower_end, look, POINTS)
    if lower_end == 0:
        axes.set_ylim(-0.05, 1)
    axes.set_xlabel("candidates per entry")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


FIGURES = (
    Entry("error_vs_block", HIDDEN_COLUMNS, plain(error_against_block)),
    Entry(
        "gap_vs_candidates",
        HIDDEN_COLUMNS,
        plain(gap_against_candidates),
        lambda table: table["candidates"].nunique() > 1,
    ),
)
