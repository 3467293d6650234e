"""What figures are made of: how series look, panels, lines, bands, marks and legends.

Series differ in more than their colour, so that a figure can be printed in grey.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

P = ParamSpec("P")
Fit = Mapping[str, float | None]
Kind = Mapping[str, Any]


class Look(NamedTuple):
    """What tells one series from another."""

    color: str
    marker: str


# Neighbours differ in lightness, for grey print.
LOOKS = (
    Look("#004488", "o"),
    Look("#D98E04", "s"),
    Look("#B03A5B", "^"),
    Look("#40B5A6", "D"),
    Look("#111111", "v"),
    Look("#8C8C8C", "P"),
)

GREY = "0.3"  # of formulas, and of what stands for a kind of line in a legend

# Kinds of lines, as matplotlib's properties; a series gives them its colour and marker.
MEDIAN: Kind = {"linestyle": "-"}
MEAN: Kind = {"linestyle": (0, (4, 1.5)), "markerfacecolor": "white"}
CERTIFICATE: Kind = {"linestyle": (0, (6, 2, 1, 2)), "marker": ""}
FORMULA: Kind = {"linestyle": (0, (1, 1.5)), "marker": ""}
POINTS: Kind = {"linestyle": "", "markerfacecolor": "white"}
FIT: Kind = {"linestyle": "--", "marker": ""}

ZERO = 2.0**-60  # where a logarithmic axis shows zeros: well below what float64 resolves next to 1

STYLE: Any = {  # matplotlib types the keys themselves
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.2,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a figure function draw in STYLE and leave the caller's settings as they are."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def make_panels(count: int, share_y: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels side by side."""
    figure = Figure(figsize=(max(5.2 * count, 6.5), 4.8))
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=share_y)[0])


def assign_looks(series: Iterable[Hashable]) -> dict[Any, Look]:
    """A look for each series, in their order; they repeat after the last."""
    return dict(zip(series, itertools.cycle(LOOKS), strict=False))


def draw_line(axes: Axes, values: "pd.Series[float]", look: Look, kind: Kind, label: str = "_") -> None:
    """Values over their index. A single value shows as its marker, or as a dash where the line has none."""
    properties = properties_of(look, kind)
    if len(values) == 1 and not properties["marker"]:
        properties |= {"marker": "_", "markersize": 10}
    axes.plot(values.index, _drawable(axes, values), label=label, **properties)


def properties_of(look: Look, kind: Kind) -> dict[str, Any]:
    """Matplotlib's properties of a line."""
    return {"color": look.color, "marker": look.marker, "markersize": 4.5, "linewidth": 1.6, **kind}


def draw_band(axes: Axes, low: "pd.Series[float]", high: "pd.Series[float]", look: Look) -> None:
    """What lies between two lines over the same index; a bar where that is a single point."""
    x, bottom, top = low.index, _drawable(axes, low), _drawable(axes, high)
    if len(x) == 1:
        axes.vlines(x, bottom, top, color=look.color, alpha=0.35, linewidth=6)
    else:
        axes.fill_between(x, bottom, top, color=look.color, alpha=0.18, linewidth=0)


def _drawable(axes: Axes, values: "pd.Series[float]") -> "pd.Series[float]":
    """Values as the axis can show them: infinities are gaps, zeros on a logarithmic axis lie at ZERO."""
    finite = values.where(np.isfinite(values))
    return finite.clip(lower=ZERO) if axes.get_yscale() == "log" else finite


def draw_formula(
    axes: Axes, function: Callable[[Any], Any], label: str = "_", kind: Kind = FORMULA, color: str = GREY
) -> None:
    """A function over the whole x axis; the limits stay as the measured values set them."""
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    x = np.linspace(*limits["xlim"], 400)
    axes.plot(x, function(x), label=label, color=color, **kind)
    axes.set(**limits)


def mark_float64(axes: Axes) -> None:
    """Where rounding begins, if the axis reaches so far down."""
    bottom, resolution = axes.get_ylim()[0], 2.0**-52
    if bottom < resolution * 10:
        axes.axhline(resolution, color=GREY, linewidth=0.8)
        text = "float64 resolution, zeros below" if bottom <= ZERO else "float64 resolution"
        place = axes.get_yaxis_transform()
        axes.annotate(
            text, (0.01, resolution), xycoords=place, xytext=(0, 2), textcoords="offset points", fontsize=8, color=GREY
        )


def legend_key(label: str, look: Look | None = None, kind: Kind = MEDIAN) -> Line2D:
    """An entry of a legend: a series by its look, or a kind of line in grey."""
    return Line2D([], [], label=label, **properties_of(look or Look(GREY, "o"), kind))


def legend_below(axes: Axes, keys: Iterable[Artist], columns: int) -> None:
    """A legend under the axes, in so many columns."""
    axes.legend(handles=list(keys), loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=columns)


def require(table: pd.DataFrame, columns: frozenset[str]) -> None:
    """Raise ValueError if the table has no rows or lacks a column."""
    missing = columns - set(table.columns)
    if missing:
        raise ValueError(f"the table lacks the columns {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    if table.empty:
        raise ValueError("the table has no rows")
