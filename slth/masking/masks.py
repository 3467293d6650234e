"""How many scores become a mask: exactly floor(keep * n + 1/2) of n, and at least one, and along which schedule.

Kept are those of largest magnitude, ties going to the lowest index: `slth.kernels.Selector` finds where to cut them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction

from slth.numbers import as_float


def as_keep(keep: float) -> float:
    """Keep as a plain number. Raises ValueError unless it lies in (0, 1]."""
    return as_float("keep", keep, "(0, 1]", "the share of weights kept")


def count_kept(n: int, keep: float) -> int:
    """How many of n weights are kept: floor(keep * n + 1/2), at least 1; keep is taken as the decimal it prints as.

    >>> [count_kept(n, 0.9) for n in (1, 10, 100, 1000)]
    [1, 9, 90, 900]
    """
    return _rounded(n, as_keep(keep))


@functools.lru_cache(maxsize=4096)
def _rounded(n: int, keep: float) -> int:
    return max(1, math.floor(Fraction(str(keep)) * n + Fraction(1, 2)))


#: name -> share of the way from keeping everything to the final keep, as a function of progress in [0, 1].
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: progress,
    "cubic": lambda progress: 1.0 - (1.0 - progress) ** 3,  # Zhu & Gupta 2017
}


def scheduled_keep(keep: float, schedule: str, progress: float) -> float:
    """The keep at a share `progress` in [0, 1] of the search: from 1 down to keep, along a name of SCHEDULES."""
    keep = as_keep(keep)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    ahead = 1.0 - SCHEDULES[schedule](min(max(progress, 0.0), 1.0))
    return min(1.0, keep * (1.0 - ahead) + ahead)
