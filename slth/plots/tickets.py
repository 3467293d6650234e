"""The content of a ticket: the share kept, or shared with another ticket, by layer, projection and head."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from slth.plots.entries import Entry, plain
from slth.plots.layout import SCREEN, Layout
from slth.plots.page import Page, panels, single
from slth.plots.tables import require

_PLACES = {"weight", "layer", "role", "head"}
KEPT_COLUMNS = frozenset(_PLACES | {"kept", "size", "share"})
OVERLAP_COLUMNS = frozenset(_PLACES | {"both", "overlap", "by_chance"})
_ORDER = ("query", "key", "value", "output", "in", "out")


class Words(NamedTuple):
    """The labels of the values and of the crosses."""

    values: str
    cross: str


def kept_share(table: pd.DataFrame, *, ax: Axes | None = None, layout: Layout = SCREEN) -> Axes:
    """Draw the share of weights that a ticket keeps as a heat map, with rows for layers and columns for heads.

    A cross marks cells that keep nothing. Weights outside of layers (embeddings) are not drawn.

    Args:
        table: `pandas.DataFrame(slth.inspect(ticket).columns())`.
        ax: axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table lacks a column, or has no row of a layer.
    """
    require(table, KEPT_COLUMNS)
    return _drawn(table, "share", "kept", Words("share of weights kept", "nothing kept"), ax, layout)


def ticket_overlap(table: pd.DataFrame, *, ax: Axes | None = None, layout: Layout = SCREEN) -> Axes:
    """Draw the overlap of two tickets, intersection over union, as a heat map like that of :func:`kept_share`.

    table: `pandas.DataFrame(slth.ticket.columns(slth.ticket.overlap(one, other)))`. The colour bar's label has the
    median overlap by chance; cells where neither ticket keeps anything are grey. Raises ValueError as
    :func:`kept_share` does.
    """
    require(table, OVERLAP_COLUMNS)
    label = f"intersection over union ({table['by_chance'].median():.3g} by chance)"
    return _drawn(table, "overlap", "both", Words(label, "nothing in common"), ax, layout)


def _drawn(table: pd.DataFrame, shown: str, counted: str, words: Words, ax: Axes | None, layout: Layout) -> Axes:
    """Draw the column `shown` as a heat map, with a cross where the column `counted` is 0."""
    table = table[table["layer"].notna()]
    if table.empty:
        raise ValueError("the table has no rows in a layer: must have weights whose names have a number")
    table = table.assign(layer=table["layer"].astype(int), head=table["head"].fillna(0).astype(int))
    roles = sorted(table["role"].unique(), key=lambda role: _ORDER.index(role) if role in _ORDER else len(_ORDER))
    layers, heads = sorted(table["layer"].unique()), 1 + int(table["head"].max())
    values, counts = ([_cells(table, role, column, layers) for role in roles] for column in (shown, counted))
    with panels(1, single(ax), layout) as page:
        axes = page.axes[0]
        cells = np.concatenate([_widened(own, heads) for own in values], axis=1)
        plain_axes: Any = {"xticklabels": False, "yticklabels": False, "cbar_kws": {"label": words.values}}
        seaborn.heatmap(cells, ax=axes, cmap="viridis", **plain_axes)
        axes.grid(False)
        axes.set_facecolor("0.85")  # the colour of cells without a value
        for border in range(heads, heads * len(roles), heads):
            axes.axvline(border, color="white", linewidth=2)
        _mark(page, counts, heads, words.cross)
        axes.set_xticks([heads * (i + 0.5) for i in range(len(roles))], roles)
        axes.set_yticks([i + 0.5 for i in range(len(layers))], [str(layer) for layer in layers])
        axes.tick_params(length=0)
        several = f", heads 0 to {heads - 1} from left to right" if heads > 1 else ""
        axes.set(xlabel=f"projection{several}", ylabel="layer")
    return axes


def _cells(table: pd.DataFrame, role: str, column: str, layers: list[int]) -> np.ndarray:
    """Return the values of a role (layers, heads of the role), NaN where there are none."""
    of_role = table[table["role"] == role].groupby(["layer", "head"])[column].mean()
    return of_role.unstack("head").reindex(layers).to_numpy()


def _widened(values: np.ndarray, heads: int) -> np.ndarray:
    """Widen (layers, heads of a role) to (layers, heads); the cells of roles with fewer heads are wider."""
    own = values.shape[1]
    return values[:, [head * own // heads for head in range(heads)]]


def _mark(page: Page, counts: Sequence[np.ndarray], heads: int, label: str) -> None:
    """Draw crosses where counts are 0, with a legend entry; counts (layers, heads of the role) are listed by role."""
    points = [
        (heads * (role + (head + 0.5) / own.shape[1]), layer + 0.5)
        for role, own in enumerate(counts)
        for layer, head in np.argwhere(own == 0)
    ]
    if not points:
        return
    cross: Any = {"marker": "x", "linestyle": ""}
    for color, width in (("white", 2.5), ("black", 1.0)):
        page.axes[0].plot(*zip(*points, strict=True), color=color, markeredgewidth=width, **cross)
    page.legend([Line2D([], [], color="black", label=label, **cross)])


FIGURES = (
    Entry("kept_share", KEPT_COLUMNS, plain(kept_share)),
    Entry("ticket_overlap", OVERLAP_COLUMNS, plain(ticket_overlap)),
)
