"""Colours, markers and dashes of series and of kinds of lines, distinguishable in grey."""

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
    """The colour, marker and dashes of a series. A kind of line may replace the dashes."""

    color: str
    marker: Any
    dashes: Any = "-"


COLORS = ("#004488", "#D98E04", "#B03A5B", "#40B5A6", "#111111", "#8C8C8C")  # neighbours differ in lightness
MARKERS: tuple[Any, ...] = (*"os^DvP<X>*pdh", (4, 1, 0), (6, 1, 0), (3, 1, 0), (4, 1, 45), (8, 1, 0))  # stars last
DASHES: tuple[Any, ...] = (
    *("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 2, 1, 2))),
    *((0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2))),
)  # with 18 markers, 126 looks before one repeats

GREY = "0.3"  # for formulas, and for kinds of lines in a legend

# Kinds of lines, as matplotlib properties; colour and marker are the series'.
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
    """Assign a look to each series, in their order; with more than six series, colours go from dark to light.

    The markers of 18 series differ, so that a kind of line may replace their dashes; 126 series differ in marker or
    dashes.
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
    """Return matplotlib's properties of a line with this look and kind."""
    line = {"color": look.color, "marker": look.marker, "linestyle": look.dashes}
    return {**line, "markeredgecolor": look.color, "markeredgewidth": 1.0, **kind}


def key(label: str, look: Look | None = None, kind: Kind = MEDIAN) -> Line2D:
    """Make a legend entry for a series, or in grey for a kind of line."""
    return Line2D([], [], label=label, **properties(look or Look(GREY, "o"), kind))


def patch(label: str, color: str = "0.75") -> Artist:
    """Make a legend entry for an area."""
    return Patch(color=color, linewidth=0, label=label)
