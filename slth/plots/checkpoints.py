"""Trained checkpoints hidden in random networks: difference between pruned network and checkpoint against bits."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from slth.plots.curves import Curve
from slth.plots.entries import Entry, plain
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import POINTS, key, looks_of
from slth.plots.marks import draw_line
from slth.plots.page import panels
from slth.plots.rate import ABOVE, NAMES
from slth.plots.tables import require

PRODUCT = "product"  # the code of tickets with one subset sum per entry
COLUMNS = frozenset({"code", "bits_per_weight", "error_max", "attention_difference_max", "exact"})
CODE_COLUMNS = frozenset({"code", "bits_per_weight", "above_limit_db", "loss_gap"})
CODE_LABELS = {"above_limit_db": ABOVE, "loss_gap": "difference to the original's loss (nats)"}
LABELS = {
    "error_max": "largest error of a weight",
    "attention_difference_max": "largest difference of attention weights",
}


def difference_against_bits(
    table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN
) -> list[Axes]:
    """Draw the largest error of a weight, and of an attention weight, against bits per weight.

    Only tickets of products are drawn. Differences of exactly 0 are hollow markers at the lower end.

    Args:
        table: one row per ticket, with COLUMNS.
        axes: two axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The two axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there are not two axes.
    """
    require(table, COLUMNS)
    rows = table[table["code"] == PRODUCT].set_index("bits_per_weight").sort_index()
    (look,) = looks_of(["ticket"]).values()
    with panels(2, axes, layout) as page:
        for ax, (column, label) in zip(page.axes, LABELS.items(), strict=True):
            values = rows[column].dropna()
            zero, above = values == 0, values[values > 0]
            ax.set_yscale("log")
            draw_line(ax, above, look)
            if zero.any():
                draw_line(ax, values[zero] + (above.min() / 10 if len(above) else 1e-12), look, POINTS)
            ax.set(xlabel="bits per weight", ylabel=label)
        page.legend([key("ticket", look)])
        if (rows[list(LABELS)] == 0).any(axis=None):
            page.legend([key("exactly 0, shown at the lower end", look, POINTS)])
    return page.axes


def codes_against_bits(
    table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN
) -> list[Axes]:
    """Draw decibels above the information limit, and the size of the loss difference, against bits per weight.

    Args:
        table: one row per code and number of bits, with CODE_COLUMNS; rows of tickets of products are left out.
        axes: two axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The two axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there are not two axes.
    """
    require(table, CODE_COLUMNS)
    rows = table[table["code"] != PRODUCT].assign(loss_gap=lambda table: table["loss_gap"].abs())
    looks = looks_of(rows["code"].unique())
    with panels(2, axes, layout) as page:
        for ax, (column, label) in zip(page.axes, CODE_LABELS.items(), strict=True):
            for code, look in looks.items():
                own = rows[rows["code"] == code].set_index("bits_per_weight").sort_index()
                draw_line(ax, own[column], look)
            ax.set(xlabel="bits per weight", ylabel=label)
        page.axes[0].set_ylim(bottom=0.0)
        page.axes[1].set_yscale("log")
        page.legend([key(NAMES.get(code, code), look) for code, look in looks.items()])
    return page.axes


def _has_products(table: pd.DataFrame) -> bool:
    return bool((table["code"] == PRODUCT).any())


def _has_codes(table: pd.DataFrame) -> bool:
    return bool((table["code"] != PRODUCT).any() and table["loss_gap"].notna().any())


FIGURES = (
    Entry("difference_vs_bits", COLUMNS, plain(difference_against_bits), _has_products),
    Entry("codes_vs_bits", CODE_COLUMNS, plain(codes_against_bits), _has_codes),
)
CURVES = (
    Curve(
        name="error_vs_bits",
        columns=COLUMNS,
        x="bits_per_weight",
        y="error_max",
        labels=("bits per weight", LABELS["error_max"]),
        rows=lambda table: table[(table["code"] == PRODUCT) & (table["error_max"] > 0)],
        log="y",
    ),
)
