"""Attentions side by side: their tickets' losses, the differences to multi-head attention, and errors over width."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slth.plots.aggregate import Curve
from slth.plots.style import (
    FORMULA,
    GREY,
    LOOKS,
    MEAN,
    MEDIAN,
    Kind,
    Look,
    draw_line,
    legend_key,
    make_panels,
    require,
    styled,
)

MIXING_COLUMNS = frozenset({"what", "variant", "keep", "hidden", "length", "seed"})
LOSS_COLUMNS = MIXING_COLUMNS | {"val_loss", "val_loss_dense", "below_bigram", "conclusive"}
DIFFERENCE_COLUMNS = MIXING_COLUMNS | {"difference", "difference_low", "difference_high", "conclusive"}
MIXING_ERROR_COLUMNS = MIXING_COLUMNS | {"error"}
BASE = "mha"
SHORT = "too short or too few runs for conclusions"
DENSE = "dense"  # stands at the end of the axis of keep
MIXING_CURVES = (
    Curve(
        name="loss_vs_keep",
        columns=LOSS_COLUMNS,
        x="keep",
        y="val_loss",
        labels=("keep", "validation loss (nat a token)"),
        by=("variant",),
        rows=lambda table: table[table["what"] == "loss"],
    ),
    Curve(
        name="difference_to_mha",
        columns=DIFFERENCE_COLUMNS,
        x="keep",
        y="difference",
        labels=("keep", "validation loss less MHA's of the same seed (nat)"),
        by=("variant",),
        rows=lambda table: table[(table["what"] == "loss") & (table["variant"] != BASE)],
    ),
    Curve(
        name="error_vs_width_by_variant",
        columns=MIXING_ERROR_COLUMNS,
        x="hidden",
        y="error",
        labels=("width $n$ of a head of the MHA that is as large", "squared error, as a share of the target's"),
        by=("variant",),
        panel="length",
        rows=lambda table: table[table["what"] == "error"],
        log="xy",
    ),
)


def mixing_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Those of the three below that the table has the columns and rows for, by the name of their files."""
    wanted = (
        ("loss_vs_keep", "loss", LOSS_COLUMNS, loss_by_variant),
        ("difference_to_mha", "loss", DIFFERENCE_COLUMNS, difference_to_mha),
        ("error_vs_width_by_variant", "error", MIXING_ERROR_COLUMNS, error_by_variant),
    )
    return {
        name: draw(table)
        for name, what, columns, draw in wanted
        if set(table.columns) >= columns and (table["what"] == what).any()
    }


def looks_of(variants: Any) -> dict[str, tuple[Look, Kind]]:
    """A look and a kind of line for each variant: looks in turn, and lines broken from the seventh on."""
    pairs = itertools.cycle(itertools.product((MEDIAN, MEAN), LOOKS))
    return {name: (look, kind) for name, (kind, look) in zip(variants, pairs, strict=False)}


@styled
def loss_by_variant(table: pd.DataFrame) -> Figure:
    """Validation loss of tickets over keep, a line for each variant (the mean over seeds), dense training at the end.

    Seeds are faint markers, side by side; the bigram model is a dotted line. Says so where the table's `conclusive`
    does not hold.

    Args:
        table: rows with what="loss", one per (variant, keep, seed), with LOSS_COLUMNS; losses in nats a token.

    Raises:
        ValueError: if the table has no such rows or lacks a column.
    """
    rows = _rows(table, "loss", LOSS_COLUMNS)
    keeps = sorted(rows["keep"].unique())
    place: dict[Any, float] = {at: float(i) for i, at in enumerate([*keeps, DENSE])}
    figure, (axes,) = make_panels(1)
    figure.set_size_inches(8.2, 5.0)
    looks = looks_of(rows["variant"].unique())
    keys = []
    for i, (name, (look, kind)) in enumerate(looks.items()):
        aside = (i - (len(looks) - 1) / 2) * 0.6 / len(looks)
        own = rows[rows["variant"] == name]
        dense = own.drop_duplicates("seed").assign(keep=DENSE, val_loss=lambda t: t["val_loss_dense"])
        for part in (own, dense):
            at = part["keep"].map(place) + aside
            axes.scatter(at, part["val_loss"], s=12, color=look.color, marker=look.marker, alpha=0.35, linewidths=0)
            draw_line(axes, part["val_loss"].groupby(at).mean(), look, kind)
        keys.append(legend_key(name, look, kind))
    bigram = (rows["val_loss"] + rows["below_bigram"]).median()
    axes.axhline(bigram, color=GREY, linewidth=1, linestyle=FORMULA["linestyle"])
    axes.annotate("bigram", (0.01, bigram), xycoords=axes.get_yaxis_transform(), xytext=(0, 2), **_SMALL)
    axes.set_xticks(list(place.values()), [*(f"{keep:g}" for keep in keeps), "dense\ntraining"])
    axes.set(xlabel="keep", ylabel="validation loss (nat a token)", title=_title("mean over seeds", rows))
    figure.legend(handles=keys, loc="outside right center")
    return figure


