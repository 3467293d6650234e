"""Figures of tickets in language models: loss against steps, and against the number of remaining parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from slth.plots.curves import Curve
from slth.plots.entries import Entry, with_summary
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import FORMULA, MEAN, MEDIAN, Look, key, looks_of
from slth.plots.marks import draw_line, note
from slth.plots.page import Page, panels, single
from slth.plots.tables import require

PRUNING_COLUMNS = frozenset({"size", "run", "qk_scale", "nonzero", "stage", "step", "val_loss"})
NAMES = {"dense": "dense training", "ticket": "ticket", "sparse": "weights trained under a random mask"}
LABEL = "validation loss (nats per token)"
LEVELS = {
    "val_loss_unigram": "unigram",
    "val_loss_bigram": "bigram",
    "val_loss_random_mask": "random mask",
    "val_loss_shuffled_mask": "ticket's mask shuffled",
}


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    """Return the losses of full trainings at all steps, without those of baselines."""
    return table[(table["stage"] == "full") & table["val_loss"].notna() & table["run"].isin(NAMES)]


def _at_the_end(table: pd.DataFrame) -> pd.DataFrame:
    rows = _measured(table)
    last: pd.DataFrame = rows[rows["step"] == rows["step"].max()]
    return last


CURVES = (
    Curve(
        name="loss",
        columns=PRUNING_COLUMNS,
        x="step",
        y="val_loss",
        labels=("steps", LABEL),
        by=("size", "qk_scale"),
        panel="run",
        titles=lambda tables: NAMES,
        rows=_measured,
    ),
    Curve(
        name="loss_vs_parameters",
        columns=PRUNING_COLUMNS,
        x="nonzero",
        y="val_loss",
        labels=("parameters that are not zero", LABEL),
        by=("qk_scale",),
        panel="run",
        titles=lambda tables: NAMES,
        rows=_at_the_end,
        log="x",
        least=2,
    ),
)


def loss_against_steps(
    table: pd.DataFrame,
    summary: Mapping[str, Any] | None = None,
    *,
    axes: Sequence[Axes] | None = None,
    layout: Layout = SCREEN,
) -> list[Axes]:
    """Draw validation loss (nats per token) over steps, one panel per size, with the summary's baselines as lines.

    Args:
        table: one row per (size, run, qk_scale, stage, step), with PRUNING_COLUMNS; only the stage "full" is drawn.
        summary: losses by the names of LEVELS. None, or a missing name: no line.
        axes: axes to draw in, one per size. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there are more or fewer axes than sizes.
    """
    require(table, PRUNING_COLUMNS)
    full = _measured(table)
    of_run = looks_of(NAMES)
    with panels(full["size"].nunique(), axes, layout, share_y=True) as page:
        for panel, (size, rows) in zip(page.axes, full.groupby("size", sort=False), strict=True):
            several = rows.loc[rows["run"] == "ticket", "qk_scale"].nunique() > 1
            for (run, scale), part in rows.groupby(["run", "qk_scale"], sort=False):
                name = NAMES[str(run)] + (f", query and key x {scale}" if several and run != "dense" else "")
                kind = MEAN if str(scale) == "theory" else MEDIAN
                line = part.set_index("step")["val_loss"]
                draw_line(panel, line, of_run[run], kind)
                page.name(panel, name, of_run[run], line, kind)
            _draw_levels(page, panel, summary or {}, top=full["val_loss"].max())
            panel.set(xlabel="steps", ylabel="", title=f"GPT-2 {size}")
        page.ylabel(LABEL)
    return page.axes


def loss_against_parameters(
    table: pd.DataFrame,
    summary: Mapping[str, Any] | None = None,
    *,
    ax: Axes | None = None,
    layout: Layout = SCREEN,
) -> Axes:
    """Draw the final validation loss of dense networks and tickets over the number of nonzero parameters, by size.

    Args:
        table: as for `loss_against_steps`.
        summary: losses by the names of LEVELS; only the n-gram models are drawn.
        ax: axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, PRUNING_COLUMNS)
    last = _at_the_end(table)
    last = last[last["run"].isin(["dense", "ticket"])]
    series = list(last.groupby(["run", "qk_scale"], sort=False))
    of_series = looks_of(name for name, _ in series)
    with panels(1, single(ax), layout) as page:
        (axes,) = page.axes
        axes.set_xscale("log")
        for (run, scale), rows in series:
            name = NAMES[str(run)] + (f", query and key x {scale}" if run == "ticket" else "")
            line = rows.sort_values("nonzero").set_index("nonzero")["val_loss"]
            draw_line(axes, line, of_series[run, scale], MEDIAN)
            page.name(axes, name, of_series[run, scale], line)
        dense = last[last["run"] == "dense"].drop_duplicates("size")
        for size, at, loss in dense[["size", "nonzero", "val_loss"]].to_numpy():
            side = "right" if at > last["nonzero"].median() else "left"
            note(axes, str(size), (at, loss), "data", va="bottom", ha=side)
        grams = {name: loss for name, loss in (summary or {}).items() if "gram" in name}
        _draw_levels(page, axes, grams, top=last["val_loss"].max())
        axes.set(xlabel="parameters that are not zero", ylabel=LABEL)
    return axes


def _draw_levels(page: Page, axes: Axes, summary: Mapping[str, Any], top: float) -> None:
    """Draw losses that do not depend on steps as labelled lines; those far above all others are listed as text."""
    levels = {name: summary[loss] for loss, name in LEVELS.items() if summary.get(loss) is not None}
    for name, value in levels.items():
        if value <= 1.1 * top:
            page.level(axes, name, value, FORMULA)
    if high := [f"{name} {value:.2f}" for name, value in levels.items() if value > 1.1 * top]:
        page.legend([key("above the axis: " + ", ".join(high), Look("none", ""))], axes)


FIGURES = (
    Entry("loss", PRUNING_COLUMNS, with_summary(loss_against_steps)),
    Entry(
        "loss_vs_parameters",
        PRUNING_COLUMNS,
        with_summary(loss_against_parameters),
        lambda table: len(table.loc[table["run"] == "ticket", ["size", "qk_scale"]].drop_duplicates()) > 1,
    ),
)
