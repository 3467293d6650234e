"""Definitions of figures, which `slth.plots.registry` collects from the files of this folder.

A file's FIGURES are those of one run, its CURVES (`slth.plots.curves.Curve`) those of several runs.
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
    """A figure of one run: its file name, the columns it needs, its function, and a further condition on the table."""

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
