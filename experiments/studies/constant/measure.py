"""Measure how many candidates an entry needs for all entries of a target to be accurate, for constant.py.

A trial is a random pair of factors and a random d x d target. Entry (j, i) has n' candidates u_jk * v_jki, where the d
entries of input coordinate j share the block u_j, and each entry has its own values v. The trial succeeds at n' if
every entry has a subset sum within epsilon / d^2, which slth.construct.linear would find with hidden = d n'. For
|w| = 1 all patterns of signs are equally hard, since v is symmetric.

Confidence. The number of trials of a cell (d, epsilon, target) is fixed in advance. A trial is drawn once with
MAX_EXACT candidates per entry, of which the first n' are used. A trial that succeeds at n' also succeeds at n' + 1, so
the share of successes can only rise with n'. Therefore searching upwards needs no correction for multiple tests: to
call an n' below the true smallest one sufficient, the trials must already mislead at the n' just before the true one,
where the Clopper-Pearson interval errs on that side with a probability of at most 2.5 %. The same holds at the other
end. So with a confidence of 95 % per cell, the smallest n' is above the largest n' shown to fail and not above the
smallest shown to suffice. In between the trials are inconclusive.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy  # its parts load where they are used
import torch

from slth import theory
from slth.construct.subset_sum import MAX_EXACT, BoolArray, FloatArray, solve
from slth.experiments.lab import progress
from slth.threads import in_parallel
from slth.weights import inits

TARGETS = {"uniform": inits.uniform, "unit": inits.sign}
CONFIDENCE = 0.95  # of the two-sided intervals
AT_ONCE = 1 << 14  # entries of trials to draw at once


class Cell(NamedTuple):
    """A cell of the grid: the smallest n' with all entries of a d x d target accurate, with probability 1 - epsilon."""

    d: int
    epsilon: float
    target: str

    @property
    def tolerance(self) -> float:
        """The largest error of an entry."""
        return theory.lemma7_accuracy(self.d, self.d, self.epsilon)

    @property
    def log(self) -> float:
        """The natural logarithm that Lemma 7 multiplies by C."""
        return -math.log(self.tolerance)

    @property
    def first(self) -> int:
        """The last n' at which 2^n' sums are too few for one uniform entry with probability 1 - epsilon, or 1.

        The sums cover a share of at most 2^n' * tolerance of [-1, 1] within the tolerance.
        """
        return max(1, math.ceil(math.log2((1 - self.epsilon) / self.tolerance)) - 1)


@dataclass(frozen=True)
class Study:
    """The settings of the measurement: the cells, and the effort for the trials of each."""

    cells: list[Cell]
    effort: int
    seed: int

    def trials(self, cell: Cell) -> int:
        """Return the number of trials of a cell: fewer for a larger d, more for a smaller epsilon."""
        return math.ceil(self.effort / (cell.d * cell.epsilon))


# ---------------------------------------------------------------- trials


def measure(study: Study) -> pd.DataFrame:
    """Return one row per (d, epsilon, target, n_prime): the share of successful trials, its interval, and C."""
    tables = [rows_of(cell, least_of_trials(cell, study.trials(cell), study.seed)) for cell in study.cells]
    return pd.concat(tables, ignore_index=True)


