"""The panels of a figure, and what is fitted to them once all is drawn: labels at line ends, legend, titles, ticks.

    with panels(2, axes, layout) as page:
        left, right = page.axes
        ...
        page.name(right, "ours", look, line)
        page.legend([key("median", kind=MEDIAN)])
    return page.axes

A figure of its own has the size and theme of its layout, its legend below the panels. In axes of the caller's, theme
and size are the caller's; the legend stands in the last of them, where `seaborn.move_legend` moves it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import GREY, MEDIAN, Kind, Look, key, properties
from slth.plots.marks import ZERO, Decimal
from slth.plots.scales import rescale
from slth.plots.texts import LINE, fold, spread, width_of
from slth.plots.theme import theme

POINTS = 72  # an inch
WIDEST = 0.33  # of a panel, that labels at line ends may take
ROOM = 0.3  # of a figure, that names of rows may take
NEAR = 0.9  # of the axes, from where on a line's end is joined to its label
GAP, KEY = 9.0, 7.0  # points between the axes and the labels' markers, and from there to the labels
END = "end of a line"


@dataclass(frozen=True)
class End:
    """A label at the end of a line: a line of its own over the whole axes where it has no x."""

    axes: Axes
    text: str
    at: tuple[float | None, float]
    look: Look
    kind: Kind


@dataclass
class Page:
    """The axes of a figure, and what is still to be placed."""

    axes: list[Axes]
    layout: Layout | None  # None: axes of the caller's
    heading: str = ""
    ends: list[End] = field(default_factory=list)
    keys: list[Artist] = field(default_factory=list)
    needed: dict[Axes, float] = field(default_factory=dict)  # heights of axes in points, at least
    fixed: list[tuple[Axes, str]] = field(default_factory=list)  # axes, "x" or "y", whose scale no layout changes

    @property
    def figure(self) -> Figure:
        """The one that the axes are in."""
        return self.axes[0].get_figure(root=True)  # type: ignore[return-value]

    def name(self, axes: Axes, text: str, look: Look, line: "pd.Series[float]", kind: Kind = MEDIAN) -> None:
        """Label a line at its end, or in the legend where there is no room."""
        shown = line[line.notna() & (line.abs() < math.inf)]
        if len(shown):
            y = max(float(shown.iloc[-1]), ZERO) if axes.get_yscale() == "log" else float(shown.iloc[-1])
            self.ends.append(End(axes, text, (float(shown.index[-1]), y), look, kind))

    def level(self, axes: Axes, text: str, y: float, kind: Kind) -> None:
        """A horizontal line, labelled at the right."""
        axes.axhline(y, color=GREY, linewidth=1, linestyle=kind["linestyle"])
        self.ends.append(End(axes, text, (None, y), Look(GREY, ""), kind))

    def rows(self, axes: Axes, names: Sequence[str]) -> None:
        """Name lines 0, 1, ... of the vertical axis, from the top."""
        width, points = float(self.figure.get_size_inches()[0]) * POINTS, _label_points()
        folded = [fold(name, ROOM * width, points) for name in names]
        axes.set_yticks(range(len(names)), folded)
        self.fixed.append((axes, "y"))
        axes.set_ylim(len(names) - 0.5, -0.5)
        most = max(name.count("\n") + 1 for name in folded)
        self.needed[axes] = len(names) * (most + 0.8) * points * LINE

    def columns(self, axes: Axes, names: Sequence[str]) -> None:
        """Name places 0, 1, ... of the horizontal axis."""
        axes.set_xticks(range(len(names)), names)
        self.fixed.append((axes, "x"))

    def rescale(self, log: str) -> None:
        """Make these axes logarithmic and all others linear, where that can be."""
        for axes, name in itertools.product(self.axes, ("x", "y")):
            if (axes, name) not in self.fixed:
                rescale(axes, name, log=name in log)

    def legend(self, keys: Sequence[Artist]) -> None:
        """Entries of the legend, below the panels."""
        self.keys += keys


@contextmanager
def panels(
    count: int,
    axes: Sequence[Axes] | None = None,
    layout: Layout = SCREEN,
    *,
    share_y: bool = False,
    height: float | None = None,
    stacked: bool = False,
) -> Iterator[Page]:
    """So many panels, in a figure of their own or in the caller's axes.

    Args:
        count: how many.
        axes: the caller's; None: a figure of its own.
        layout: of a figure of its own.
        share_y: whether its panels have one vertical scale.
        height: of its panels in inches, at least; None: the layout's.
        stacked: whether its panels stand below each other, and are no higher than their rows need.

    Raises:
        ValueError: if there are more or fewer axes than panels.
    """
    if axes is not None:
        if len(axes) != count:
            raise ValueError(f"axes: {len(axes)} of them: must be {count}, one for each panel")
        page = Page(list(axes), None)
        yield page
        if page.heading and not page.axes[0].get_title():
            page.axes[0].set_title(page.heading)
        _place_legend(page, _place_ends(page, [panel.bbox.width for panel in page.axes]))
        return
    with theme(layout.size):
        page = Page(_stack(count, layout) if stacked else _grid(count, layout, share_y, height), layout)
        yield page
        _fit(page, layout)


def single(ax: Axes | None) -> list[Axes] | None:
    """The axes of a figure with one panel."""
    return None if ax is None else [ax]


def _grid(count: int, layout: Layout, share_y: bool, height: float | None) -> list[Axes]:
    size = layout.size
    across = min(count, size.across)
    down = math.ceil(count / across)
    figure = Figure(figsize=(max(size.least, size.panel * across), (height or size.height) * down))
    grid = figure.subplots(down, across, squeeze=False, sharey=share_y)
    for spare in grid.flat[count:]:
        spare.remove()
    return list(grid.flat[:count])


def _stack(count: int, layout: Layout) -> list[Axes]:
    width = 1.4 * layout.size.least if layout.width == "screen" else layout.size.least
    figure = Figure(figsize=(width, 1.6 * count))
    return list(figure.subplots(count, 1, squeeze=False)[:, 0])


def _fit(page: Page, layout: Layout) -> None:
    """Place what has a size of its own. The figure grows by its legend and by titles of several lines."""
    figure, size = page.figure, layout.size
    if layout.log is not None:
        page.rescale(layout.log)
    for axes in page.axes:
        for name in ("xlabel", "ylabel"):
            if getattr(axes, f"get_{name}")():
                axes.set(**{name: getattr(layout, name) or getattr(axes, f"get_{name}")()})
    width, height = (float(inches) for inches in figure.get_size_inches())
    if heading := layout.title if layout.title is not None else page.heading:
        title = figure.suptitle(fold(heading, 0.95 * POINTS * width, size.points), fontsize=size.points)
        height += (title.get_text().count("\n") + 1) * size.points * LINE / POINTS
    left_over = _place_ends(page, [size.panel * POINTS * 0.8] * len(page.axes))
    legend = _place_legend(page, left_over)
    if legend is not None:
        height += legend.get_window_extent().height / figure.dpi + 0.1
    figure.set_size_inches(width, height)
    figure.draw_without_rendering()
    added: dict[int, float] = {}  # points, by the row of panels
    for axes in page.axes:
        row = axes.get_subplotspec().rowspan.start  # type: ignore[union-attr]
        lines = _fold_labels(axes, size.points) * size.points * LINE
        added[row] = max(added.get(row, 0.0), lines + max(0.0, page.needed.get(axes, 0.0) - _height(axes)))
    if points := sum(added.values()):
        grid = page.axes[0].get_subplotspec().get_gridspec()  # type: ignore[union-attr]
        grid.set_height_ratios([_height(page.axes[row * grid.ncols]) + added[row] for row in range(grid.nrows)])
        figure.set_size_inches(width, height + points / POINTS)
        figure.draw_without_rendering()
    for axes in page.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _without_powers(axis)
            _thin(axis)
    _spread_ends(page)


def _fold_labels(axes: Axes, points: float) -> int:
    """Fold title and axis labels to the axes' size; returns how many lines that adds."""
    inches = axes.get_figure(root=True).dpi_scale_trans.inverted()  # type: ignore[union-attr]
    box = axes.bbox.transformed(inches)
    texts = [(axes.title, box.width), (axes.xaxis.label, box.width), (axes.yaxis.label, box.height)]
    added = 0
    for text, side in texts:
        before = text.get_text()
        text.set_text(fold(before, POINTS * side, points))
        added += text.get_text().count("\n") - before.count("\n")
    return added


