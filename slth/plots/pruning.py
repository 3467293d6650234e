"""Figures of tickets in language models: loss on the way, and against the parameters that are left."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slth.plots.aggregate import Curve
from slth.plots.style import GREY, MEAN, MEDIAN, assign_looks, draw_line, legend_key, make_panels, require, styled

PRUNING_COLUMNS = frozenset({"size", "run", "qk_scale", "nonzero", "stage", "step", "val_loss"})
NAMES = {"dense": "dense training", "ticket": "ticket", "sparse": "weights trained under a random mask"}
LABEL = "validation loss (nat a token)"
LEVELS = {
    "val_loss_unigram": "unigram",
    "val_loss_bigram": "bigram",
    "val_loss_random_mask": "random mask",
    "val_loss_shuffled_mask": "ticket's mask shuffled",
}


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    """The losses on the way of full trainings."""
    return table[(table["stage"] == "full") & table["val_loss"].notna()]


def _at_the_end(table: pd.DataFrame) -> pd.DataFrame:
    rows = _measured(table)
    last: pd.DataFrame = rows[rows["step"] == rows["step"].max()]
    return last


PRUNING_CURVES = (
    Curve(
        name="loss",
        columns=PRUNING_COLUMNS,
        x="step",
        y="val_loss",
        labels=("steps", LABEL),
        by=("size", "qk_scale"),
        panel="run",
        titles=NAMES,
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
        titles=NAMES,
        rows=_at_the_end,
        log="x",
        least=2,
    ),
)


@styled
def loss_against_steps(table: pd.DataFrame, summary: Mapping[str, Any] | None = None) -> Figure:
    """Validation loss (nat a token) over steps, a panel for each size; the simple models of the summary as lines."""
    require(table, PRUNING_COLUMNS)
    full = _measured(table)
    figure, panels = make_panels(full["size"].nunique())
    looks = assign_looks(NAMES)
    for axes, (size, rows) in zip(panels, full.groupby("size", sort=False), strict=True):
        series = dict(list(rows.groupby(["run", "qk_scale"], sort=False)))
        several = rows.loc[rows["run"] == "ticket", "qk_scale"].nunique() > 1
        for (run, scale), part in series.items():
            name = NAMES[str(run)] + (f", query and key x {scale}" if several and run != "dense" else "")
            kind = MEAN if str(scale) == "theory" else MEDIAN
            draw_line(axes, part.set_index("step")["val_loss"], looks[run], kind, name)
        _draw_levels(axes, summary or {}, top=rows["val_loss"].max())
        axes.set(xlabel="steps", title=f"GPT-2 {size}")
        axes.legend(loc="upper right")
    panels[0].set_ylabel(LABEL)
    return figure


@styled
def loss_against_parameters(table: pd.DataFrame, summary: Mapping[str, Any] | None = None) -> Figure:
    """Validation loss at the end over the parameters that are not 0: dense networks and tickets by size."""
    require(table, PRUNING_COLUMNS)
    last = _at_the_end(table)
    last = last[last["run"].isin(["dense", "ticket"])]
    figure, (axes,) = make_panels(1)
    axes.set_xscale("log")
    keys = []
    series = list(last.groupby(["run", "qk_scale"], sort=False))
    looks = assign_looks(name for name, _ in series)
    for (run, scale), rows in series:
        name = NAMES[str(run)] + (f", query and key x {scale}" if run == "ticket" else "")
        draw_line(axes, rows.sort_values("nonzero").set_index("nonzero")["val_loss"], looks[run, scale], MEDIAN)
        keys.append(legend_key(name, looks[run, scale]))
        for row in rows.itertuples():
            if run == "dense":
                axes.annotate(
                    str(row.size), (row.nonzero, row.val_loss), textcoords="offset points", xytext=(4, 5), fontsize=8
                )
    _draw_levels(axes, {k: v for k, v in (summary or {}).items() if "gram" in k}, top=last["val_loss"].max())
    axes.set(xlabel="parameters that are not zero", ylabel=LABEL)
    axes.legend(handles=keys)
    return figure


def _draw_levels(axes: Axes, summary: Mapping[str, Any], top: float) -> None:
    """Losses that do not depend on steps, as labelled lines; those far above all else as words at the top."""
    top *= 1.1
    high = []
    for key, name in LEVELS.items():
        value = summary.get(key)
        if value is None:
            continue
        if value > top:
            high.append(f"{name} {value:.2f}")
            continue
        axes.axhline(value, color=GREY, linewidth=0.8, linestyle=(0, (1, 1.5)))
        place = axes.get_yaxis_transform()
        axes.annotate(name, (0.01, value), xycoords=place, xytext=(0, 2), textcoords="offset points", fontsize=8)
    if high:
        words = "above the axis:\n" + "\n".join(high)
        axes.annotate(words, (0.01, 0.01), xycoords="axes fraction", fontsize=8, color=GREY, va="bottom")
