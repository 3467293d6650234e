"""Nearest signed sums where the last vectors are an orthonormal basis, whose signs need no search.

Let the last d of N vectors in R^d be orthonormal, and let y be the residual of a target after the other vectors, in
coordinates of that basis. The best signs of the basis vectors are the signs of y, and the error is the sum of
(|y_j| - 1)^2. So all 2^N sums are searched in 2^(N - d) d steps: for 32 vectors in R^16 that is 2^16 sums, where
`slth.construct.nearest` has 2^32.

The other vectors are split into a head and a middle of at most 8 vectors. A loop runs over the head's sums, and all
sums of the middle are evaluated together. Only the `keep` most likely sums of the head are tried: those whose residual
has the highest density under the sums of middle and basis. This density assumes that the squared length of those sums
is gamma distributed, with its true mean and variance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from slth.construct.nearest import BoolArray, all_sums, check, keep_nearer, smallest
from slth.threads import in_parallel

MIDDLE = 8  # vectors whose sums are evaluated together
HEAD = 16  # most vectors before them: the head has up to 2^16 sums


def solve(vectors: npt.ArrayLike, targets: npt.ArrayLike, *, keep: int = 256, threads: int | None = None) -> BoolArray:
    """Find signs (P, N), True = plus, whose signed sum of vectors (P, N, d) is near targets (P, d), all in float32.

    The last d vectors of each problem must be orthonormal, which is not checked.

    Args:
        vectors: (P, N, d), with d <= N <= d + 24.
        targets: (P, d).
        keep: sums of the head to try, at least 1. With N <= d + 16 or keep >= 2^(N - d - 8) the result is the nearest
            sum up to float32 rounding.
        threads: None: the cores that this process may use. The result does not depend on it.

    Raises ValueError for other shapes, N or keep out of range, and values that are not finite.
    """
    vectors, targets = check(vectors, targets, keep)
    _, n, d = vectors.shape
    if not d <= n <= d + MIDDLE + HEAD:
        raise ValueError(
            f"{n} vectors in {d} dimensions: must be {d} to {d + MIDDLE + HEAD}, a base and what it follows"
        )
    signs = np.zeros(vectors.shape[:2], np.bool_)

    def piece(part: slice) -> None:
        _solve_rows(vectors[part], targets[part], keep, signs[part])

    in_parallel(piece, len(targets), threads)
    return signs


# Everything below runs in numba without the GIL, with no fused multiply-add and no reordering.


@njit(cache=True, nogil=True)
def _solve_rows(vectors, targets, keep, signs):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, n, d = vectors.shape
    split = max(0, n - d - MIDDLE)
    for row in range(count):
        base = vectors[row, n - d :]
        turned, target = _in_basis(vectors[row, : n - d], base), _in_basis(targets[row : row + 1], base)[0]
        head, head_codes = _head(turned[:split], target, _gamma_of_sums(turned[split:], d), keep)
        middle, _ = all_sums(turned[split:])
        i, j = _best(head, middle, target)
        for k in range(split):
            signs[row, k] = (head_codes[i] >> k) & 1
        for k in range(n - d - split):
            signs[row, split + k] = (j >> k) & 1
        for k in range(d):
            signs[row, n - d + k] = target[k] - head[k, i] - middle[k, j] > 0


@njit(cache=True, nogil=True)
def _in_basis(vectors, base):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Express vectors (n, d) in coordinates of a basis."""
    out = np.zeros(vectors.shape, np.float32)
    for i in range(len(vectors)):
        for k in range(len(base)):
            for axis in range(len(base)):
                out[i, k] += vectors[i, axis] * base[k, axis]
    return out


@njit(cache=True, nogil=True)
def _gamma_of_sums(middle, d):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return (mean, shape) of the gamma distribution for the squared length of the sums of middle and basis.

    In coordinates of the basis, its vectors are the axes. The mean is the sum of the squared lengths; the variance is
    four times the sum of the squared inner products of all pairs.
    """
    mean, variance = np.float64(d), 0.0
    for k in range(len(middle)):
        for axis in range(d):
            square = np.float64(middle[k, axis]) ** 2
            mean += square
            variance += 4.0 * square
        for other in range(k):
            product = 0.0
            for axis in range(d):
                product += np.float64(middle[k, axis]) * np.float64(middle[other, axis])
            variance += 4.0 * product * product
    return mean, mean * mean / max(variance, 1e-3 * mean * mean)


@njit(cache=True, nogil=True)
def _head(vectors, target, following, keep):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return the sums (d, count) of the head, all or the `keep` most likely, and their codes."""
    sums, codes = all_sums(vectors)
    if sums.shape[1] <= keep:
        return sums, codes
    mean, shape = following
    left = np.zeros(sums.shape[1], np.float32)
    for axis in range(len(target)):
        for i in range(left.size):
            rest = target[axis] - sums[axis, i]
            left[i] += rest * rest
    slope, excess = np.float32(shape / mean), np.float32(shape - 0.5 * len(target))
    for i in range(left.size):
        left[i] = slope * left[i] - excess * np.log(max(left[i], np.float32(1e-6)))
    chosen = smallest(left, keep)
    few = np.empty((len(target), keep), np.float32)
    for at in range(keep):
        for axis in range(len(target)):
            few[axis, at] = sums[axis, chosen[at]]
    return few, chosen


@njit(cache=True, nogil=True)
def _best(head, middle, target):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Find the sums of head and middle with the least error; ties go to the lowest index of head, then of middle."""
    count = middle.shape[1]
    error, least, arg = np.empty(count, np.float32), np.full(count, np.inf, np.float32), np.zeros(count, np.int32)
    one = np.float32(1.0)
    for i in range(head.shape[1]):
        error[:] = 0.0
        for axis in range(len(target)):
            rest, sums = target[axis] - head[axis, i], middle[axis]
            for j in range(count):
                beyond = abs(rest - sums[j]) - one
                error[j] += beyond * beyond
        keep_nearer(error, np.int32(i), least, arg)
    best = np.argmin(least)
    return np.int64(arg[best]), best
