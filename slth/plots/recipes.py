"""Comparison of search recipes: the loss of each, over paired seeds."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from slth.plots.entries import Entry, plain
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import looks_of
from slth.plots.marks import draw_points
from slth.plots.page import panels
from slth.plots.tables import require

RECIPE_COLUMNS = frozenset({"recipe", "seed", "val_loss", "bits_per_weight"})


def loss_by_recipe(table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN) -> list[Axes]:
    """Draw the validation loss of each recipe in a row, with its bits per weight; means are large, seeds faint.

    Args:
        table: one row per (recipe, seed), with RECIPE_COLUMNS; losses in nats per token.
        axes: a list of one axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there is not one axes.
    """
    require(table, RECIPE_COLUMNS)
    names = list(table["recipe"].unique())
    bits = table.groupby("recipe")["bits_per_weight"].first()
    with panels(1, axes, layout) as page:
        (panel,) = page.axes
        look = next(iter(looks_of(["mean"]).values()))
        for line, name in enumerate(names):
            losses = table.loc[table["recipe"] == name, "val_loss"]
            draw_points(panel, losses, [line] * len(losses), look)
            panel.plot([losses.mean()], [line], marker="D", color=look.color, linestyle="")
        page.rows(panel, [f"{name} ({bits[name]:.3g} bits)" for name in names])
        seeds = table["seed"].nunique()
        panel.set(xlabel="validation loss (nats per token)", ylabel="")
        page.heading = f"mean and single values of {seeds} paired seeds" if seeds > 1 else "one seed"
    return page.axes


FIGURES = (Entry("loss_by_recipe", RECIPE_COLUMNS, plain(loss_by_recipe)),)
