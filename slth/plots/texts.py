"""Measure and fold texts, and spread labels so that none overlaps another."""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from scipy.optimize import isotonic_regression

LINE = 1.3  # height of a line of text, in font sizes
WORD = re.compile(r"(?:\$[^$]*\$|[^\s$])+")  # a formula is one word


@lru_cache(maxsize=4096)
def width_of(text: str, points: float) -> float:
    """Return the width of a text's longest line in points; texts may contain formulas."""
    lines = [line for line in text.splitlines() if line.strip()]
    font = FontProperties(family="DejaVu Sans")
    paths = [TextPath((0, 0), line, size=points, prop=font) for line in lines]
    return max((float(path.get_extents().width) for path in paths), default=0.0)


def fold(text: str, width: float, points: float) -> str:
    """Fold a text into lines of at most `width` points, keeping its line breaks; longer words are cut."""
    return "\n".join(line for part in text.splitlines() for line in _lines(part, width, points))


def balance(text: str, width: float, points: float) -> str:
    """Fold a text as `fold` does, into the same number of lines, with lengths as even as possible."""
    folded = fold(text, width, points)
    least, lines = max((width_of(word, points) for word in WORD.findall(text)), default=0.0), folded.count("\n")
    while folded != text and (width := 0.95 * width) >= least:
        narrower = fold(text, width, points)
        if narrower.count("\n") > lines:
            break
        folded = narrower
    return folded


def _lines(text: str, width: float, points: float) -> list[str]:
    lines = [""]
    for word in WORD.findall(text):
        for piece in _pieces(word, width, points):
            joined = f"{lines[-1]} {piece}".strip()
            if width_of(joined, points) <= width or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(piece)
    return lines


def _pieces(word: str, width: float, points: float) -> list[str]:
    """Cut a word into pieces no wider than a line; formulas are not cut."""
    if "$" in word or width_of(word, points) <= width:
        return [word]
    letters = max(1, int(len(word) * width / width_of(word, points)))
    while letters > 1 and width_of(word[:letters], points) > width:
        letters -= 1
    return [word[:letters], *_pieces(word[letters:], width, points)]


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return centres in [0, 1] of labels with these heights, as near to wanted as possible without overlaps.

    Labels whose heights add up to more than 1 extend beyond the upper end.
    """
    order = np.argsort(wanted, kind="stable")
    high = np.asarray(heights, dtype=float)[order]
    steps = np.cumsum(high) - high / 2  # the centres of stacked labels
    free = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x
    centres = np.empty(len(order))
    centres[order] = np.clip(free, 0.0, max(0.0, 1.0 - high.sum())) + steps
    return [float(centre) for centre in centres]
