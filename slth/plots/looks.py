"""What tells one series, and one kind of line, from another: in colour and in grey."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import seaborn
from matplotlib.artist import Artist
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

Kind = Mapping[str, Any]


class Look(NamedTuple):
    """What tells one series from another. A kind of line may replace the dashes."""

    color: str
    marker: Any
    dashes: Any = "-"


COLORS = ("#004488", "#D98E04", "#B03A5B", "#40B5A6", "#111111", "#8C8C8C")  # neighbours differ in lightness
MARKERS: tuple[Any, ...] = (*"os^DvP<X>*pdh", (4, 1, 0), (6, 1, 0), (3, 1, 0), (4, 1, 45), (8, 1, 0))  # stars last
DASHES: tuple[Any, ...] = (
    *("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 2, 1, 2))),
    *((0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2))),
)  # with 18 markers, 126 looks before one is there again

GREY = "0.3"  # of formulas, and of what stands for a kind of line in a legend

# Kinds of lines, as matplotlib's properties; a series gives them its colour and marker.
PLAIN: Kind = {}
MEDIAN: Kind = {"linestyle": "-"}
MEAN: Kind = {"linestyle": (0, (4, 1.5)), "markerfacecolor": "white"}
CERTIFICATE: Kind = {"linestyle": (0, (6, 2, 1, 2)), "markersize": 2.5}
FORMULA: Kind = {"linestyle": (0, (1, 1.5)), "marker": ""}
BOUND: Kind = {"linestyle": (0, (1, 1.5)), "markersize": 2.5}
POINTS: Kind = {"linestyle": "", "markerfacecolor": "white"}
FILLED: Kind = {"linestyle": ""}
FIT: Kind = {"linestyle": "--", "marker": ""}


def looks_of(series: Iterable[Hashable]) -> dict[Any, Look]:
    """A look for each series, in their order; beyond six series, colours go from dark to light.

    No two of 18 series have the same marker, so that a kind of line may replace dashes; no two of 126 have both alike.
    """
    series = list(series)
    return {
        name: Look(color, MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, (name, color) in enumerate(zip(series, _colors(len(series)), strict=True))
    }


def _colors(count: int) -> list[str]:
    if count <= len(COLORS):
        return list(COLORS[:count])
    dark_to_light = seaborn.color_palette("viridis", as_cmap=True)
    return [to_hex(color) for color in dark_to_light(np.linspace(0.0, 0.85, count))]


def properties(look: Look, kind: Kind) -> dict[str, Any]:
    """Matplotlib's properties of a line."""
    line = {"color": look.color, "marker": look.marker, "linestyle": look.dashes}
    return {**line, "markeredgecolor": look.color, "markeredgewidth": 1.0, **kind}


def key(label: str, look: Look | None = None, kind: Kind = MEDIAN) -> Line2D:
    """An entry of a legend: a series by its look, or a kind of line in grey."""
    return Line2D([], [], label=label, **properties(look or Look(GREY, "o"), kind))


def patch(label: str, color: str = "0.75") -> Artist:
    """An entry of a legend: an area."""
    return Patch(color=color, linewidth=0, label=label)