def least_of_trials(cell: Cell, trials: int, seed: int) -> np.ndarray:
    """Return the least n' at which each trial succeeds, or MAX_EXACT + 1: int (trials,)."""
    least = np.empty(trials, np.int64)
    at_once = max(1, AT_ONCE // cell.d**2)
    parts = [slice(start, min(start + at_once, trials)) for start in range(0, trials, at_once)]
    with progress(None, f"d={cell.d} epsilon={cell.epsilon} target={cell.target}", total=trials) as bar:

        def work(which: slice) -> None:
            for number in range(which.start, which.stop):
                part = parts[number]
                first, second, target = draw(cell, part.stop - part.start, seed=seed, stream=number)
                candidates = np.swapaxes(first[..., None] * second, -1, -2)  # (trials, d_in, d_out, MAX_EXACT)
                least[part] = least_candidates(candidates, target, cell.tolerance, cell.first)
                bar.update(part.stop - part.start)

        in_parallel(work, len(parts))
    return least


def draw(cell: Cell, trials: int, *, seed: int, stream: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw random u (trials, d_in, n'), v (trials, d_in, n', d_out) and targets (trials, d_in, d_out), float64.

    n' = MAX_EXACT.
    """
    d = cell.d

    def numbers(distribution: Any, shape: tuple[int, ...], name: str) -> FloatArray:
        name = f"constant/{d}/{cell.epsilon}/{cell.target}/{name}"
        drawn: torch.Tensor = distribution((trials, *shape), 1.0, seed=seed, name=name, stream=stream)
        return drawn.numpy().astype(np.float64)

    return (
        numbers(inits.uniform, (d, MAX_EXACT), "first"),
        numbers(inits.uniform, (d, MAX_EXACT, d), "second"),
        numbers(TARGETS[cell.target], (d, d), "target"),
    )


def least_candidates(candidates: FloatArray, target: FloatArray, tolerance: float, first: int) -> np.ndarray:
    """Return for each trial the least n' >= first with all entries within tolerance, or n + 1: int (trials,).

    candidates: (trials, ..., n), of which the first n' are used; target: (trials, ...).
    """
    n = candidates.shape[-1]
    rows, wanted = candidates.reshape(-1, n), target.reshape(-1)
    least = np.full(wanted.shape, first)
    unmet = np.arange(wanted.size)
    for n_prime in range(first, n + 1):
        unmet = unmet[~met(rows[unmet, :n_prime], wanted[unmet], tolerance)]
        least[unmet] = n_prime + 1
        if not unmet.size:
            break
    of_trials: np.ndarray = least.reshape(len(target), -1).max(axis=1)
    return of_trials


def met(candidates: FloatArray, targets: FloatArray, tolerance: float) -> BoolArray:
    """Tell for each row of candidates (P, n) whether a subset sum is within tolerance of its target (P,): bool (P,).

    Any subset sum is the largest one minus (or the smallest one plus) the sizes |c| of the candidates that differ. So
    the question is whether some of the sizes add up to the target's distance from the nearer end, and larger sizes can
    be ignored. This is fast for hard entries, which are near an end or beyond it and have few such sizes.
    """
    sizes = np.sort(np.abs(candidates), axis=1)
    from_top = np.maximum(candidates, 0).sum(axis=1) - targets
    from_bottom = targets - np.minimum(candidates, 0).sum(axis=1)
    distance = np.minimum(from_top, from_bottom)  # (P,), negative beyond the end
    useful = (sizes <= (distance + tolerance)[:, None]).sum(axis=1)
    found = np.empty(targets.shape, np.bool_)
    for count in np.unique(useful):
        which = useful == count
        found[which] = solve(sizes[which, :count], distance[which], threads=1).errors <= tolerance
    return found


# ---------------------------------------------------------------- results


def rows_of(cell: Cell, least: np.ndarray) -> pd.DataFrame:
    """Return one row per n', from the information limit to where all trials succeed; `least` (trials,) as above.

    verdict: whether the interval of the success probability is below 1 - epsilon (fails), not below it (suffices), or
    around it (open). The following are the same in all rows. decided: no n' is open between the last that fails and the
    first that suffices. c_low and c_high: these two n' over the logarithm (0 and NaN if there is none).
    """
    n_prime = np.arange(cell.first, min(least.max(), MAX_EXACT) + 1)
    succeeded = (least[:, None] <= n_prime).sum(axis=0)
    intervals = [scipy.stats.binomtest(int(k), len(least)).proportion_ci(CONFIDENCE, method="exact") for k in succeeded]
    low, high = (np.array(bound) for bound in zip(*intervals, strict=True))
    fails, suffices = high < 1 - cell.epsilon, low >= 1 - cell.epsilon
    largest_fail = n_prime[fails].max(initial=0)
    smallest_success = n_prime[suffices][0] if suffices.any() else np.nan
    return pd.DataFrame(
        {
            "d": cell.d,
            "epsilon": cell.epsilon,
            "target": cell.target,
            "n_prime": n_prime,
            "success": succeeded / len(least),
            "trials": len(least),
            "success_low": low,
            "success_high": high,
            "verdict": np.select([fails, suffices], ["fails", "suffices"], "open"),
            "decided": bool(smallest_success == largest_fail + 1),
            "c_low": largest_fail / cell.log,
            "c_high": smallest_success / cell.log,
        }
    )


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Return for each kind of target its cells, the C that suffices in all, and the line n' = intercept + slope log."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for (target, _, _), rows in table.groupby(["target", "d", "epsilon"], sort=False):
        cells.setdefault(str(target), []).append(_summary_of_cell(rows))
    return {
        "logarithm": "natural",
        "confidence": CONFIDENCE,
        "C": {target: np.max([cell["c_high"] for cell in found]) for target, found in cells.items()},
        "lines": {target: _line(found) for target, found in cells.items()},
        "cells": cells,
    }


def _summary_of_cell(rows: pd.DataFrame) -> dict[str, Any]:
    """Summarise the rows of one cell, with the largest n' shown to fail and the smallest shown to suffice, if any."""
    same = rows.iloc[0]
    cell = Cell(same["d"], same["epsilon"], same["target"])
    return {
        "d": cell.d,
        "epsilon": cell.epsilon,
        "log": cell.log,
        "trials": same["trials"],
        "n_prime_fails": max(rows["n_prime"][rows["verdict"] == "fails"], default=None),
        "n_prime_suffices": min(rows["n_prime"][rows["verdict"] == "suffices"], default=None),
        "decided": same["decided"],
        "c_low": same["c_low"],
        "c_high": same["c_high"],
    }


def _line(cells: list[dict[str, Any]]) -> dict[str, float] | None:
    """Fit a line to the smallest n' shown to suffice by least squares; None for fewer than three."""
    known = [(cell["log"], cell["n_prime_suffices"]) for cell in cells if cell["n_prime_suffices"] is not None]
    if len({log for log, _ in known}) < 3:
        return None
    fit = scipy.stats.linregress([log for log, _ in known], [n_prime for _, n_prime in known])
    return {"slope": fit.slope, "intercept": fit.intercept}
