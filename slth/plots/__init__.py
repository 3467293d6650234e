"""Figures from tidy tables, drawn with seaborn: functions take a table of measurements and return matplotlib axes.

One row of a table is one measurement; the columns are those of an experiment's results.csv. Nothing is shown or saved
here, and pyplot's current figure does not change. Series differ in more than their colour, so that figures can be
printed in grey.

A figure function creates a new figure, whose size depends on the layout, such as `layout=Layout("column")`, or draws in
the caller's axes: `ax=` for one panel, `axes=` for several. It returns the axes. Seaborn, matplotlib and pandas are
imported on the first use of a name of `slth.plots.public`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slth.extras import extra

if TYPE_CHECKING:
    from slth.plots.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    with extra("experiments"):
        public = import_module("slth.plots.public")
    if name not in public.__all__:
        raise AttributeError(f"module 'slth.plots' has no attribute {name!r}")
    return getattr(public, name)


def __dir__() -> list[str]:
    with extra("experiments"):
        return list(import_module("slth.plots.public").__all__)
