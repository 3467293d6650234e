"""Layout of figures drawn in the caller's axes: legends lie within the axes, labels and titles within the figure.

Series are named in a legend in the upper part of the axes, above the data, which `seaborn.move_legend` can move. The
caller's layout engine makes room for labels. Without an engine, the figure is laid out once if labels would be cut off
or overlap other axes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from slth.plots.fitting import POINTS, fold_labels, tidy_ticks
from slth.plots.texts import LINE, fold

SMALLEST = 5.0  # smallest font size of a legend, in points
MOST = 0.4  # share of the axes' height above which a legend's text gets smaller
# in font sizes: a legend's line; line and gaps of an entry; gap to the axes' edge; gap between entries; a label
LINES, BESIDE, EDGE, SPACE, NARROWEST = 2.8, 4.6, 0.6, 0.25, 6.0


def fit_in(
    panels: Sequence[Axes],
    heading: str,
    keys: Mapping[Axes, Sequence[Artist]],
    needed: Mapping[Axes, float],
    *,
    share_y: bool,
) -> None:
    """Fit titles, labels, ticks and legends to the caller's axes.

    Args:
        panels: the axes, all of one figure.
        heading: text above the title of the first panel.
        keys: entries of each panel's legend.
        needed: height in points that the row labels of a panel need.
        share_y: whether all panels share one vertical scale.
    """
    figure: Figure = panels[0].get_figure(root=True)  # type: ignore[assignment]
    if heading:
        panels[0].set_title("\n".join(filter(None, (heading, panels[0].get_title()))))
    labels = [text for axes in panels for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    unfolded = {text: text.get_text() for text in labels}
    _fold(panels, unfolded)
    engine = figure.get_layout_engine()
    if engine is None and not _fits(figure, panels):
        engine = ConstrainedLayoutEngine()
    for _ in range(2 if engine else 0):  # twice: folded labels change the size of the axes
        engine.execute(figure)  # type: ignore[union-attr]
        _fold(panels, unfolded)
    for axes, height in needed.items():
        if (share := _points(axes)[1] / height) < 1:
            size = float(axes.yaxis.get_majorticklabels()[0].get_fontsize())
            axes.tick_params("y", labelsize=max(SMALLEST, share * size))
    shares = {axes: _place_legend(axes, keys[axes]) for axes in panels if keys[axes]}
    if share_y:
        limits = [limit for axes in panels for limit in axes.get_ylim()]
        for axes in panels:
            axes.set_ylim(min(limits), max(limits))
        shares = dict.fromkeys(panels, max(shares.values(), default=0.0))
    _raise_limits(shares)
    for axes in panels:
        tidy_ticks(axes)


def _fold(panels: Sequence[Axes], labels: Mapping[Text, str]) -> None:
    for label, text in labels.items():
        label.set_text(text)
    for axes in panels:
        fold_labels(axes)


def _fits(figure: Figure, panels: Sequence[Axes]) -> bool:
    """Tell whether all texts of the panels lie within the figure and overlap no other axes; True for free axes."""
    if any(axes.get_subplotspec() is None for axes in panels):
        return True  # layout engines do not move them
    boxes: dict[Axes, Any] = {axes: axes.get_tightbbox() for axes in figure.axes}
    page = figure.bbox
    return all(
        min(boxes[axes].x0 - page.x0, boxes[axes].y0 - page.y0, page.x1 - boxes[axes].x1, page.y1 - boxes[axes].y1) >= 0
        and not any(other is not axes and boxes[axes].overlaps(box) for other, box in boxes.items())
        for axes in panels
    )


def _place_legend(axes: Axes, keys: Sequence[Artist]) -> float:
    """Add a legend at the top, in the largest font that leaves room for data; return its share of the axes' height."""
    width, height = _points(axes)
    points, labels = float(matplotlib.rcParams["font.size"]) - 1, [str(one.get_label()) for one in keys]
    columns, folded = _columns(labels, width, points)
    while _height(columns, folded, points) > MOST * height and points > SMALLEST:
        points -= 0.5
        columns, folded = _columns(labels, width, points)
    for one, label in zip(keys, folded, strict=True):
        one.set_label(label)
    close: Any = {"borderaxespad": EDGE / 2, "borderpad": 0.2, "labelspacing": SPACE, "columnspacing": 1.0}
    close["handlelength"] = LINES
    plain: Any = {"edgecolor": "none", "framealpha": 0.8}  # formulas may pass behind it
    legend = axes.legend(handles=list(keys), loc="upper center", ncols=columns, fontsize=points, **close, **plain)
    figure = axes.get_figure(root=True)
    taken = legend.get_window_extent().height * POINTS / figure.dpi + EDGE * points  # type: ignore[union-attr]
    return float(min(taken / height, 0.8))


def _columns(labels: Sequence[str], width: float, points: float) -> tuple[int, list[str]]:
    """Return the fewest columns that minimise the legend's height, and the labels folded to their width."""
    parts = [width / count - (BESIDE + 2 * EDGE) * points for count in range(1, len(labels) + 1)]
    ways = [[fold(label, part, points) for label in labels] for part in parts if part >= NARROWEST * points]
    ways = ways or [[fold(label, NARROWEST * points, points) for label in labels]]
    columns = min(range(1, len(ways) + 1), key=lambda count: _height(count, ways[count - 1], points))
    return columns, ways[columns - 1]


def _height(columns: int, labels: Sequence[str], points: float) -> float:
    """Return the height of a legend in points."""
    entries = [(label.count("\n") + 1) * LINE + SPACE for label in labels]
    return points * max(float(column.sum()) for column in np.array_split(entries, columns))


def _raise_limits(shares: Mapping[Axes, float]) -> None:
    """Raise upper limits to make room above the data for legends with these shares of their axes' height."""
    for axes in shares:
        group = axes.get_shared_y_axes().get_siblings(axes)
        together = [shares[one] for one in group if one in shares]
        if axes is next(one for one in shares if one in group):  # once per shared scale
            scale = axes.yaxis.get_transform()
            low, high = scale.transform(axes.get_ylim())
            axes.set_ylim(top=float(scale.inverted().transform(low + (high - low) / (1 - max(together)))))


def _points(axes: Axes) -> tuple[float, float]:
    """Return width and height of the axes in points."""
    dpi = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    return float(axes.bbox.width) * POINTS / dpi, float(axes.bbox.height) * POINTS / dpi
