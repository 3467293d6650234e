"""What is fitted to axes of the caller's: all stands within them, and what is written at them within the figure.

Series are named in a legend in the upper part of the axes, above the data, where `seaborn.move_legend` moves it. The
caller's layout engine makes room for labels; without one, and where labels would be cut off or lie on other axes, the
figure is laid out once.
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

SMALLEST = 5.0  # points of a legend's text
MOST = 0.4  # of the axes' height, that a legend takes before its text gets smaller
# in sizes of a legend's font: a line, with the gaps of its entry, the gap to the axes' edge, between entries, a label
LINES, BESIDE, EDGE, SPACE, NARROWEST = 2.8, 4.6, 0.6, 0.25, 6.0


def fit_in(
    panels: Sequence[Axes],
    heading: str,
    keys: Mapping[Axes, Sequence[Artist]],
    needed: Mapping[Axes, float],
    *,
    share_y: bool,
) -> None:
    """Place what has a size of its own.

    Args:
        panels: the axes, of one figure.
        heading: above the title of the first.
        keys: entries of each panel's legend.
        needed: heights in points that names of rows need, by the panel.
        share_y: whether all have one vertical scale.
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
    for _ in range(2 if engine else 0):  # folded labels take room from the axes
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
    """Whether all that is written at the panels is within the figure and on no other axes; True for free axes."""
    if any(axes.get_subplotspec() is None for axes in panels):
        return True  # which no engine moves
    boxes: dict[Axes, Any] = {axes: axes.get_tightbbox() for axes in figure.axes}
    page = figure.bbox
    return all(
        min(boxes[axes].x0 - page.x0, boxes[axes].y0 - page.y0, page.x1 - boxes[axes].x1, page.y1 - boxes[axes].y1) >= 0
        and not any(other is not axes and boxes[axes].overlaps(box) for other, box in boxes.items())
        for axes in panels
    )


def _place_legend(axes: Axes, keys: Sequence[Artist]) -> float:
    """A legend at the top, in the largest text that leaves room for data; returns its share of the axes' height."""
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
    """In how many columns the labels, folded to theirs, are lowest; the fewest of these, and the folded labels."""
    parts = [width / count - (BESIDE + 2 * EDGE) * points for count in range(1, len(labels) + 1)]
    ways = [[fold(label, part, points) for label in labels] for part in parts if part >= NARROWEST * points]
    ways = ways or [[fold(label, NARROWEST * points, points) for label in labels]]
    columns = min(range(1, len(ways) + 1), key=lambda count: _height(count, ways[count - 1], points))
    return columns, ways[columns - 1]


def _height(columns: int, labels: Sequence[str], points: float) -> float:
    """Of a legend, in points."""
    entries = [(label.count("\n") + 1) * LINE + SPACE for label in labels]
    return points * max(float(column.sum()) for column in np.array_split(entries, columns))


def _raise_limits(shares: Mapping[Axes, float]) -> None:
    """Leave room above the data for legends that take these shares of their axes' height."""
    for axes in shares:
        group = axes.get_shared_y_axes().get_siblings(axes)
        together = [shares[one] for one in group if one in shares]
        if axes is next(one for one in shares if one in group):  # once for axes of one scale
            scale = axes.yaxis.get_transform()
            low, high = scale.transform(axes.get_ylim())
            axes.set_ylim(top=float(scale.inverted().transform(low + (high - low) / (1 - max(together)))))


def _points(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes."""
    dpi = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    return float(axes.bbox.width) * POINTS / dpi, float(axes.bbox.height) * POINTS / dpi
