"""The scale of query and key weights in random GPT-2s: its effect on a ticket's loss."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from slth.plots.curves import Curve
from slth.plots.entries import Entry, plain
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import FORMULA, GREY, MEAN, MEDIAN, Kind, Look, key, looks_of
from slth.plots.marks import SINGLE, draw_line, draw_points, note
from slth.plots.page import panels
from slth.plots.tables import require

QK_SCALE_COLUMNS = frozenset({"run", "base_std", "qk_scale", "seed", "val_loss", "logit_std_at_init", "theory_scale"})
KINDS: dict[str, Kind] = {"ticket": MEDIAN, "dense": MEAN}
NAMES = {"ticket": "ticket", "dense": "dense training"}
CURVES = (
    Curve(
        name="loss_vs_qk_scale",
        columns=QK_SCALE_COLUMNS,
        x="qk_scale",
        y="val_loss",
        labels=("scale of query and key weights", "validation loss (nats per token)"),
        by=("base_std",),
        panel="run",
        titles=lambda tables: NAMES,
    ),
)
THEORY: Kind = {"linestyle": "", "marker": "o", "markersize": 11, "markerfacecolor": "none"}


def loss_against_qk_scale(
    table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN
) -> list[Axes]:
    """Draw validation loss against the scale of query and key, and excess loss against the spread of logits.

    Lines are means over seeds, one per base standard deviation; seeds are faint markers. The excess loss on the right
    is the loss minus that of the best scale at the same base standard deviation.

    Args:
        table: one row per (run, base_std, qk_scale, seed), with QK_SCALE_COLUMNS; losses in nats per token.
        axes: two axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The two axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there are not two axes.
    """
    require(table, QK_SCALE_COLUMNS)
    means = table.groupby(["run", "base_std", "qk_scale"])["val_loss"].mean()  # (networks,)
    best = means.groupby(["run", "base_std"]).min().rename("best")
    table = table.join(best, on=["run", "base_std"]).assign(excess=lambda t: t["val_loss"] - t["best"])
    of_std = looks_of(sorted(table["base_std"].unique()))
    with panels(2, axes, layout) as page:
        left, right = page.axes
        right.set_xscale("log")
        for (run, base_std), rows in table.groupby(["run", "base_std"], sort=False):
            for panel, x, y in ((left, "qk_scale", "val_loss"), (right, "logit_std_at_init", "excess")):
                line = _draw_means(panel, rows, x, y, of_std[base_std], KINDS[str(run)])
                if run == table["run"].iloc[0]:
                    page.name(panel, f"base std of the weights {base_std:g}", of_std[base_std], line)
        for theory in table["theory_scale"].unique():
            left.axvline(theory, color=GREY, linewidth=1, linestyle=FORMULA["linestyle"])
            note(left, "$n^{1/4}$", (theory, 1.0), left.get_xaxis_transform(), va="bottom", ha="center")
        left.set(xlabel="scale of query and key weights", ylabel="validation loss (nats per token)")
        right.set(xlabel="standard deviation of the attention logits at init")
        right.set_ylabel(
            "validation loss above that of the best scale\nat the same base std of the weights (nats per token)"
        )
        page.legend([key("scale $n^{1/4}$", kind=THEORY)])
        if table["seed"].nunique() > 1:
            page.legend([key("single seeds", kind=SINGLE)])
        if table["run"].nunique() > 1:
            page.legend([key(NAMES[run], kind=KINDS[run]) for run in table["run"].unique()])
    return page.axes


def _draw_means(axes: Axes, rows: pd.DataFrame, x: str, y: str, look: Look, kind: Kind) -> "pd.Series[float]":
    """Draw means as a line, seeds as faint markers and theory's scale with a ring; return the line."""
    draw_points(axes, rows[x], rows[y], look)
    means = rows.assign(at=rows[x]).groupby("qk_scale")[["at", y]].mean()
    line = means.set_index("at")[y]
    draw_line(axes, line, look, kind)
    of_theory = rows.loc[rows["qk_scale"] == rows["theory_scale"], "qk_scale"]
    draw_line(axes, line[means.index.isin(of_theory)], look, THEORY)
    return line


FIGURES = (Entry("loss_vs_qk_scale", QK_SCALE_COLUMNS, plain(loss_against_qk_scale)),)
