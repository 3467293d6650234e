"""What a file of this folder says of its figures, for `slth.plots.registry` to find.

FIGURES are those of one run, CURVES (`slth.plots.curves.Curve`) those of several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from slth.plots.layout import Layout

Summary = Mapping[str, Any]
Draw = Callable[[pd.DataFrame, Summary, Layout], Axes | list[Axes]]


@dataclass(frozen=True)
class Entry:
    """A figure of one run: its file's name, the columns it needs, how it is drawn, and what else a table must have."""

    name: str
    columns: frozenset[str]
    draw: Draw
    suits: Callable[[pd.DataFrame], bool] = lambda table: True


def plain(function: Callable[..., Axes | list[Axes]]) -> Draw:
    """Draw by function(table, layout=layout)."""
    return lambda table, summary, layout: function(table, layout=layout)


def with_fits(function: Callable[..., Axes | list[Axes]]) -> Draw:
    """Draw by function(table, the summary's fits, layout=layout)."""
    return lambda table, summary, layout: function(table, summary.get("fits"), layout=layout)


def with_summary(function: Callable[..., Axes | list[Axes]]) -> Draw:
    """Draw by function(table, summary, layout=layout)."""
    return lambda table, summary, layout: function(table, summary, layout=layout)
