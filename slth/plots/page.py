"""The panels of a figure, and the labels at line ends, legend, titles and ticks that are placed after drawing.

    with panels(2, axes, layout) as page:
        left, right = page.axes
        ...
        page.name(right, "ours", look, line)
        page.legend([key("median", kind=MEDIAN)])
    return page.axes

A new figure has the size and theme of its layout, and its legend is below the panels. In the caller's axes, theme and
size are the caller's, and everything is placed within them (`slth.plots.callers`).
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
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from slth.plots.callers import fit_in
from slth.plots.fitting import POINTS, fold_labels, tidy_ticks
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import GREY, MEDIAN, Kind, Look, key, properties
from slth.plots.marks import ZERO
from slth.plots.scales import rescale
from slth.plots.texts import LINE, fold, spread, width_of
from slth.plots.theme import theme

WIDEST = 0.33  # most of a panel's width for labels at line ends
ROOM = 0.3  # most of a figure's width for row labels
NEAR = 0.9  # share of the axes' width beyond which a line's end is joined to its label
GAP, KEY = 9.0, 7.0  # points from the axes to the labels' markers, and from there to the labels
END = "end of a line"


@dataclass(frozen=True)
class End:
    """A label at the end of a line; without an x, of a horizontal line over the whole axes."""

    axes: Axes
    text: str
    at: tuple[float | None, float]
    look: Look
    kind: Kind

    @property
    def said(self) -> str:
        """The text in a legend; for a horizontal line it includes its height."""
        return self.text if self.at[0] is not None else f"{self.text} ({self.at[1]:.4g})"


@dataclass
class Page:
    """The axes of a figure, and the labels and legend entries to place."""

    axes: list[Axes]
    layout: Layout | None  # None: the caller's axes
    heading: str = ""
    ends: list[End] = field(default_factory=list)
    keys: list[tuple[Axes | None, Artist]] = field(default_factory=list)  # with their panel; None: all panels
    needed: dict[Axes, float] = field(default_factory=dict)  # least heights of axes in points
    fixed: list[tuple[Axes, str]] = field(default_factory=list)  # axes and "x" or "y": scales that layouts keep

    @property
    def figure(self) -> Figure:
        """The figure of the axes."""
        return self.axes[0].get_figure(root=True)  # type: ignore[return-value]

    def name(self, axes: Axes, text: str, look: Look, line: "pd.Series[float]", kind: Kind = MEDIAN) -> None:
        """Label a line at its end, or in the legend if there is no room."""
        shown = line[line.notna() & (line.abs() < math.inf)]
        if len(shown):
            y = max(float(shown.iloc[-1]), ZERO) if axes.get_yscale() == "log" else float(shown.iloc[-1])
            self.ends.append(End(axes, text, (float(shown.index[-1]), y), look, kind))

    def level(self, axes: Axes, text: str, y: float, kind: Kind) -> None:
        """Draw a horizontal line with a label at the right."""
        axes.axhline(y, color=GREY, linewidth=1, linestyle=kind["linestyle"])
        self.ends.append(End(axes, text, (None, y), Look(GREY, ""), kind))

    def ylabel(self, text: str) -> None:
        """Label the vertical axis of the first panel of each row."""
        specs = [axes.get_subplotspec() for axes in self.axes]
        for n, (axes, spec) in enumerate(zip(self.axes, specs, strict=True)):
            if n == 0 or (spec is not None and spec.is_first_col()):
                axes.set_ylabel(text)

    def rows(self, axes: Axes, names: Sequence[str]) -> None:
        """Label rows 0, 1, ... of the vertical axis, from the top."""
        figure = self.figure
        width = figure.get_size_inches()[0] if self.layout else 1.5 * axes.bbox.width / figure.dpi
        width, points = float(width) * POINTS, _label_points()
        folded = [fold(name, ROOM * width, points) for name in names]
        axes.set_yticks(range(len(names)), folded)
        self.fixed.append((axes, "y"))
        axes.set_ylim(len(names) - 0.5, -0.5)
        most = max(name.count("\n") + 1 for name in folded)
        self.needed[axes] = len(names) * (most + 0.8) * points * LINE

    def columns(self, axes: Axes, names: Sequence[str]) -> None:
        """Label positions 0, 1, ... of the horizontal axis."""
        axes.set_xticks(range(len(names)), names)
        self.fixed.append((axes, "x"))

    def rescale(self, log: str) -> None:
        """Make these axes logarithmic and all others linear, if their values allow it."""
        for axes, name in itertools.product(self.axes, ("x", "y")):
            if (axes, name) not in self.fixed:
                rescale(axes, name, log=name in log)

    def legend(self, keys: Sequence[Artist], axes: Axes | None = None) -> None:
        """Add entries to the legend below the panels; in the caller's axes, to the legend of `axes`."""
        self.keys += [(axes, one) for one in keys]

    def keys_of_panels(self) -> dict[Axes, list[Artist]]:
        """Return all entries and labels by panel; a label of several panels belongs to the last."""
        ends = [(end.axes, key(end.said, end.look, end.kind)) for end in self.ends]
        last = {str(one.get_label()): (axes or self.axes[-1], one) for axes, one in (*ends, *self.keys)}
        return {panel: [one for axes, one in last.values() if axes is panel] for panel in self.axes}


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
    """Yield a page with `count` panels, in a new figure or in the caller's axes, and lay it out afterwards.

    Args:
        count: number of panels.
        axes: the caller's axes. None: a new figure.
        layout: layout of a new figure.
        share_y: whether the panels share one vertical scale.
        height: least height of a panel in inches. None: the layout's.
        stacked: whether panels are stacked in one column, each no higher than its rows need.

    Raises:
        ValueError: if there are more or fewer axes than panels.
    """
    if axes is not None:
        if len(axes) != count:
            raise ValueError(f"axes: {len(axes)} of them: must be {count}, one for each panel")
        page = Page(list(axes), None)
        yield page
        fit_in(page.axes, page.heading, page.keys_of_panels(), page.needed, share_y=share_y)
        return
    with theme(layout.size):
        page = Page(_stack(count, layout) if stacked else _grid(count, layout, share_y, height), layout)
        yield page
        _fit(page, layout)


