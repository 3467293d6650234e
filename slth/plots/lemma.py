"""The constant of Lemma 7, measured."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from slth.plots.curves import Curve
from slth.plots.entries import Entry, plain
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import FILLED, FIT, FORMULA, GREY, MEDIAN, POINTS, Look, key, looks_of
from slth.plots.marks import draw_formula, draw_line, draw_ranges
from slth.plots.page import panels
from slth.plots.tables import require

CONSTANT_COLUMNS = frozenset({"d", "epsilon", "target", "n_prime", "verdict"})
TARGETS = {"uniform": "target entries uniform in $[-1, 1]$", "unit": "target entries $|w| = 1$"}
X_LABEL = r"$\log(d^2/\epsilon)$"


def _sufficing(table: pd.DataFrame) -> pd.DataFrame:
    """Return the smallest n' shown to suffice in each cell."""
    rows = table[table["verdict"] == "suffices"]
    least = rows.groupby(["target", "d", "epsilon"], sort=False)["n_prime"].min().reset_index()
    return least.assign(log=np.log(least["d"] ** 2 / least["epsilon"]))


CURVES = (
    Curve(
        name="constant",
        columns=CONSTANT_COLUMNS,
        x="log",
        y="n_prime",
        labels=(X_LABEL, "smallest number of candidates $n'$ shown to suffice"),
        by=("d",),
        panel="target",
        titles=lambda tables: TARGETS,
        rows=_sufficing,
    ),
)


def constant(table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN) -> list[Axes]:
    """Draw the candidates that an entry needs against Lemma 7's logarithm, by kind of target and by width.

    Lines: C log(d^2/epsilon) with the least C that suffices in the whole panel, the least-squares line through the
    n' that suffice, and log2(d^2/epsilon), below which there are fewer sums than values to distinguish.

    Args:
        table: one row per (d, epsilon, target, n_prime), with CONSTANT_COLUMNS; `verdict` is "fails", "suffices" or
            "open".
        axes: axes to draw in, one per kind of target. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there are more or fewer axes than kinds of targets.
    """
    require(table, CONSTANT_COLUMNS)
    table = table.assign(log=np.log(table["d"] ** 2 / table["epsilon"]))
    of_width = looks_of(sorted(table["d"].unique()))
    needed = 1 + table["n_prime"].where(table["verdict"] != "suffices", 0).max()
    kinds = {"smallest $n'$ shown to suffice": FILLED, "largest $n'$ shown to fail": POINTS}
    with panels(table["target"].nunique(), axes, layout, share_y=True) as page:
        page.legend([key(f"$d$ = {d}", look, FILLED) for d, look in of_width.items()])
        page.legend([key(label, kind=kind) for label, kind in kinds.items()])
        for panel, (target, rows) in zip(page.axes, table.groupby("target", sort=False), strict=True):
            for d, own in rows.groupby("d"):
                fails, suffices = _verdicts(own)
                draw_ranges(panel, fails, suffices.reindex(fails.index), of_width[d])
                draw_line(panel, fails, of_width[d], POINTS)
                draw_line(panel, suffices, of_width[d], FILLED)
            title = TARGETS.get(str(target), str(target))
            panel.set(xlabel=X_LABEL, ylabel="", title=title)
            panel.set(xlim=(0, 1.05 * table["log"].max()), ylim=(0, 1.1 * needed))
            panel.yaxis.set_major_locator(MaxNLocator(integer=True))
            page.legend(_lines(panel, _verdicts(rows)[1], title.removeprefix("target entries ")), panel)
        page.ylabel("candidates per entry $n'$")
        page.legend([key(r"$\log_2(d^2/\epsilon)$", kind=FORMULA)])
    return page.axes


def _verdicts(rows: pd.DataFrame) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """Return the largest n' that fails and the smallest that suffices, indexed by log(d^2/epsilon)."""
    fails, suffices = (rows[rows["verdict"] == verdict].groupby("log")["n_prime"] for verdict in ("fails", "suffices"))
    return fails.max(), suffices.min()


def _lines(axes: Axes, suffices: "pd.Series[float]", where: str) -> list[Artist]:
    """Draw lines for the smallest n' that suffice, indexed by log(d^2/epsilon); return their legend entries."""
    logs = suffices.index.to_numpy(float)
    keys: list[Artist] = []
    solid = {**MEDIAN, "marker": ""}
    if suffices.size:
        largest = float((suffices / logs).max())
        draw_formula(axes, lambda x: largest * x, solid)
        keys.append(key(rf"{where}: $n' = {largest:.2f}\,\log(d^2/\epsilon)$", Look(GREY, ""), solid))
    if suffices.size > 2:
        slope, intercept = np.polyfit(logs, suffices, 1)
        draw_formula(axes, lambda x: intercept + slope * x, FIT)
        label = rf"{where}: least squares ${intercept:.1f} + {slope:.2f}\,\log(d^2/\epsilon)$"
        keys.append(key(label, Look(GREY, ""), FIT))
    draw_formula(axes, lambda x: x / np.log(2))
    return keys


FIGURES = (Entry("constant", CONSTANT_COLUMNS, plain(constant)),)
