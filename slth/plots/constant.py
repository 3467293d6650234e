"""The constant of Lemma 7, measured."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slth.plots.aggregate import Curve
from slth.plots.style import (
    FIT,
    MEDIAN,
    POINTS,
    Kind,
    assign_looks,
    draw_formula,
    draw_line,
    legend_key,
    make_panels,
    require,
    styled,
)

CONSTANT_COLUMNS = frozenset({"d", "epsilon", "target", "n_prime", "verdict"})
TARGETS = {"uniform": "target entries uniform in $[-1, 1]$", "unit": "target entries $|w| = 1$"}
X_LABEL = r"$\log(d^2/\epsilon)$"
SUFFICES: Kind = {"linestyle": ""}
VERDICT_KEYS = (
    legend_key("smallest $n'$ shown to suffice", kind=SUFFICES),
    legend_key("largest $n'$ shown to fail", kind=POINTS),
)


def _sufficing(table: pd.DataFrame) -> pd.DataFrame:
    """The smallest n' shown to suffice in each cell."""
    rows = table[table["verdict"] == "suffices"]
    least = rows.groupby(["target", "d", "epsilon"], sort=False)["n_prime"].min().reset_index()
    return least.assign(log=np.log(least["d"] ** 2 / least["epsilon"]))


CONSTANT_CURVES = (
    Curve(
        name="constant",
        columns=CONSTANT_COLUMNS,
        x="log",
        y="n_prime",
        labels=(X_LABEL, "smallest number of candidates $n'$ shown to suffice"),
        by=("d",),
        panel="target",
        titles=TARGETS,
        rows=_sufficing,
    ),
)


@styled
def constant(table: pd.DataFrame) -> Figure:
    """Candidates that an entry needs, against the logarithm of Lemma 7: a panel per kind of target, a look per width.

    Lines: C log(d^2/epsilon) with the least C that suffices in the whole panel, the least-squares line through the
    n' that suffice, and log2(d^2/epsilon), below which there are fewer sums than values to be told apart.

    Args:
        table: one row per (d, epsilon, target, n_prime), with CONSTANT_COLUMNS; `verdict` says "fails", "suffices" or
            "open" of an n_prime.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, CONSTANT_COLUMNS)
    table = table.assign(log=np.log(table["d"] ** 2 / table["epsilon"]))
    looks = assign_looks(sorted(table["d"].unique()))
    needed = 1 + table["n_prime"].where(table["verdict"] != "suffices", 0).max()
    figure, panels = make_panels(table["target"].nunique())
    for axes, (target, rows) in zip(panels, table.groupby("target", sort=False), strict=True):
        for d, of_width in rows.groupby("d"):
            fails, suffices = _verdicts(of_width)
            axes.vlines(fails.index, fails, suffices.reindex(fails.index), color=looks[d].color, linewidth=1)
            draw_line(axes, fails, looks[d], POINTS)
            draw_line(axes, suffices, looks[d], SUFFICES)
        axes.set(xlabel=X_LABEL, title=TARGETS.get(str(target), str(target)))
        axes.set(xlim=(0, 1.05 * table["log"].max()), ylim=(0, 1.25 * needed))  # room for the legend
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _constant_lines(axes, _verdicts(rows)[1])
        axes.legend(loc="upper left")
    panels[0].set_ylabel("candidates per entry $n'$")
    keys = [legend_key(f"$d$ = {d}", look, SUFFICES) for d, look in looks.items()]
    figure.legend(handles=[*VERDICT_KEYS, *keys], loc="outside lower center", ncols=3)
    return figure


def _verdicts(rows: pd.DataFrame) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """The largest n' that fails and the smallest that suffices, by the logarithm."""
    fails, suffices = (rows[rows["verdict"] == verdict].groupby("log")["n_prime"] for verdict in ("fails", "suffices"))
    return fails.max(), suffices.min()


def _constant_lines(axes: Axes, suffices: "pd.Series[float]") -> None:
    """Lines over the smallest n' that suffice, by the logarithm."""
    logs = suffices.index.to_numpy(float)
    if suffices.size:
        largest = float((suffices / logs).max())
        draw_formula(axes, lambda x: largest * x, rf"$n' = {largest:.2f}\,\log(d^2/\epsilon)$", MEDIAN)
    if suffices.size > 2:
        slope, intercept = np.polyfit(logs, suffices, 1)
        draw_formula(
            axes, lambda x: intercept + slope * x, rf"least squares: ${intercept:.1f} + {slope:.2f}\,\log$", FIT
        )
    draw_formula(axes, lambda x: x / np.log(2), r"$\log_2(d^2/\epsilon)$")