def single(ax: Axes | None) -> list[Axes] | None:
    """Wrap the axes of a figure with one panel in a list; None stays None."""
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
    """Place labels, titles and legend. The figure grows by its legend and by titles of several lines."""
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
    legend = _place_legend(page, left_over, size.points - 1)
    if legend is not None:
        height += legend.get_window_extent().height / figure.dpi + 0.1
    figure.set_size_inches(width, height)
    figure.draw_without_rendering()
    added: dict[int, float] = {}  # points, by the row of panels
    for axes in page.axes:
        row = axes.get_subplotspec().rowspan.start  # type: ignore[union-attr]
        lines = fold_labels(axes) * size.points * LINE
        added[row] = max(added.get(row, 0.0), lines + max(0.0, page.needed.get(axes, 0.0) - _height(axes)))
    if points := sum(added.values()):
        grid = page.axes[0].get_subplotspec().get_gridspec()  # type: ignore[union-attr]
        grid.set_height_ratios([_height(page.axes[row * grid.ncols]) + added[row] for row in range(grid.nrows)])
        figure.set_size_inches(width, height + points / POINTS)
        figure.draw_without_rendering()
    for axes in page.axes:
        tidy_ticks(axes)
    _spread_ends(page)


def _place_legend(page: Page, named: Sequence[Artist], points: float) -> Legend | None:
    """Add the legend, in as many columns as there is room for."""
    keys = {str(one.get_label()): one for one in (*named, *(one for _, one in page.keys))}
    if not keys:
        return None
    figure = page.figure
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
    """Put the labels to the right of the axes; return legend entries for the series if there is no room."""
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
    """Tell whether labels have at most three lines each and fit below each other within the axes' height."""
    lines = [end.text.count("\n") + 1 for end in ends]
    return max(lines, default=0) <= 3 and sum(lines) * points * LINE < _height(axes)


def _label(end: End, points: float) -> None:
    """Write the text after the series' marker, with a thin line from the series' end if that is near."""
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
    """Move labels apart, each as near to its line's end as possible."""
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
    """Return the height of the axes in points."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float(figure.get_size_inches()[1] * POINTS * axes.get_position().height)


def _label_points() -> float:
    return float(matplotlib.rcParams["font.size"]) - 1
