"""The scale of query and key in random GPT-2s: what a ticket loses by it, and why."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slth.plots.aggregate import Curve
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
QK_SCALE_CURVES = (
    Curve(
        name="loss_vs_qk_scale",
        columns=QK_SCALE_COLUMNS,
        x="qk_scale",
        y="val_loss",
        labels=("scale of query and key weights", "validation loss (nat a token)"),
        by=("base_std",),
        panel="run",
        titles=NAMES,
    ),
)
THEORY: Kind = {"linestyle": "", "marker": "o", "markersize": 11, "markerfacecolor": "none"}


@styled
def loss_against_qk_scale(table: pd.DataFrame) -> Figure:
    """Validation loss over the scale of query and key; and what a scale loses, over the spread of logits it makes.

    Means over seeds as lines, a look for each base standard deviation; each seed as a faint marker. On the right, the
    loss of the best scale at the same base standard deviation is taken off: what is left depends on the logits.

    Args:
        table: one row per (run, base_std, qk_scale, seed), with QK_SCALE_COLUMNS; losses in nats a token.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, QK_SCALE_COLUMNS)
    means = table.groupby(["run", "base_std", "qk_scale"])["val_loss"].mean()  # (networks,)
    best = means.groupby(["run", "base_std"]).min().rename("best")
    table = table.join(best, on=["run", "base_std"]).assign(excess=lambda t: t["val_loss"] - t["best"])
    figure, (left, right) = make_panels(2, share_y=False)
    right.set_xscale("log")
    looks = assign_looks(sorted(table["base_std"].unique()))
    for (run, base_std), rows in table.groupby(["run", "base_std"], sort=False):
        draw_means(left, rows, "qk_scale", "val_loss", looks[base_std], KINDS[str(run)])
        draw_means(right, rows, "logit_std_at_init", "excess", looks[base_std], KINDS[str(run)])
    for theory in table["theory_scale"].unique():
        left.axvline(theory, color=GREY, linewidth=1, linestyle=FORMULA["linestyle"])
        left.text(theory, 1, " $n^{1/4}$", transform=left.get_xaxis_transform(), va="top", color=GREY)
    left.set(xlabel="scale of query and key weights", ylabel="validation loss (nat a token)")
    right.set(xlabel="standard deviation of the attention logits at init")
    right.set_ylabel("validation loss above that of the best scale\nat the same base std (nat a token)")
    keys = [legend_key(f"base std {base_std:g}", look) for base_std, look in looks.items()]
    keys += [legend_key("scale $n^{1/4}$", kind=THEORY)]
    if table["run"].nunique() > 1:
        keys += [legend_key(NAMES[run], kind=KINDS[run]) for run in table["run"].unique()]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return figure


def draw_means(axes: Axes, rows: pd.DataFrame, x: str, y: str, look: Look, kind: Kind) -> None:
    """The means of every scale as a line, the seeds as faint markers, theory's scale in a ring."""
    axes.scatter(rows[x], rows[y], s=12, color=look.color, marker=look.marker, alpha=0.35, linewidths=0)
    for shown, of_kind in ((rows, kind), (rows[rows["qk_scale"] == rows["theory_scale"]], THEORY)):
        means = shown.groupby("qk_scale", as_index=False).mean(numeric_only=True)
        draw_line(axes, means.set_index(x)[y], look, of_kind)