@styled
def difference_to_mha(table: pd.DataFrame) -> Figure:
    """How far a ticket's loss is from that of multi-head attention of the same seed: a panel for each keep.

    The mean with its interval (difference_low, difference_high), and every seed as a faint marker. Left is better.

    Args:
        table: rows with what="loss", one per (variant, keep, seed), with DIFFERENCE_COLUMNS; losses in nats a token.

    Raises:
        ValueError: if the table has no such rows or lacks a column.
    """
    rows = _rows(table, "loss", DIFFERENCE_COLUMNS)
    names = [name for name in rows["variant"].unique() if name != BASE]
    keeps = sorted(rows["keep"].unique())
    figure, panels = make_panels(len(keeps))
    figure.set_size_inches(max(6.5, 3.6 * len(keeps) + 1.2), 1.6 + 0.36 * max(len(names), 3))
    for axes, keep in zip(panels, keeps, strict=True):
        axes.axvline(0.0, color=GREY, linewidth=1)
        for line, name in enumerate(names):
            _difference(axes, line, rows[(rows["variant"] == name) & (rows["keep"] == keep)])
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set(title=f"keep {keep:g}", xlabel="validation loss less MHA's (nat)")
    panels[0].tick_params(labelleft=True)
    limits = np.array([axes.get_xlim() for axes in panels])
    for axes in panels:
        axes.set_xlim(limits[:, 0].min(), limits[:, 1].max())  # the same scale for all
    seeds = rows["seed"].nunique()
    said = f"mean and 95 % interval, {seeds} paired seed{'s' * (seeds > 1)}; hollow: no conclusion"
    figure.suptitle(_title(said, rows), fontsize=10)
    return figure


def _difference(axes: Axes, line: int, rows: pd.DataFrame) -> None:
    """One variant on its line, dark where the interval leaves 0 out and the runs allow a conclusion."""
    first = rows.iloc[0]
    low, mean, high = first["difference_low"], rows["difference"].mean(), first["difference_high"]
    finite = pd.Series([low, high]).abs().max() < float("inf")
    decided = finite and bool(first["conclusive"]) and not low <= 0 <= high
    color = LOOKS[0].color if decided else GREY
    axes.scatter(rows["difference"], [line] * len(rows), s=14, color=LOOKS[0].color, alpha=0.35, linewidths=0)
    if finite:
        axes.plot([low, high], [line, line], color=color, linewidth=1.8)
    axes.plot([mean], [line], marker="o", color=color, markerfacecolor=color if decided else "white", markersize=6)


@styled
def error_by_variant(table: pd.DataFrame) -> Figure:
    """Error of tickets against the width of an MHA of equal size, a panel for each length, and for constructed ones.

    Medians over seeds; the errors are relative: 1 is what an output of zeros has.

    Args:
        table: rows with what="error", one per (variant, hidden, length, seed), with MIXING_ERROR_COLUMNS; another panel
            for a column error_construct that is not empty.

    Raises:
        ValueError: if the table has no such rows or lacks a column.
    """
    rows = _rows(table, "error", MIXING_ERROR_COLUMNS)
    shown = [
        (f"learned, $T$ = {length}", "error", part.dropna(subset="error")) for length, part in rows.groupby("length")
    ]
    if "error_construct" in rows and rows["error_construct"].notna().any():
        shortest = rows[rows["length"] == rows["length"].min()]
        title = f"constructed, $T$ = {rows['length'].min()}"
        shown.append((title, "error_construct", shortest.dropna(subset="error_construct")))
    looks = looks_of(rows["variant"].unique())
    figure, panels = make_panels(len(shown), share_y=False)
    figure.set_size_inches(max(6.5, 3.9 * len(shown)), 5.0)
    for axes, (title, column, part) in zip(panels, shown, strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for name, own in part.groupby("variant", sort=False):
            draw_line(axes, own.groupby("hidden")[column].median(), *looks[str(name)])
        widths = sorted(rows["hidden"].unique())
        axes.set_xticks(widths, [f"{width:g}" for width in widths])
        axes.xaxis.minorticks_off()
        axes.set(xlabel="width $n$ of a head of the MHA that is as large", title=title)
    panels[0].set_ylabel("squared error, as a share of the target's\n(median over seeds)")
    keys = [legend_key(name, *look) for name, look in looks.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(5, len(keys)))
    return figure


_SMALL: Any = {"textcoords": "offset points", "fontsize": 8, "color": GREY}


def _rows(table: pd.DataFrame, what: str, columns: frozenset[str]) -> pd.DataFrame:
    require(table, columns)
    rows = table[table["what"] == what]
    if rows.empty:
        raise ValueError(f"the table has no rows with what={what}")
    return rows


def _title(text: str, rows: pd.DataFrame) -> str:
    return text if rows["conclusive"].astype(bool).all() else f"{text}: {SHORT}"
