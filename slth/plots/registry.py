"""The figures that there are, and which of them a table has the columns and rows for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slth.plots import across, depth, errors, hidden, lemma, mixing, pruning, qk_scale, timing
from slth.plots.curves import Curve, Run
from slth.plots.theme import SCREEN, Layout

Summary = Mapping[str, Any]
Draw = Callable[[pd.DataFrame, Summary, Layout], Axes | list[Axes]]


@dataclass(frozen=True)
class Entry:
    """A figure of one run: its file's name, the columns it needs, how it is drawn, and what else a table must have."""

    name: str
    columns: frozenset[str]
    draw: Draw
    suits: Callable[[pd.DataFrame], bool] = lambda table: True


def _plain(function: Callable[..., Axes | list[Axes]]) -> Draw:
    return lambda table, summary, layout: function(table, layout=layout)


def _with_fits(function: Callable[..., Axes | list[Axes]]) -> Draw:
    return lambda table, summary, layout: function(table, summary.get("fits"), layout=layout)


def _with_summary(function: Callable[..., Axes | list[Axes]]) -> Draw:
    return lambda table, summary, layout: function(table, summary, layout=layout)


def _has_widths(table: pd.DataFrame) -> bool:
    return bool(table["hidden"].nunique() > 1 or table["length"].nunique() == 1)


def _has_sizes(table: pd.DataFrame) -> bool:
    return len(table.loc[table["run"] == "ticket", ["size", "qk_scale"]].drop_duplicates()) > 1


def _has(what: str) -> Callable[[pd.DataFrame], bool]:
    return lambda table: bool((table["what"] == what).any())


ENTRIES = (
    Entry("error_vs_width", errors.ERROR_COLUMNS, _with_fits(errors.error_against_width), _has_widths),
    Entry(
        "error_vs_length",
        errors.ERROR_COLUMNS,
        _plain(errors.error_against_length),
        lambda table: table["length"].nunique() > 1,
    ),
    Entry("error_vs_depth", depth.DEPTH_COLUMNS, _with_fits(depth.error_against_depth)),
    Entry("speed", timing.SPEED_COLUMNS, _plain(timing.speed)),
    Entry("error_vs_block", hidden.HIDDEN_COLUMNS, _plain(hidden.error_against_block)),
    Entry(
        "gap_vs_candidates",
        hidden.HIDDEN_COLUMNS,
        _plain(hidden.gap_against_candidates),
        lambda table: table["candidates"].nunique() > 1,
    ),
    Entry("loss", pruning.PRUNING_COLUMNS, _with_summary(pruning.loss_against_steps)),
    Entry("loss_vs_parameters", pruning.PRUNING_COLUMNS, _with_summary(pruning.loss_against_parameters), _has_sizes),
    Entry("loss_vs_qk_scale", qk_scale.QK_SCALE_COLUMNS, _plain(qk_scale.loss_against_qk_scale)),
    Entry("constant", lemma.CONSTANT_COLUMNS, _plain(lemma.constant)),
    Entry("loss_vs_keep", mixing.LOSS_COLUMNS, _plain(mixing.loss_by_variant), _has("loss")),
    Entry("difference_to_mha", mixing.DIFFERENCE_COLUMNS, _plain(mixing.difference_to_mha), _has("loss")),
    Entry("error_vs_width_by_variant", mixing.MIXING_ERROR_COLUMNS, _plain(mixing.error_by_variant), _has("error")),
)
"""Every figure of one run."""

CURVES = (
    *(*errors.ERROR_CURVES, *depth.DEPTH_CURVES, *hidden.HIDDEN_CURVES, *pruning.PRUNING_CURVES),
    *(*qk_scale.QK_SCALE_CURVES, *lemma.CONSTANT_CURVES, *mixing.MIXING_CURVES, *timing.SPEED_CURVES),
)
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