def _place_legend(page: Page, named: Sequence[Artist]) -> Legend | None:
    """The legend, in as many columns as there is room for."""
    keys = {str(one.get_label()): one for one in (*named, *page.keys)}
    if not keys:
        return None
    if page.layout is None:
        return page.axes[-1].legend(handles=list(keys.values()), loc="best")
    figure, points = page.figure, page.layout.size.points - 1
    room = float(figure.get_size_inches()[0]) * POINTS
    beside = 4.2 * points  # line and gaps of an entry
    for label, one in keys.items():
        one.set_label(fold(label, room - 2 * beside, points))
    widest = max(width_of(str(one.get_label()), points) for one in keys.values()) + 2 * beside
    columns = max(1, min(len(keys), int(room / widest)))
    rows = math.ceil(len(keys) / columns)
    columns = math.ceil(len(keys) / rows)  # none of them almost empty
    return figure.legend(handles=list(keys.values()), loc="outside lower center", ncols=columns)


# ---------------------------------------------------------------- labels at line ends


def _place_ends(page: Page, widths: Sequence[float]) -> Sequence[Artist]:
    """Put the labels beside the axes; returns the legend's entries for the series where these have no room there."""
    points = _label_points()
    ends = [replace(end, text=fold(end.text, WIDEST * widths[page.axes.index(end.axes)], points)) for end in page.ends]
    crowded = [axes for axes in page.axes if not _fits(axes, [end for end in ends if end.axes is axes], points)]
    keys = [key(end.text, end.look, end.kind) for end in page.ends if end.at[0] is not None] if crowded else []
    for end in ends:
        if end.at[0] is None or not crowded:
            _label(end, points)
    _spread_ends(page)
    return keys


