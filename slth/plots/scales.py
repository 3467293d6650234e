"""Change axes to logarithmic or linear scales, as a layout requests and if the values allow it."""

import numpy as np
from matplotlib.axes import Axes

from slth.plots.marks import decimal_ticks

SCALES = {False: "linear", True: "log"}
ROOM = 1.3  # factor from the lower limit to the least value, if the linear axis began at 0 or below


def rescale(axes: Axes, name: str, *, log: bool) -> None:
    """Make an axis, "x" or "y", logarithmic or linear; it stays as it is if measured values are not positive."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    values = _measured(axes, name)
    if axis.get_scale() == SCALES[log] or (log and (values < 0).any()) or not (values > 0).any():
        return
    low, high = axis.get_view_interval()
    axes.set(**{f"{name}scale": SCALES[log]})
    if log and low <= 0:
        low = float(values[values > 0].min()) / ROOM
    axes.set(**{f"{name}lim": (low, high)})
    if log and name == "x":
        decimal_ticks(axis, "{:g}".format)


def _measured(axes: Axes, name: str) -> np.ndarray:
    """Return the coordinates of all markers in these axes and those that share the scale; formulas have no markers."""
    shared = {"x": axes.get_shared_x_axes(), "y": axes.get_shared_y_axes()}[name].get_siblings(axes)
    lines = [line for one in shared for line in one.get_lines() if line.get_marker() not in (None, "", "None")]
    values = [np.asarray(getattr(line, f"get_{name}data")(), dtype=float) for line in lines]
    return np.concatenate([one[np.isfinite(one)] for one in values] or [np.empty(0)])
