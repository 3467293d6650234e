"""Statistics of differences paired by seed: intervals, p-values, verdicts, and corrections for multiple comparisons."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy  # its parts load where they are used

from slth.weights import inits

ENOUGH = 5  # paired seeds that a conclusion needs
DRAWS = 10_000  # of the bootstrap
LEVEL = 0.05  # family-wise error rate of the corrected verdicts


def student(values: np.ndarray) -> tuple[float, float, float]:
    """Return (low, high, p) of the mean of values: Student's 95 % interval and two-sided p of mean 0.

    (-inf, inf, NaN) unless there are at least two values, all finite.
    """
    if not _have_interval(values):
        return -math.inf, math.inf, math.nan
    count, mean = len(values), float(np.mean(values))
    deviation = float(np.std(values, ddof=1)) / math.sqrt(count)
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * deviation
    p = 2 * float(scipy.stats.t.sf(abs(mean) / deviation, count - 1)) if deviation else float(mean == 0)
    return mean - half, mean + half, p


def _have_interval(values: np.ndarray) -> bool:
    return len(values) > 1 and bool(np.isfinite(values).all())


def compared(differences: "pd.Series[float]", seed: int) -> dict[str, Any]:
    """Return differences by seed, their mean, its 95 % intervals, the p of Student's paired t-test, and a verdict.

    difference_low and difference_high are percentiles of the bootstrap. These are too narrow for few seeds, so "better"
    and "worse" require ENOUGH seeds, and that Student's interval excludes 0 as well. The two-sided p is NaN for a
    single seed, or if a difference is NaN.
    """
    values = differences.to_numpy(dtype=float)
    count, mean = len(values), float(np.mean(values))
    low, high = bootstrap(values, seed)
    found = {"difference": mean, "difference_low": low, "difference_high": high}
    low, high, p = student(values)
    found |= {"student_low": low, "student_high": high, "p": p}
    verdict = "cannot tell"
    if count < ENOUGH:
        pass
    elif max(found["difference_high"], found["student_high"]) < 0:
        verdict = "better"
    elif min(found["difference_low"], found["student_low"]) > 0:
        verdict = "worse"
    return found | {"differences": values.tolist(), "verdict": verdict}


def correct(family: Mapping[str, dict[str, Any]]) -> None:
    """Add corrected p-values and verdicts to a family of comparisons, one per variant, and to those nested in them.

    p_corrected is that of :func:`holm`. verdict_corrected is "better" or "worse" if the verdict is and p_corrected is
    at most LEVEL. Without correction, a single verdict is wrong by chance once in 20 times, and one of nine about once
    in three.
    """
    for key in next(iter(family.values()), {}):
        if all(isinstance(found.get(key), dict) for found in family.values()):
            correct({name: found[key] for name, found in family.items()})
    if all("verdict" in found for found in family.values()):
        for found, p in zip(family.values(), holm([found["p"] for found in family.values()]), strict=True):
            found |= {"p_corrected": p, "verdict_corrected": found["verdict"] if p <= LEVEL else "cannot tell"}


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons; NaN counts as 1.

    The k-th smallest of m is multiplied by m - k + 1, and raised to at least those before it (Holm 1979, "A simple
    sequentially rejective multiple test procedure"). The family-wise error rate is at most a under any dependence.
    """
    values = np.nan_to_num(np.asarray(p, dtype=float), nan=1.0)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Return percentiles 2.5 and 97.5 of the means of DRAWS samples, drawn with replacement.

    (-inf, inf) unless there are at least two values, all finite.
    """
    if not _have_interval(values):
        return -math.inf, math.inf
    uniforms = inits.uniform((DRAWS, len(values)), 1.0, seed=seed, name="mixing/bootstrap").double().numpy()
    drawn = values[((uniforms + 1.0) / 2.0 * len(values)).astype(int)]
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
