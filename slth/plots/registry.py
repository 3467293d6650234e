"""The figures that there are, found by listing, and which of them a table has the columns and rows for."""

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
    """What the files of this folder have under a name, file by file."""
    files = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    for file in files:
        if file not in ("__init__", "public", "registry"):
            yield from getattr(import_module(f"slth.plots.{file}"), name, ())


ENTRIES: tuple[Entry, ...] = tuple(_listed("FIGURES"))
"""Every figure of one run."""

CURVES: tuple[Curve, ...] = tuple(_listed("CURVES"))
"""What is drawn of several runs."""


def figures(table: pd.DataFrame, summary: Summary | None = None, *, layout: Layout = SCREEN) -> dict[str, Figure]:
    """Every figure of one run that its table has the columns and rows for, by its file's name.

    Args:
        table: the run's measurements.
        summary: the run's summary, of which figures take fits and levels; None: without these.
        layout: of the figures.
    """
    fit = [entry for entry in ENTRIES if {*table.columns} >= entry.columns and entry.suits(table)]
    return {entry.name: figure_of(entry.draw(table, summary or {}, layout)) for entry in fit}


def across_runs(
    runs: Sequence[Run], curves: Sequence[Curve] = CURVES, *, center: str = "mean", layout: Layout = SCREEN
) -> dict[str, Figure]:
    """Every figure of several runs that at least two of them have the columns and rows for, by its file's name.

    Runs that differ in their seed alone are one series. What varies otherwise names series of their own.

    Args:
        runs: the (config, table) of each; a config's `experiment`, where there are several, names the experiment.
        curves: what may be drawn.
        center: of the seeds, "mean" or "median", as `overlay` has it.
        layout: of the figures.
    """
    drawn = {}
    for curve in curves:
        fit = [(config, table) for config, table in runs if {*table.columns} >= curve.columns]
        fit = [(config, table) for config, table in fit if len(curve.rows(table))]
        if len(fit) > 1 and across.values_of_x(fit, curve) >= curve.least:
            drawn[curve.name] = figure_of(across.overlay(fit, curve, center=center, layout=layout))
    return drawn


def figure_of(axes: Axes | Sequence[Axes]) -> Figure:
    """The figure that axes are in."""
    first = axes if isinstance(axes, Axes) else axes[0]
    return first.get_figure(root=True)  # type: ignore[return-value]
