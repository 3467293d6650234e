"""Fit titles, labels and ticks to the size of their axes."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from slth.plots.marks import Decimal
from slth.plots.texts import balance

POINTS = 72  # points per inch


def fold_labels(axes: Axes) -> int:
    """Fold title and axis labels to the axes' size; return the number of lines added."""
    inches = axes.get_figure(root=True).dpi_scale_trans.inverted()  # type: ignore[union-attr]
    box = axes.bbox.transformed(inches)
    texts = [(axes.title, box.width), (axes.xaxis.label, box.width), (axes.yaxis.label, box.height)]
    added = 0
    for text, side in texts:
        before = text.get_text()
        text.set_text(balance(before, POINTS * side, float(text.get_fontsize())))
        added += text.get_text().count("\n") - before.count("\n")
    return added


def tidy_ticks(axes: Axes) -> None:
    """Use plain numbers on short logarithmic axes, and remove tick labels that overlap."""
    for axis in (axes.xaxis, axes.yaxis):
        _without_powers(axis)
        _thin(axis)


def _without_powers(axis: Axis) -> None:
    """Use plain numbers on a logarithmic axis that spans less than a power of ten."""
    low, high = sorted(axis.get_view_interval())
    if getattr(axis.get_transform(), "base", None) == 10 and high < 10 * low:
        for which in ("major", "minor"):
            if isinstance(getattr(axis, f"get_{which}_formatter")(), LogFormatterSciNotation):
                getattr(axis, f"set_{which}_formatter")(Decimal())


def _thin(axis: Axis) -> None:
    """Remove every second tick label, repeatedly, until none overlaps the next; minor ticks lose theirs first."""
    low, high = sorted(axis.get_view_interval())
    while True:
        axis.get_majorticklabels()  # updates the ticks
        ticks = [(tick.get_loc(), tick.label1) for tick in axis.get_major_ticks()]
        shown = [(at, label) for at, label in ticks if low <= at <= high and label.get_visible() and label.get_text()]
        minor = [label for label in axis.get_minorticklabels() if label.get_visible() and label.get_text()]
        if not _overlap([label.get_window_extent() for label in (*(label for _, label in shown), *minor)]):
            return
        if minor:
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_ticks([at for at, _ in shown[::2]], [label.get_text() for _, label in shown[::2]])


def _overlap(boxes: Sequence[Any]) -> bool:
    shown = [box.expanded(1.05, 1.0) for box in boxes if box.width > 0]
    return any(one.overlaps(other) for i, one in enumerate(shown) for other in shown[i + 1 :])
