"""Lines, bands, points and formulas, drawn with seaborn, also on logarithmic axes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogFormatter, LogLocator, NullLocator

from slth.plots.looks import FORMULA, GREY, MEDIAN, Kind, Look, properties

ZERO = 2.0**-60  # position of zeros on a logarithmic axis: well below the resolution of float64 next to 1
FAINT: Any = {"alpha": 0.35, "linewidth": 0, "legend": False}
SINGLE: Kind = {"linestyle": "", "alpha": 0.35, "markeredgewidth": 0, "markersize": 4}  # legend entry for draw_points
BAND: dict[str, Any] = {"err_style": "band", "err_kws": {"alpha": 0.18, "linewidth": 0}}
BARS: dict[str, Any] = {"err_style": "bars", "err_kws": {"elinewidth": 1.0}}
WIDE: dict[str, Any] = {"err_style": "bars", "err_kws": {"elinewidth": 6}, "alpha": 0.35}


def draw_line(axes: Axes, values: "pd.Series[float]", look: Look, kind: Kind = MEDIAN) -> None:
    """Draw values over their index; infinities are gaps. A single value is drawn as its marker, or as a dash."""
    line = properties(look, kind)
    if len(values) == 1 and not line["marker"]:
        line |= {"marker": "_", "markersize": 10}
    for part in _finite(_drawable(axes, values)):
        seaborn.lineplot(x=part.index.to_numpy(float), y=part.to_numpy(), estimator=None, ax=axes, **line)


def draw_band(axes: Axes, low: "pd.Series[float]", high: "pd.Series[float]", look: Look) -> None:
    """Draw the band between two lines over the same index; a bar if that is a single point."""
    _between(axes, low, high, look, BAND if len(low) > 1 else WIDE)


def draw_ranges(axes: Axes, low: "pd.Series[float]", high: "pd.Series[float]", look: Look) -> None:
    """Draw a thin bar from low to high at each x."""
    _between(axes, low, high, look, BARS)


def _between(axes: Axes, low: "pd.Series[float]", high: "pd.Series[float]", look: Look, style: dict[str, Any]) -> None:
    """Draw the range of two values at each x as a seaborn interval, without its central line."""
    both = pd.concat([_drawable(axes, low), _drawable(axes, high)]).dropna()
    if len(both):
        before = len(axes.lines)
        seaborn.lineplot(
            x=both.index.to_numpy(float), y=both.to_numpy(), errorbar=("pi", 100), color=look.color, ax=axes, **style
        )
        for line in axes.lines[before:]:
            line.remove()


def draw_points(axes: Axes, x: Any, y: Any, look: Look) -> None:
    """Draw single measurements as faint markers."""
    seaborn.scatterplot(x=np.asarray(x), y=np.asarray(y), color=look.color, marker=look.marker, s=14, ax=axes, **FAINT)


def draw_formula(axes: Axes, function: Callable[[Any], Any], kind: Kind = FORMULA, color: str = GREY) -> None:
    """Draw a function over the whole x axis, without changing the limits."""
    (left, right), height = axes.get_xlim(), axes.get_ylim()
    x = np.linspace(left, right, 400)
    draw_line(axes, pd.Series(function(x), index=x), Look(color, ""), kind)
    axes.set(xlim=(left, right), ylim=height)


def mark_float64(axes: Axes) -> None:
    """Mark the resolution of float64, if the axis reaches down to it."""
    bottom, resolution = axes.get_ylim()[0], 2.0**-52
    if bottom < resolution * 10:
        axes.axhline(resolution, color=GREY, linewidth=0.8)
        text = "float64 resolution, zeros below" if bottom <= ZERO else "float64 resolution"
        note(axes, text, (0.01, resolution), axes.get_yaxis_transform(), va="bottom")


class Decimal(LogFormatter):
    """Labels the same ticks as matplotlib does, without powers: 1.3 instead of 1.3 x 10^0."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a tick; "" if it has none."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def decimal_ticks(axis: Axis, text: Callable[[float], str]) -> None:
    """Set ticks of a logarithmic axis at 1, 2, 5, 10, ..., or at powers of 10 if it is long, with labels by text."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: text(value))


def note(axes: Axes, text: str, at: tuple[float, float], coordinates: Any, **alignment: Any) -> None:
    """Write a small grey text two points above and to the right of a position."""
    place: Any = {"xycoords": coordinates, "xytext": (2, 2), "textcoords": "offset points"}
    axes.annotate(text, at, fontsize="small", color=GREY, **place, **alignment)


def _drawable(axes: Axes, values: "pd.Series[float]") -> "pd.Series[float]":
    """Return values that the axis can show: infinities become NaN, zeros on a logarithmic axis become ZERO."""
    finite = values.astype(float).where(np.isfinite(values.astype(float)))
    return finite.clip(lower=ZERO) if axes.get_yscale() == "log" else finite


def _finite(values: "pd.Series[float]") -> Iterator["pd.Series[float]"]:
    """Yield the parts between missing values."""
    missing = values.isna()
    for _, part in values[~missing].groupby(missing.cumsum()[~missing]):
        yield part
