"""Loss against file size: tickets, other masks, smaller networks, quantised training and rounding."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from slth.plots.entries import Entry, with_summary
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import FILLED, FORMULA, MEDIAN, POINTS, Kind, key, looks_of
from slth.plots.marks import draw_line
from slth.plots.page import panels, single
from slth.plots.tables import require

BYTES_COLUMNS = frozenset({"size", "run", "weights", "stage", "bytes", "val_loss"})
LABELS = "file size (bytes)", "validation loss (nats per token)"
NAMES = {
    "ticket": "ticket",
    "ternary": "ternary training",
    "binary": "binary training",
    "rounding": "dense, rounded to 1, 2, 3, 4, 8 bits",
    "dense": "dense",
    "dense_nonzero": "dense, same parameter count",
    "dense_bytes": "dense, same file size",
    "random": "random mask",
    "magnitude": "magnitude",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
}
MASKS = "random", "magnitude", "snip", "grasp", "synflow"
LEVELS = {"val_loss_unigram": "unigram", "val_loss_bigram": "bigram"}


def _shipped(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["stage"] == "shipped") & table["bytes"].notna() & table["run"].isin(NAMES)]


def loss_against_bytes(
    table: pd.DataFrame,
    summary: Mapping[str, Any] | None = None,
    *,
    ax: Axes | None = None,
    layout: Layout = SCREEN,
) -> Axes:
    """Draw validation loss against the size of each network's file.

    Hollow markers are networks with random weights, of which only a mask is stored.

    Args:
        table: one row per file, with BYTES_COLUMNS; only the stage "shipped" is drawn.
        summary: losses by the names of LEVELS, drawn as lines.
        ax: axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, BYTES_COLUMNS)
    files = _shipped(table)
    looks = looks_of(name for name in NAMES if name in set(files["run"]))
    with panels(1, single(ax), layout) as page:
        (axes,) = page.axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        for (run, weights), rows in files.groupby(["run", "weights"], sort=False):
            kind: Kind = POINTS if weights == "random" else MEDIAN if run == "rounding" else FILLED
            draw_line(axes, rows.sort_values("bytes").set_index("bytes")["val_loss"], looks[run], kind)
        for loss, name in LEVELS.items():
            if (summary or {}).get(loss) is not None:
                page.level(axes, name, (summary or {})[loss], FORMULA)
        page.legend([key(NAMES[run], look, _kind(run)) for run, look in looks.items()])
        if set(files["run"]) & set(MASKS):
            page.legend([key("hollow: weights are random", kind=POINTS)])
        axes.set(xlabel=LABELS[0], ylabel=LABELS[1])
    return axes


def _kind(run: str) -> Kind:
    return POINTS if run == "ticket" else MEDIAN if run == "rounding" else FILLED


FIGURES = (
    Entry(
        "loss_vs_bytes",
        BYTES_COLUMNS,
        with_summary(loss_against_bytes),
        lambda table: len(_shipped(table)) > 1,
    ),
)
