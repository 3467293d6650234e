"""Nearest signed sums: find the signs that bring the sum of N vectors in R^d nearest to a target, for many targets.

The search meets in the middle, as in `slth.construct.subset_sum`. With u a sum of the first half of the vectors and v
one of the second, |t - u - v|^2 = |t - u|^2 + |v|^2 - 2 (t - u) v, so a loop over all pairs of u and v is one small
matrix product. Of a half with more than 8 vectors only the `keep` sums nearest to t / 2 are used, found among its own
two halves: where u + v is near t, u and v lie near t / 2 (exactly on average, for vectors of equal covariance).

With N <= 16 the result is the nearest of all 2^N sums in float32, with ties to the smallest code, read as a binary
number whose bit k is set where vector k is added. The loops use no fused multiply-add and no reordering, so that signs
do not depend on the machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from slth.numbers import as_int
from slth.threads import in_parallel

MOST = 40  # most vectors; a quarter of them has 2^10 sums
WHOLE = 8  # most vectors of a half whose sums are all used
_LANES = 4  # coordinates per pass of the loops, padded with 0
_BINS = 1024

SingleArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


def solve(vectors: npt.ArrayLike, targets: npt.ArrayLike, *, keep: int = 512, threads: int | None = None) -> BoolArray:
    """Find signs (P, N), True = plus, whose signed sum of vectors (P, N, d) is near targets (P, d), all in float32.

    Args:
        vectors: (P, N, d), with 1 <= N <= 40.
        targets: (P, d).
        keep: sums of each half to try, at least 1. With N <= 16 or keep >= 2^(N/2) the result is exact.
        threads: None: the cores that this process may use. The result does not depend on it.

    Raises ValueError for other shapes, N or keep out of range, and values that are not finite or too large to square.
    """
    vectors, targets = check(vectors, targets, keep)
    if vectors.shape[1] > MOST:
        raise ValueError(f"{vectors.shape[1]} vectors: must be {MOST} at most")
    empty = -vectors.shape[2] % _LANES
    vectors = np.pad(vectors, ((0, 0), (0, 0), (0, empty)))
    targets = np.pad(targets, ((0, 0), (0, empty)))
    signs = np.zeros(vectors.shape[:2], np.bool_)

    def piece(part: slice) -> None:
        _solve_rows(vectors[part], targets[part], keep, signs[part])

    in_parallel(piece, len(targets), threads)
    return signs


def check(vectors: npt.ArrayLike, targets: npt.ArrayLike, keep: int) -> tuple[SingleArray, SingleArray]:
    """Convert vectors and targets to float32. Raises ValueError as :func:`solve` does."""
    vectors, targets = np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(targets, np.float32)
    if vectors.ndim != 3 or targets.shape != (len(vectors), vectors.shape[2]) or not vectors.shape[1]:
        raise ValueError(f"vectors {vectors.shape} and targets {targets.shape}: must be (P, N, d) and (P, d)")
    as_int("keep", keep, 1)
    for name, values in (("vectors", vectors), ("targets", targets)):
        if not np.abs(values).max(initial=0.0) < 1e15:
            raise ValueError(f"{name}: must be finite, and below 1e15 for float32 to hold their squares")
    return vectors, targets


# Everything below runs in numba without the GIL. A list of sums is (d, count), with an int64 code for each sum.


@njit(cache=True, nogil=True)
def _solve_rows(vectors, targets, keep, signs):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, n, _ = vectors.shape
    low, half = n // 2, np.float32(0.5)
    for row in range(count):
        target = targets[row]
        first, first_codes = _nearest_sums(vectors[row, :low], half * target, keep)
        second, second_codes = _nearest_sums(vectors[row, low:], half * target, keep)
        i, j = _nearest_pair(first, second, target)
        code = first_codes[i] | (second_codes[j] << low)
        for k in range(n):
            signs[row, k] = (code >> k) & 1


@njit(cache=True, nogil=True)
def _nearest_sums(vectors, middle, keep):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return the sums of vectors, all or the `keep` nearest to middle."""
    n = len(vectors)
    if n <= WHOLE:
        return all_sums(vectors)
    low = n // 2
    first, first_codes = all_sums(vectors[:low])
    second, second_codes = all_sums(vectors[low:])
    distances = np.empty((first.shape[1], second.shape[1]), np.float32)
    sizes, rest = _sizes(second), np.empty(len(middle), np.float32)
    for i in range(first.shape[1]):
        _distances(first[:, i], second, sizes, middle, rest, distances[i])
    chosen = smallest(distances.reshape(-1), min(keep, distances.size))
    sums, codes = np.empty((len(middle), len(chosen)), np.float32), np.empty(len(chosen), np.int64)
    for at in range(len(chosen)):
        i, j = divmod(chosen[at], second.shape[1])
        codes[at] = first_codes[i] | (second_codes[j] << low)
        for k in range(len(middle)):
            sums[k, at] = first[k, i] + second[k, j]
    return sums, codes


