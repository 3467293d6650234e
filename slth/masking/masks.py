"""How many of n weights a mask keeps: exactly floor(keep * n + 1/2), at least one; and schedules of keep.

The scores of largest magnitude are kept, with ties to the lowest index; `slth.kernels.Selector` finds the threshold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction

from slth.numbers import as_float


def as_keep(keep: float) -> float:
    """Convert keep to a plain number. Raises ValueError unless it is in (0, 1]."""
    return as_float("keep", keep, "(0, 1]", "the share of weights kept")


def count_kept(n: int, keep: float) -> int:
    """Return the number of n weights kept, floor(keep * n + 1/2), at least 1; keep counts as the decimal it prints as.

    >>> [count_kept(n, 0.9) for n in (1, 10, 100, 1000)]
    [1, 9, 90, 900]
    """
    return _rounded(n, as_keep(keep))


@functools.lru_cache(maxsize=4096)
def _rounded(n: int, keep: float) -> int:
    return max(1, math.floor(Fraction(str(keep)) * n + Fraction(1, 2)))


#: name -> function of progress in [0, 1]: the share of the way from keep = 1 to the final keep.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: progress,
    "cubic": lambda progress: 1.0 - (1.0 - progress) ** 3,  # Zhu & Gupta 2017
}


def scheduled_keep(keep: float, schedule: str, progress: float) -> float:
    """Return the keep at `progress` in [0, 1] of the search, from 1 down to `keep`, along a schedule in SCHEDULES.

    Raises ValueError for an unknown schedule or a keep outside (0, 1].
    """
    keep = as_keep(keep)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    ahead = 1.0 - SCHEDULES[schedule](min(max(progress, 0.0), 1.0))
    return min(1.0, keep * (1.0 - ahead) + ahead)
