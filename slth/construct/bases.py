"""Nearest signed sums of orthonormal bases: two halves where the second half needs no list.

Of N vectors in R^d let the last d be orthonormal. Whatever the others leave of a target, y in coordinates of that base,
the best signs of the base are those of y, and the error is the sum of (|y_j| - 1)^2. So all 2^N sums are searched in
2^(N - d) d steps: 2^16 for 32 vectors in R^16, where `slth.construct.nearest` has 2^32.

The other vectors are cut in two again: the head's sums are taken in turn, and the middle's, of at most 8 vectors, side
by side. Of a head's sums only the `keep` likeliest are taken: those where the density of what follows is highest at
what they leave, if its squared length is taken to be gamma distributed, with the mean and the variance that it has.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from slth.construct.nearest import BoolArray, all_sums, check, keep_nearer, smallest
from slth.threads import in_parallel

MIDDLE = 8  # vectors whose sums are taken side by side
HEAD = 16  # vectors in front of them, at most: 2^16 sums are made of each


def solve(vectors: npt.ArrayLike, targets: npt.ArrayLike, *, keep: int = 256, threads: int | None = None) -> BoolArray:
    """The signs (P, N), True = plus, whose sum of vectors (P, N, d) is near targets (P, d), each in float32.

    The last d vectors of each problem must be orthonormal, which is not checked. keep: sums of the head that are looked
    at; N <= d + 16, or keep >= 2^(N - d - 8), is exact up to float32's rounding. `threads` defaults to the cores this
    process may use; the result does not depend on it. Raises ValueError for other shapes, N outside [d, d + 24],
    keep < 1 and values that are not finite.
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


# Everything below runs in numba, without Python's lock; no fused multiply-add, no reordering.


@njit(cache=True, nogil=True)
def _solve_rows(vectors, targets, keep, signs):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, n, d = vectors.shape
    split = max(0, n - d - MIDDLE)
    for row in range(count):
        base = vectors[row, n - d :]
        turned, target = _turned(vectors[row, : n - d], base), _turned(targets[row : row + 1], base)[0]
        head, head_codes = _head(turned[:split], target, _following(turned[split:], d), keep)
        middle, _ = all_sums(turned[split:])
        i, j = _best(head, middle, target)
        for k in range(split):
            signs[row, k] = (head_codes[i] >> k) & 1
        for k in range(n - d - split):
            signs[row, split + k] = (j >> k) & 1
        for k in range(d):
            signs[row, n - d + k] = target[k] - head[k, i] - middle[k, j] > 0


@njit(cache=True, nogil=True)
def _turned(vectors, base):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Vectors (n, d) in coordinates of a base."""
    out = np.zeros(vectors.shape, np.float32)
    for i in range(len(vectors)):
        for k in range(len(base)):
            for axis in range(len(base)):
                out[i, k] += vectors[i, axis] * base[k, axis]
    return out


@njit(cache=True, nogil=True)
def _following(middle, d):  # type: ignore[no-untyped-def]  # pragma: no cover
    """(mean, shape) of the gamma distribution for the squared length of what middle and base add up to.

    In the base's coordinates its vectors are the axes. The mean is the sum of the squared lengths, the variance four
    times the squared products of all pairs.
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
    """Sums (d, count) of the head, all of them or the `keep` likeliest, and their codes."""
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
    """Which of head and middle leave the least after the base; ties go to the lowest of head, then of middle."""
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
