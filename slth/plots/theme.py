"""Seaborn's theme for each size of figure, as a context that leaves the caller's settings unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import seaborn

from slth.plots.layout import Size


@contextmanager
def theme(size: Size) -> Iterator[None]:
    """Draw in seaborn's theme: ticks, a light grid, the context "paper", and a font that matplotlib includes."""
    small = size.points - 1
    style = seaborn.axes_style(
        "ticks",
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.edgecolor": "0.15",
            "grid.color": "0.9",
            "font.sans-serif": ["DejaVu Sans"],
        },
    )
    context = seaborn.plotting_context(
        "paper",
        rc={
            "font.size": size.points,
            "axes.titlesize": size.points,
            "axes.labelsize": size.points,
            "xtick.labelsize": small,
            "ytick.labelsize": small,
            "legend.fontsize": small,
            "grid.linewidth": 0.6,
            "lines.markersize": size.points / 2,
            "lines.linewidth": size.points / 6.5,
        },
    )
    more: Any = {"figure.constrained_layout.use": True, "legend.frameon": False, "legend.handlelength": 3.2}
    with matplotlib.rc_context({**style, **context, **more}):
        yield
