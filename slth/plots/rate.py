"""Decibels above the information limit against bits per weight."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from slth.plots.curves import Curve
from slth.plots.entries import Entry, plain
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import MEDIAN, POINTS, Kind, key, looks_of
from slth.plots.marks import draw_line
from slth.plots.page import panels
from slth.plots.tables import require

RATE_COLUMNS = frozenset({"weights", "matrix", "code", "block", "bits", "above_limit_db", "published"})
ABOVE = "mean squared error above the limit (dB)"
LABELS = "bits per weight", ABOVE
NAMES = {
    "pairs": "pairs of units",
    "independent": "pairs, normal vectors",
    "subset": "single units",
    "rounding": "rounding, best clip",
    "absmax": "rounding, absmax",
    "sign": "sign",
    "seedlm": "SeedLM",
}
CURVES = (
    Curve(
        "above_limit_vs_bits",
        RATE_COLUMNS,
        x="bits",
        y="above_limit_db",
        labels=LABELS,
        by=("code", "block"),
        panel="weights",
        rows=lambda table: table[~table["published"]],
    ),
)


def above_limit(table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN) -> list[Axes]:
    """Draw each code's distance to the information limit against bits per weight, one panel per kind of weights.

    Lines are means over matrices. Hollow markers are published numbers.

    Args:
        table: one row per (weights, matrix, code, block, bits), with RATE_COLUMNS.
        axes: axes to draw in, one per kind of weights. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there are more or fewer axes than kinds of weights.
    """
    require(table, RATE_COLUMNS)
    names = [_name(*series) for series in zip(table["code"], table["block"], table["published"], strict=True)]
    table = table.assign(rounded=table["bits"].round(1), series=names)
    looks = looks_of(table["series"].unique())
    published = set(table.loc[table["published"], "series"])
    kinds: dict[str, Kind] = {series: POINTS if series in published else MEDIAN for series in looks}
    with panels(table["weights"].nunique(), axes, layout, share_y=True) as page:
        for panel, (weights, rows) in zip(page.axes, table.groupby("weights", sort=False), strict=True):
            for series, own in rows.groupby("series", sort=False):
                means = own.groupby("rounded")[["bits", "above_limit_db"]].mean()
                draw_line(panel, means.set_index("bits")["above_limit_db"], looks[series], kinds[str(series)])
            panel.set(title=f"{weights} weights", xlabel=LABELS[0], ylabel="")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        for panel in page.axes:
            panel.set_ylim(bottom=0.0)
        page.axes[0].set_ylabel(LABELS[1])
        page.legend([key(series, look, kinds[series]) for series, look in looks.items()])
    return page.axes


def _name(code: str, block: int, published: bool) -> str:
    return f"{NAMES.get(code, code)}{f', $d$ = {block}' * bool(block)}{' (published)' * published}"


FIGURES = (Entry("above_limit_vs_bits", RATE_COLUMNS, plain(above_limit)),)