def _fits(axes: Axes, ends: Sequence[End], points: float) -> bool:
    """Whether labels have at most three lines each, and stand below each other within the axes."""
    lines = [end.text.count("\n") + 1 for end in ends]
    return max(lines, default=0) <= 3 and sum(lines) * points * LINE < _height(axes)


def _label(end: End, points: float) -> None:
    """The text with the series' marker before it, and a thin line from the series' end where that is near."""
    x, y = end.at
    axes = end.axes
    left, right = (
        float(edge) for edge in axes.transData.inverted().transform(axes.transAxes.transform([(NEAR, 0), (1, 0)]))[:, 0]
    )
    arrow = {
        "arrowstyle": "-",
        "color": end.look.color,
        "linewidth": 0.6,
        "relpos": (0, 0.5),
        "shrinkA": 1,
        "shrinkB": KEY,
    }
    axes.annotate(
        end.text,
        (1.0, y) if x is None else (x, y),
        xycoords=axes.get_yaxis_transform() if x is None else "data",
        xytext=(1.0, 0.5),
        textcoords="axes fraction",
        fontsize=points,
        color=GREY,
        va="center",
        arrowprops=arrow if x is None or left <= x <= right else None,
        annotation_clip=False,
        gid=END,
    )
    sample = Line2D([1.0], [0.5], transform=axes.transAxes, gid=END, **properties(end.look, end.kind))
    axes.add_artist(sample)
    sample.set_clip_on(False)


def _spread_ends(page: Page) -> None:
    """Move the labels apart, each as near to its line's end as can be."""
    for axes in page.axes:
        labels: list[Any] = [text for text in axes.texts if text.get_gid() == END]
        samples = [line for line in axes.lines if line.get_gid() == END]
        if not labels:
            continue
        height = _height(axes)
        width = height * axes.bbox.width / axes.bbox.height
        pixels = [axes.transData.transform((0.5, label.xy[1])) for label in labels]
        wanted = axes.transAxes.inverted().transform(pixels)[:, 1].clip(0.0, 1.0)
        heights = [(label.get_text().count("\n") + 1) * _label_points() * LINE / height for label in labels]
        for label, sample, place in zip(labels, samples, spread(list(wanted), heights), strict=True):
            label.set_position((1.0 + (GAP + KEY) / width, place))
            sample.set(xdata=[1.0 + GAP / width], ydata=[place])


def _height(axes: Axes) -> float:
    """Of the axes, in points."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float(figure.get_size_inches()[1] * POINTS * axes.get_position().height)


def _label_points() -> float:
    return float(matplotlib.rcParams["font.size"]) - 1


# ---------------------------------------------------------------- ticks


def _without_powers(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis that is shorter than from one power of ten to the next."""
    low, high = sorted(axis.get_view_interval())
    if getattr(axis.get_transform(), "base", None) == 10 and high < 10 * low:
        for which in ("major", "minor"):
            if isinstance(getattr(axis, f"get_{which}_formatter")(), LogFormatterSciNotation):
                getattr(axis, f"set_{which}_formatter")(Decimal())


def _thin(axis: Axis) -> None:
    """Leave out every second label, and again, until none overlaps the next; those of minor ticks go first."""
    low, high = sorted(axis.get_view_interval())
    while True:
        axis.get_majorticklabels()  # brings the ticks up to date
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
