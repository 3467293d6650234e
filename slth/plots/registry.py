"""All figures, found by listing the files of this folder, and those that fit a given table."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slth.plots import across
from slth.plots.curves import Curve, Run
from slth.plots.entries import Entry, Summary
from slth.plots.layout import SCREEN, Layout


def _listed(name: str) -> Iterator[Any]:
    """Yield the items of a module-level sequence, by its name, from all files of this folder."""
    files = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    for file in files:
        if file not in ("__init__", "public", "registry"):
            yield from getattr(import_module(f"slth.plots.{file}"), name, ())


ENTRIES: tuple[Entry, ...] = tuple(_listed("FIGURES"))
"""Every figure of one run."""

CURVES: tuple[Curve, ...] = tuple(_listed("CURVES"))
"""Every figure of several runs."""


def figures(table: pd.DataFrame, summary: Summary | None = None, *, layout: Layout = SCREEN) -> dict[str, Figure]:
    """Draw every figure of one run for which its table has the columns and rows, by file name.

    Args:
        table: the run's measurements.
        summary: the run's summary, with fits and baseline losses. None: figures are drawn without these.
        layout: layout of the figures.
    """
    fit = [entry for entry in ENTRIES if {*table.columns} >= entry.columns and entry.suits(table)]
    return {entry.name: figure_of(entry.draw(table, summary or {}, layout)) for entry in fit}


def across_runs(
    runs: Sequence[Run], curves: Sequence[Curve] = CURVES, *, center: str = "mean", layout: Layout = SCREEN
) -> dict[str, Figure]:
    """Draw every figure of several runs for which at least two of them have the columns and rows, by file name.

    Runs that differ only in their seed are one series; any other difference makes separate series.

    Args:
        runs: (config, table) of each run; a config's `experiment` names its experiment, if there are several.
        curves: the figures to choose from.
        center: "mean" or "median" over seeds, as in `overlay`.
        layout: layout of the figures.
    """
    drawn = {}
    for curve in curves:
        fit = [(config, table) for config, table in runs if {*table.columns} >= curve.columns]
        fit = [(config, table) for config, table in fit if len(curve.rows(table))]
        if len(fit) > 1 and across.values_of_x(fit, curve) >= curve.least:
            drawn[curve.name] = figure_of(across.overlay(fit, curve, center=center, layout=layout))
    return drawn


def figure_of(axes: Axes | Sequence[Axes]) -> Figure:
    """Return the figure of axes."""
    first = axes if isinstance(axes, Axes) else axes[0]
    return first.get_figure(root=True)  # type: ignore[return-value]
