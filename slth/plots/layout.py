"""Sizes of figures, without what it takes to draw one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Of a figure, in inches: the width of a panel, its own at least, the height of a row. Of its text, in points."""

    panel: float
    least: float
    height: float
    across: int  # panels side by side at most
    points: float


SIZES = {
    "screen": Size(panel=5.2, least=6.5, height=4.0, across=2, points=9.5),
    "page": Size(panel=3.375, least=6.75, height=2.8, across=2, points=8),
    "column": Size(panel=3.25, least=3.25, height=2.4, across=1, points=7.5),
}
LOGS = ("", "x", "y", "xy")


@dataclass(frozen=True)
class Layout:
    """How a figure of its own is laid out. (In axes of the caller's, size and theme are the caller's.)

    Attributes:
        width: "screen", or that of a paper's "column" (3.25 in) or "page" (6.75 in).
        title: of the whole figure; None: what the figure says itself.
        xlabel: of the horizontal axes; None: the figure's own.
        ylabel: of the vertical axes; None: the figure's own.
        log: the axes that are logarithmic, "", "x", "y" or "xy"; None: as the figure has them. Axes of names stay as
            they are, panels that show both scales too, and an axis with measured values below 0 (where runs are drawn
            together also with an x of 0).

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
        """In inches and points."""
        return SIZES[self.width]


SCREEN = Layout()
