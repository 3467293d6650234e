"""Sizes and layouts of figures. This module does not import matplotlib."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The size of a figure, lengths in inches."""

    panel: float  # width of a panel
    least: float  # least width of the figure
    height: float  # of a row of panels
    across: int  # most panels in a row
    points: float  # font size


SIZES = {
    "screen": Size(panel=5.2, least=6.5, height=4.0, across=2, points=9.5),
    "page": Size(panel=3.375, least=6.75, height=2.8, across=2, points=8),
    "column": Size(panel=3.25, least=3.25, height=2.4, across=1, points=7.5),
}
LOGS = ("", "x", "y", "xy")


@dataclass(frozen=True)
class Layout:
    """The layout of a new figure. (In the caller's axes, size and theme are the caller's.)

    Attributes:
        width: "screen", or a paper's "column" (3.25 in) or "page" (6.75 in).
        title: title of the whole figure. None: the figure's default.
        xlabel: label of the horizontal axes. None: the figure's default.
        ylabel: label of the vertical axes. None: the figure's default.
        log: the logarithmic axes, "", "x", "y" or "xy". None: the figure's default. It does not change axes with names
            for ticks, panels that show both scales, and axes with measured values below 0 (in figures of several runs
            also an x of 0).

    Raises:
        ValueError: for another width or log.
    """

    width: str = "screen"
    title: str | None = None
    xlabel: str | None = None
    ylabel: str | None = None
    log: str | None = None

    def __post_init__(self) -> None:
        if self.width not in SIZES:
            raise ValueError(f"width={self.width!r}: must be one of {', '.join(SIZES)}")
        if self.log not in (None, *LOGS):
            raise ValueError(f"log={self.log!r}: must be None or one of {', '.join(map(repr, LOGS))}")

    @property
    def size(self) -> Size:
        """The size in inches and points."""
        return SIZES[self.width]


SCREEN = Layout()
