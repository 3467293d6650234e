"""The scale of query and key in random GPT-2s: what a ticket loses by it, and why."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slth.plots.style import (
    FORMULA,
    GREY,
    MEAN,
    MEDIAN,
    Kind,
    Look,
    assign_looks,
    draw_line,
    legend_key,
    make_panels,
    require,
    styled,
)

QK_SCALE_COLUMNS = frozenset({"run", "base_std", "qk_scale", "seed", "val_loss", "logit_std_at_init", "theory_scale"})
KINDS: dict[str, Kind] = {"ticket": MEDIAN, "dense": MEAN}
NAMES = {"ticket": "ticket", "dense": "dense training"}


@styled
def loss_against_qk_scale(table: pd.DataFrame) -> Figure:
    """Validation loss over the scale of query and key, and over the spread of the attention logits that it makes.

    Means over seeds as lines, a look for each base standard deviation; each seed as a faint marker.

    Args:
        table: one row per (run, base_std, qk_scale, seed), with QK_SCALE_COLUMNS; losses in nats a token.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, QK_SCALE_COLUMNS)
    figure, (left, right) = make_panels(2)
    right.set_xscale("log")
    looks = assign_looks(sorted(table["base_std"].unique()))
    for (run, base_std), rows in table.groupby(["run", "base_std"], sort=False):
        draw_means(left, rows, "qk_scale", looks[base_std], KINDS[str(run)])
        draw_means(right, rows, "logit_std_at_init", looks[base_std], KINDS[str(run)])
    for theory in table["theory_scale"].unique():
        left.axvline(theory, color=GREY, linewidth=1, linestyle=FORMULA["linestyle"])
        place = left.get_xaxis_transform()
        left.annotate(
            "$n^{1/4}$", (theory, 1), xycoords=place, xytext=(3, -3), textcoords="offset points", va="top", color=GREY
        )
    left.set(xlabel="scale of query and key weights", ylabel="validation loss (nat a token)")
    right.set(xlabel="standard deviation of the attention logits at init")
    keys = [legend_key(f"base std {base_std:g}", look) for base_std, look in looks.items()]
    if table["run"].nunique() > 1:
        keys += [legend_key(NAMES[run], kind=KINDS[str(run)]) for run in table["run"].unique()]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return figure


def draw_means(axes: Axes, rows: pd.DataFrame, x: str, look: Look, kind: Kind) -> None:
    """The mean loss of every scale as a line over the mean of x, the seeds as faint markers."""
    axes.scatter(rows[x], rows["val_loss"], s=12, color=look.color, marker=look.marker, alpha=0.35, linewidths=0)
    means = rows.groupby("qk_scale", as_index=False).mean(numeric_only=True).set_index(x)
    draw_line(axes, means["val_loss"], look, kind)
