"""Comparison of attentions: losses of their tickets, differences to multi-head attention, and errors over width."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from slth.plots.curves import Curve
from slth.plots.entries import Entry, plain
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import COLORS, FORMULA, GREY, PLAIN, Look, looks_of
from slth.plots.marks import draw_line, draw_points
from slth.plots.page import panels, single
from slth.plots.tables import require

MIXING_COLUMNS = frozenset({"what", "variant", "keep", "hidden", "length", "seed"})
LOSS_COLUMNS = MIXING_COLUMNS | {"val_loss", "val_loss_dense", "below_bigram", "conclusive"}
DIFFERENCE_COLUMNS = MIXING_COLUMNS | {"difference", "difference_low", "difference_high", "conclusive"}
MIXING_ERROR_COLUMNS = MIXING_COLUMNS | {"error"}
BASE = "mha"
SHORT = "runs too short or too few"
DECIDED = COLORS[0]
DENSE = "dense"  # last tick of the axis of keep
CURVES = (
    Curve(
        name="loss_vs_keep",
        columns=LOSS_COLUMNS,
        x="keep",
        y="val_loss",
        labels=("keep", "validation loss (nats per token)"),
        by=("variant",),
        rows=lambda table: table[table["what"] == "loss"],
    ),
    Curve(
        name="difference_to_mha",
        columns=DIFFERENCE_COLUMNS,
        x="keep",
        y="difference",
        labels=("keep", "validation loss minus MHA's of the same seed (nats)"),
        by=("variant",),
        rows=lambda table: table[(table["what"] == "loss") & (table["variant"] != BASE)],
    ),
    Curve(
        name="error_vs_width_by_variant",
        columns=MIXING_ERROR_COLUMNS,
        x="hidden",
        y="error",
        labels=("head width $n$ of an MHA of equal size", "relative squared error"),
        by=("variant",),
        panel="length",
        rows=lambda table: table[table["what"] == "error"],
        log="xy",
    ),
)


def loss_by_variant(table: pd.DataFrame, *, ax: Axes | None = None, layout: Layout = SCREEN) -> Axes:
    """Draw the validation loss of tickets over keep, one line per variant (mean over seeds), and of dense training.

    Seeds are faint markers, and the bigram model is a dotted line. The title says so if the table's `conclusive` is
    false.

    Args:
        table: rows with what="loss", one per (variant, keep, seed), with LOSS_COLUMNS; losses in nats per token.
        ax: axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no such rows or lacks a column.
    """
    rows = _rows(table, "loss", LOSS_COLUMNS)
    keeps = sorted(rows["keep"].unique())
    place: dict[Any, float] = {at: float(i) for i, at in enumerate([*keeps, DENSE])}
    of_variant = looks_of(rows["variant"].unique())
    with panels(1, single(ax), layout) as page:
        (axes,) = page.axes
        for i, (name, look) in enumerate(of_variant.items()):
            aside = (i - (len(of_variant) - 1) / 2) * 0.6 / len(of_variant)
            own = rows[rows["variant"] == name]
            dense = own.drop_duplicates("seed").assign(keep=DENSE, val_loss=lambda t: t["val_loss_dense"])
            for part in (own, dense):
                at = part["keep"].map(place) + aside
                line = part["val_loss"].groupby(at).mean()
                draw_points(axes, at, part["val_loss"], look)
                draw_line(axes, line, look, PLAIN)
            page.name(axes, name, look, line, PLAIN)
        page.level(axes, "bigram", float((rows["val_loss"] + rows["below_bigram"]).median()), FORMULA)
        page.columns(axes, [*(f"{keep:g}" for keep in keeps), "dense\ntraining"])
        axes.set(xlabel="keep", ylabel="validation loss (nats per token)", title=_title("mean over seeds", rows))
    return axes


def difference_to_mha(
    table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN
) -> list[Axes]:
    """Draw the loss of tickets minus that of multi-head attention with the same seed, one panel per keep.

    It shows the mean with its interval (difference_low, difference_high), and every seed as a faint marker. Left is
    better.

    Args:
        table: rows with what="loss", one per (variant, keep, seed), with DIFFERENCE_COLUMNS; losses in nats per token.
        axes: axes to draw in, one per keep. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no such rows or lacks a column, or there are more or fewer axes than keeps.
    """
    rows = _rows(table, "loss", DIFFERENCE_COLUMNS)
    names = [name for name in rows["variant"].unique() if name != BASE]
    keeps = sorted(rows["keep"].unique())
    with panels(len(keeps), axes, layout, height=1.7) as page:
        for panel, keep in zip(page.axes, keeps, strict=True):
            panel.axvline(0.0, color=GREY, linewidth=1)
            for line, name in enumerate(names):
                _difference(panel, float(line), rows[(rows["variant"] == name) & (rows["keep"] == keep)])
            page.rows(panel, names)
            panel.set(title=f"keep {keep:g}", xlabel="validation loss minus MHA's (nats)", ylabel="")
        limits = np.array([panel.get_xlim() for panel in page.axes])
        for panel in page.axes:
            panel.set_xlim(limits[:, 0].min(), limits[:, 1].max())  # the same scale for all panels
        seeds = rows["seed"].nunique()
        said = f"mean and 95 % interval, {seeds} paired seeds" if seeds > 1 else "1 paired seed, no interval"
        page.heading = _title(f"{said}; hollow: no conclusion", rows)
    return page.axes


def _difference(axes: Axes, line: float, rows: pd.DataFrame) -> None:
    """Draw one variant in its row, filled if the interval excludes 0 and the runs allow a conclusion."""
    first = rows.iloc[0]
    low, mean, high = first["difference_low"], rows["difference"].mean(), first["difference_high"]
    finite = pd.Series([low, high]).abs().max() < float("inf")
    decided = finite and bool(first["conclusive"]) and not low <= 0 <= high
    look = Look(DECIDED if decided else GREY, "o")
    draw_points(axes, rows["difference"], [line] * len(rows), Look(DECIDED, "o"))
    if finite:
        draw_line(axes, pd.Series([line, line], index=[low, high]), look, {"marker": ""})
    face = {} if decided else {"markerfacecolor": "white"}
    draw_line(axes, pd.Series([line], index=[mean]), look, {"markersize": 6, **face})


def error_by_variant(table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN) -> list[Axes]:
    """Draw errors of tickets against the head width of an MHA of equal size, one panel per length.

    Errors are medians over seeds and relative: an output of zeros has error 1. A further panel shows constructed
    tickets if the column error_construct is not empty.

    Args:
        table: rows with what="error", one per (variant, hidden, length, seed), with MIXING_ERROR_COLUMNS.
        axes: axes to draw in, one per panel. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no such rows or lacks a column, or there are more or fewer axes than panels.
    """
    rows = _rows(table, "error", MIXING_ERROR_COLUMNS)
    shown = [
        (f"learned, $T$ = {length}", "error", part.dropna(subset="error")) for length, part in rows.groupby("length")
    ]
    if "error_construct" in rows and rows["error_construct"].notna().any():
        shortest = rows[rows["length"] == rows["length"].min()]
        title = f"constructed, $T$ = {rows['length'].min()}"
        shown.append((title, "error_construct", shortest.dropna(subset="error_construct")))
    of_variant = looks_of(rows["variant"].unique())
    widths = sorted(rows["hidden"].unique())
    with panels(len(shown), axes, layout) as page:
        for panel, (title, column, part) in zip(page.axes, shown, strict=True):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            for name, own in part.groupby("variant", sort=False):
                line = own.groupby("hidden")[column].median()
                draw_line(panel, line, of_variant[str(name)], PLAIN)
                page.name(panel, str(name), of_variant[str(name)], line, PLAIN)
            panel.set_xticks(widths, [f"{width:g}" for width in widths])
            panel.xaxis.minorticks_off()
            panel.set(xlabel="head width $n$ of an MHA of equal size", ylabel="", title=title)
        page.ylabel("relative squared error\n(median over seeds)")
    return page.axes


def _rows(table: pd.DataFrame, what: str, columns: frozenset[str]) -> pd.DataFrame:
    require(table, columns)
    rows = table[table["what"] == what]
    if rows.empty:
        raise ValueError(f"the table has no rows with what={what}")
    return rows


def _title(text: str, rows: pd.DataFrame) -> str:
    return text if rows["conclusive"].astype(bool).all() else f"{text} ({SHORT})"


def _has(what: str) -> Callable[[pd.DataFrame], bool]:
    return lambda table: bool((table["what"] == what).any())


FIGURES = (
    Entry("loss_vs_keep", LOSS_COLUMNS, plain(loss_by_variant), _has("loss")),
    Entry("difference_to_mha", DIFFERENCE_COLUMNS, plain(difference_to_mha), _has("loss")),
    Entry("error_vs_width_by_variant", MIXING_ERROR_COLUMNS, plain(error_by_variant), _has("error")),
)