@njit(cache=True, nogil=True)
def all_sums(vectors):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return all signed sums of vectors (n, d); bit k of a code is set where vector k is added."""
    n, d = vectors.shape
    sums = np.zeros((d, 1 << n), np.float32)
    for k in range(n):
        size = 1 << k
        for axis in range(d):
            step = vectors[k, axis]
            for i in range(size):
                sums[axis, size + i] = sums[axis, i] + step
                sums[axis, i] -= step
    return sums, np.arange(1 << n)


@njit(cache=True, nogil=True)
def _sizes(sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Compute the squared lengths of sums."""
    sizes = np.zeros(sums.shape[1], np.float32)
    for axis in range(len(sums)):
        for i in range(sums.shape[1]):
            sizes[i] += sums[axis, i] * sums[axis, i]
    return sizes


@njit(cache=True, nogil=True)
def _distances(u, sums, sizes, target, rest, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write |target - u - v|^2 for each v of sums into out; rest is a buffer for target - u."""
    base = np.float32(0.0)
    for axis in range(len(target)):
        left = target[axis] - u[axis]
        base += left * left
        rest[axis] = np.float32(-2.0) * left
    for i in range(out.size):
        out[i] = sizes[i] + base
    for axis in range(0, len(target), _LANES):
        a, b, c, d = rest[axis], rest[axis + 1], rest[axis + 2], rest[axis + 3]
        va, vb, vc, vd = sums[axis], sums[axis + 1], sums[axis + 2], sums[axis + 3]
        for i in range(out.size):
            out[i] += (a * va[i] + b * vb[i]) + (c * vc[i] + d * vd[i])


@njit(cache=True, nogil=True)
def _nearest_pair(first, second, target):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Find the pair of first and second with the sum nearest to target; ties go to the lowest first, then second."""
    count = second.shape[1]
    out, best, arg = np.empty(count, np.float32), np.full(count, np.inf, np.float32), np.zeros(count, np.int32)
    sizes, rest = _sizes(second), np.empty(len(target), np.float32)
    for i in range(first.shape[1]):
        _distances(first[:, i], second, sizes, target, rest, out)
        keep_nearer(out, np.int32(i), best, arg)
    least = np.argmin(best)
    return np.int64(arg[least]), np.int64(least)


@njit(cache=True, nogil=True)
def keep_nearer(errors, here, best, arg):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Update best with smaller errors, and arg with `here` at those places."""
    for j in range(errors.size):
        nearer = errors[j] < best[j]
        best[j] = errors[j] if nearer else best[j]
        arg[j] = here if nearer else arg[j]


@njit(cache=True, nogil=True)
def smallest(values, count):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return ascending indices of `count` of the smallest values; among those of the last bin, the first."""
    low, high = values.min(), values.max()
    factor = np.float32(_BINS - 1) / max(high - low, np.float32(1e-30))
    tally = np.zeros(_BINS, np.int64)
    for value in values:
        tally[np.int32((value - low) * factor)] += 1
    below, last = 0, 0
    while below + tally[last] < count:
        below += tally[last]
        last += 1
    room = count - below  # how many to take from the last bin
    where = np.empty(count, np.int64)
    size = 0
    for i in range(values.size):
        bin_ = np.int32((values[i] - low) * factor)
        if bin_ < last or (bin_ == last and room > 0):
            room -= bin_ == last
            where[size] = i
            size += 1
    return where
