"""Figures from tidy tables: a table of measurements goes in, a matplotlib Figure comes out.

One row of a table is one measurement; the columns are those of an experiment's results.csv. Nothing is shown or
stored here, and pyplot's global state is not touched. Series differ in more than their colour, so that a figure can
be printed in grey.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from slth.extras import extra

with extra("experiments"):  # before the modules of this package, which all import them
    import pandas as pd
    from matplotlib.figure import Figure

from slth.plots.aggregate import Curve, Run
from slth.plots.aggregate import across_runs as _across_runs
from slth.plots.constant import CONSTANT_COLUMNS, CONSTANT_CURVES, TARGETS, constant
from slth.plots.errors import (
    DEPTH_COLUMNS,
    DEPTH_CURVES,
    ERROR_COLUMNS,
    ERROR_CURVES,
    SIDES,
    error_against_depth,
    error_against_length,
    error_against_width,
)
from slth.plots.hidden import HIDDEN_COLUMNS, HIDDEN_CURVES, error_against_block, gap_against_candidates
from slth.plots.mixing import (
    MIXING_COLUMNS,
    MIXING_CURVES,
    difference_to_mha,
    error_by_variant,
    loss_by_variant,
    mixing_figures,
)
from slth.plots.pruning import PRUNING_COLUMNS, PRUNING_CURVES, loss_against_parameters, loss_against_steps
from slth.plots.qk_scale import QK_SCALE_COLUMNS, QK_SCALE_CURVES, loss_against_qk_scale
from slth.plots.speed import SPEED_COLUMNS, SPEED_CURVES, speed
from slth.plots.style import CERTIFICATE, LOOKS, MEAN, MEDIAN, ZERO, Fit, Look

__all__ = [
    "CERTIFICATE",
    "CONSTANT_COLUMNS",
    "CURVES",
    "DEPTH_COLUMNS",
    "ERROR_COLUMNS",
    "HIDDEN_COLUMNS",
    "LOOKS",
    "MEAN",
    "MEDIAN",
    "MIXING_COLUMNS",
    "PRUNING_COLUMNS",
    "QK_SCALE_COLUMNS",
    "SIDES",
    "SPEED_COLUMNS",
    "TARGETS",
    "ZERO",
    "Curve",
    "Fit",
    "Look",
    "Run",
    "across_runs",
    "constant",
    "difference_to_mha",
    "error_against_block",
    "error_against_depth",
    "error_against_length",
    "error_against_width",
    "error_by_variant",
    "figures",
    "gap_against_candidates",
    "loss_against_parameters",
    "loss_against_qk_scale",
    "loss_against_steps",
    "loss_by_variant",
    "mixing_figures",
    "speed",
]

CURVES = (
    *(*ERROR_CURVES, *DEPTH_CURVES, *HIDDEN_CURVES, *PRUNING_CURVES, *QK_SCALE_CURVES, *CONSTANT_CURVES),
    *(*MIXING_CURVES, *SPEED_CURVES),
)
"""What is drawn of several runs."""


def across_runs(runs: Sequence[Run]) -> dict[str, Figure]:
    """Every figure of several runs that at least two of them have the columns and rows for, by its file's name.

    Runs that differ in their seed alone are one series: its mean, with a 95 % interval. What varies otherwise names
    series of their own.

    Args:
        runs: the (config, table) of each.
    """
    return _across_runs(runs, CURVES)


def figures(
    table: pd.DataFrame, fits: Mapping[str, Fit] | None = None, summary: Mapping[str, Any] | None = None
) -> dict[str, Figure]:
    """Every figure of one run that its table has the columns and rows for, by its file's name.

    `fits` and `summary` are as the figures take them.
    """
    drawn = {}
    if set(table.columns) >= ERROR_COLUMNS:
        widths, lengths = table["hidden"].nunique(), table["length"].nunique()
        if widths > 1 or lengths == 1:
            drawn["error_vs_width"] = error_against_width(table, fits)
        if lengths > 1:
            drawn["error_vs_length"] = error_against_length(table)
    if set(table.columns) >= DEPTH_COLUMNS:
        drawn["error_vs_depth"] = error_against_depth(table, fits)
    if set(table.columns) >= SPEED_COLUMNS:
        drawn["speed"] = speed(table)
    if set(table.columns) >= HIDDEN_COLUMNS:
        drawn["error_vs_block"] = error_against_block(table)
        if table["candidates"].nunique() > 1:
            drawn["gap_vs_candidates"] = gap_against_candidates(table)
    if set(table.columns) >= PRUNING_COLUMNS:
        drawn["loss"] = loss_against_steps(table, summary)
        if len(table.loc[table["run"] == "ticket", ["size", "qk_scale"]].drop_duplicates()) > 1:
            drawn["loss_vs_parameters"] = loss_against_parameters(table, summary)
    if set(table.columns) >= QK_SCALE_COLUMNS:
        drawn["loss_vs_qk_scale"] = loss_against_qk_scale(table)
    if set(table.columns) >= CONSTANT_COLUMNS:
        drawn["constant"] = constant(table)
    if set(table.columns) >= MIXING_COLUMNS:
        drawn |= mixing_figures(table)
    return drawn
