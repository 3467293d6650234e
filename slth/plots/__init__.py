"""Figures from tidy tables, by seaborn: a table of measurements goes in, matplotlib's axes come out.

One row of a table is one measurement; the columns are those of an experiment's results.csv. Nothing is shown or
stored here, and pyplot's current figure is not touched. Series differ in more than their colour, so that a figure can
be printed in grey.

A figure function makes a figure of its own, of the size that `layout=Layout("column")` says, or draws in axes of the
caller's: `ax=` where it has one panel, `axes=` where it has several. It returns the axes. Seaborn, matplotlib and
pandas are imported when one of the names of `slth.plots.public` is first used.
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
