"""What becomes of a statement: checks that must hold, and controls that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from scipy.stats import binomtest

Case = TypeVar("Case")

ROUNDING = 1e-9  # by which float64 may carry a ratio beyond 1 where a bound is attained
CONFIDENCE = 0.99  # of each one-sided Clopper-Pearson bound


@dataclass(frozen=True)
class Check:
    """A claim put to the test: in the worst of so many cases, left side / right side is ratio. It must be <= 1."""

    name: str
    cases: int
    ratio: float

    @property
    def holds(self) -> bool:
        """Whether there were cases, and none was above 1."""
        return self.cases > 0 and self.ratio <= 1 + ROUNDING


@dataclass(frozen=True)
class Control:
    """The same with something wrong: a bound cut, a factor dropped, a mask flipped. Its worst ratio must be > 1."""

    name: str
    ratio: float

    @property
    def fails(self) -> bool:
        """Whether the wrong claim was refuted, by a finite ratio (a right side of 0 would refute nothing)."""
        return math.isfinite(self.ratio) and self.ratio > 1 + ROUNDING


@dataclass(frozen=True)
class Statement:
    """One statement of the paper with all that was tried on it."""

    name: str
    checks: tuple[Check, ...]
    controls: tuple[Control, ...]

    @property
    def cases(self) -> int:
        """Cases of all checks."""
        return sum(check.cases for check in self.checks)

    @property
    def ratio(self) -> float:
        """The worst ratio of all checks."""
        return max(check.ratio for check in self.checks)

    @property
    def failing(self) -> int:
        """Controls that fail, as they must."""
        return sum(control.fails for control in self.controls)

    @property
    def holds(self) -> bool:
        """Whether there is a check and a control, every check holds and every control fails."""
        tried = bool(self.checks) and bool(self.controls)
        return tried and all(check.holds for check in self.checks) and self.failing == len(self.controls)


def worst(found: Mapping[Case, float], bound: Callable[[Case], float]) -> float:
    """The worst ratio of what was found in each setting to what bounds it there."""
    return max(left / bound(case) for case, left in found.items())


def failure_at_most(failures: int, draws: int) -> float:
    """Upper Clopper-Pearson bound on the probability of a failure that was seen so often in so many draws."""
    interval = binomtest(failures, draws, alternative="less").proportion_ci(CONFIDENCE)
    return float(interval.high)


def failure_at_least(failures: int, draws: int) -> float:
    """Lower Clopper-Pearson bound on the same."""
    interval = binomtest(failures, draws, alternative="greater").proportion_ci(CONFIDENCE)
    return float(interval.low)


def exists(name: str, ratios: list[float], epsilon: float) -> Check:
    """Check that a construction reaches its aim with probability >= 1 - epsilon.

    ratios: error / allowed error of each draw. The ratio of the check is the upper bound on the probability of a
    failure over epsilon.
    """
    failures = sum(not ratio <= 1 for ratio in ratios)
    told = f"{name}: {failures} of {len(ratios)} fail, worst {max(ratios):.1g}"
    return Check(told, len(ratios), failure_at_most(failures, len(ratios)) / epsilon)


def missing(name: str, ratios: list[float], epsilon: float) -> Control:
    """Control for :func:`exists`: the lower bound on the probability of a failure must exceed epsilon."""
    failures = sum(not ratio <= 1 for ratio in ratios)
    return Control(f"{name}: {failures} of {len(ratios)} fail", failure_at_least(failures, len(ratios)) / epsilon)
