"""The results of testing a statement: checks that must hold, and controls that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from scipy.stats import binomtest

Case = TypeVar("Case")

ROUNDING = 1e-9  # a ratio may exceed 1 by this much, due to float64, if a bound is attained
CONFIDENCE = 0.99  # of each one-sided Clopper-Pearson bound


@dataclass(frozen=True)
class Check:
    """A tested claim: ratio is the largest left side / right side over all cases, and must be <= 1."""

    name: str
    cases: int
    ratio: float

    @property
    def holds(self) -> bool:
        """Whether there were cases, and none had a ratio above 1."""
        return self.cases > 0 and self.ratio <= 1 + ROUNDING


@dataclass(frozen=True)
class Control:
    """A false variant of a claim (a smaller bound, a missing factor, a flipped mask), whose worst ratio must be > 1."""

    name: str
    ratio: float

    @property
    def fails(self) -> bool:
        """Whether the false claim was refuted, by a finite ratio (a right side of 0 would refute nothing)."""
        return math.isfinite(self.ratio) and self.ratio > 1 + ROUNDING


@dataclass(frozen=True)
class Statement:
    """One statement of the paper with its checks and controls."""

    name: str
    checks: tuple[Check, ...]
    controls: tuple[Control, ...]

    @property
    def cases(self) -> int:
        """The number of cases of all checks."""
        return sum(check.cases for check in self.checks)

    @property
    def ratio(self) -> float:
        """The worst ratio of all checks."""
        return max(check.ratio for check in self.checks)

    @property
    def failing(self) -> int:
        """The number of controls that fail, as they must."""
        return sum(control.fails for control in self.controls)

    @property
    def holds(self) -> bool:
        """Whether there is a check and a control, every check holds and every control fails."""
        tried = bool(self.checks) and bool(self.controls)
        return tried and all(check.holds for check in self.checks) and self.failing == len(self.controls)


def worst(found: Mapping[Case, float], bound: Callable[[Case], float]) -> float:
    """Return the largest ratio of the value found in each setting to its bound."""
    return max(left / bound(case) for case, left in found.items())


def failure_at_most(failures: int, draws: int) -> float:
    """Return the upper Clopper-Pearson bound on the probability of a failure, given `failures` in `draws`."""
    interval = binomtest(failures, draws, alternative="less").proportion_ci(CONFIDENCE)
    return float(interval.high)


def failure_at_least(failures: int, draws: int) -> float:
    """Return the lower Clopper-Pearson bound on the same probability."""
    interval = binomtest(failures, draws, alternative="greater").proportion_ci(CONFIDENCE)
    return float(interval.low)


def exists(name: str, ratios: list[float], epsilon: float) -> Check:
    """Check that a construction succeeds with probability >= 1 - epsilon.

    ratios: error / allowed error of each draw. The ratio of the check is the upper bound on the failure probability
    over epsilon.
    """
    failures = sum(not ratio <= 1 for ratio in ratios)
    label = f"{name}: {failures} of {len(ratios)} fail, worst {max(ratios):.1g}"
    return Check(label, len(ratios), failure_at_most(failures, len(ratios)) / epsilon)


def missing(name: str, ratios: list[float], epsilon: float) -> Control:
    """Make a control for :func:`exists`: the lower bound on the failure probability must exceed epsilon."""
    failures = sum(not ratio <= 1 for ratio in ratios)
    return Control(f"{name}: {failures} of {len(ratios)} fail", failure_at_least(failures, len(ratios)) / epsilon)
