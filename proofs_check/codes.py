"""The random-code formula: the error of Gaussian blocks of weights coded by signed sums of random vectors.

Claim. Blocks of d weights N(0, 1), d >= 4, are coded by the nearest of the 2^N sums of +-c_k, k <= N, where N >= 2 d is
a multiple of d, the c_k are orthonormal in groups of d, and the sums' variance in a coordinate is 1 + 2/d. The mean
squared error of a weight is then `slth.theory.random_code` times 4^(-N/d), within 0.5 dB. The formula is derived for
independent Gaussian sums, which these are not, since N vectors give 2^N of them.
"""

from __future__ import annotations

import math

import numpy as np

from proofs_check import draws
from proofs_check.check import Check, Control, Statement
from slth import theory
from slth.construct import bases, nearest
from slth.weights import inits

ALLOWED = 0.5  # dB
GRID = {(4, 8): 4000, (4, 12): 4000, (6, 12): 4000, (8, 16): 4000, (8, 24): 1000, (12, 24): 2000, (16, 32): 1000}
LEAST = 600  # least number of cases: with fewer, the mean is uncertain by a tenth of ALLOWED or more


def check(share: float = 1.0) -> Statement:
    """Test the claim, with this share of the usual number of cases."""
    counts = {case: max(LEAST, draws.count(most, share)) for case, most in GRID.items()}
    errors = {case: _error(*case, count) for case, count in counts.items()}
    d, n = 8, 16
    of_one = errors[d, n] * 4.0 ** (n / d)
    return Statement(
        "Random codes: blocks of d weights, N bits each",
        tuple(
            Check(f"d={d}, N={n}", counts[d, n], _beyond(error * 4.0 ** (n / d), theory.random_code(d)))
            for (d, n), error in errors.items()
        ),
        (
            Control("the limit itself", _beyond(of_one, 1.0)),
            Control("the formula of blocks of half the size", _beyond(of_one, theory.random_code(d // 2))),
            Control("sums of the weights' variance times 1.6", _beyond(_of(d, n, 1.6**0.5), theory.random_code(d))),
            Control("sums of 0/1", _beyond(_of(d, n, subset=True), theory.random_code(d))),
            Control("vectors that are not orthogonal", _beyond(_of(d, n, orthogonal=False), theory.random_code(d))),
        ),
    )


def _of(d: int, n: int, scale: float = 1.0, *, subset: bool = False, orthogonal: bool = True) -> float:
    """Return the error over the limit for a false variant of the claim."""
    return _error(d, n, LEAST, scale, subset=subset, orthogonal=orthogonal) / theory.rate_limit(n / d)


def _error(d: int, n: int, cases: int, scale: float = 1.0, *, subset: bool = False, orthogonal: bool = True) -> float:
    """Compute the mean squared error of a weight; scale: of the sums, relative to the best."""
    targets = draws.normal(f"codes/{d}/{n}", cases, d).numpy()
    draw = inits.orthogonal if orthogonal else inits.normal
    vectors = draw((cases, n, d), 1.0 if orthogonal else d**-0.5, seed=0, name=f"proofs_check/codes/{d}/{n}").numpy()
    unit = scale * math.sqrt(theory.code_variance(d) * d / n) * (2.0 if subset else 1.0)
    middle = vectors.sum(1, dtype=np.float64) if subset else 0.0  # 0/1 sum = half of (this + signed sum)
    wanted = targets / unit * (2.0 if subset else 1.0) - middle
    solve = bases.solve if orthogonal else nearest.solve
    signs = solve(vectors, wanted)
    sums = np.einsum("pn,pnd->pd", np.where(signs, 1.0, -1.0), vectors)
    return float(np.square((sums - wanted) * unit / (2.0 if subset else 1.0)).mean())


def _beyond(one: float, other: float) -> float:
    """Return the decibels between two errors over the allowed ones."""
    return abs(10.0 * math.log10(one / other)) / ALLOWED
