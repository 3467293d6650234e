"""Exact subset sums, many at a time: which candidates add up to a number nearest to the target?

Meet in the middle (Horowitz & Sahni 1974): the sums of each half of the candidates, made in ascending order by merging,
then walks up one list and down the other. 2^(n/2) steps a problem instead of 2^n, float64 throughout. The last
candidate of each half is left out of its list: with or without each of them, four walks over lists of half the length
look for four targets, and a processor takes their steps side by side.

The answer is the minimum over all 2^n subsets of |sum - target| *as float64 computes it* when a subset is added up in
index order, the smallest mask (read as a binary number, candidate i is bit i) among equals. The walks themselves add in
another order, so whatever they find within rounding distance of the best is added up again in index order: the 64
nearest sums on either side, which is all there are unless candidates differ by more than a dozen orders of magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from slth.threads import in_parallel

#: Candidates that one exact search takes. 2^40 sums of size about 1 lie about 1e-12 apart; much beyond that float64
#: itself cannot tell sums apart, so the surplus only moves the target towards the middle of what these can reach.
MAX_EXACT = 40

NEAR = 64  # low sums looked at on either side of what a high sum leaves of the target
_BLOCK = 64  # steps of the walks between notes of where they are

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SubsetSums:
    """Solutions of P problems: masks (P, n) bool, sums (P,) float64 in index order, errors (P,) = |sums - targets|."""

    masks: BoolArray
    sums: FloatArray
    errors: FloatArray


def solve(candidates: npt.ArrayLike, targets: npt.ArrayLike, *, threads: int | None = None) -> SubsetSums:
    """The subset of each row of candidates (P, n) whose sum is nearest to its target (P,).

    Exact for n <= 40: the least |sum - target| over all 2^n subsets in float64, sums taken in index order, ties to
    the smallest mask read as a binary number with candidate i as bit i. For n > 40 the first 40 candidates are searched
    exactly and the surplus ones, taken greedily by size, first move the target towards the middle of their reach.

    Time grows as 2^(n/2), memory per thread likewise (15 MiB at n = 40). `threads` defaults to the cores this process
    may use; the result does not depend on it. Raises ValueError for other shapes, for values that are not finite or
    whose sums are not, and for threads < 1.
    """
    candidates = np.ascontiguousarray(candidates, dtype=np.float64)
    targets = np.ascontiguousarray(targets, dtype=np.float64)
    if candidates.ndim != 2 or targets.shape != candidates.shape[:1]:
        raise ValueError(
            f"candidates of shape {candidates.shape} and targets of shape {targets.shape}: must be (P, n) and (P,)"
        )
    for name, values in (("candidates", candidates), ("targets", targets)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} hold NaN or infinite values: all must be finite")
    with np.errstate(over="ignore"):
        reach = np.abs(candidates).sum(axis=1) + np.abs(targets)
    if not np.isfinite(8.0 * reach).all():
        raise ValueError("candidates and targets add up to more than float64 holds: sums must stay below 2e307")
    masks = np.zeros(candidates.shape, np.bool_)
    sums = np.empty(targets.shape)

    def piece(part: slice) -> None:
        _solve_rows(candidates[part], targets[part], masks[part], sums[part])

    in_parallel(piece, len(targets), threads)
    return SubsetSums(masks, sums, np.abs(sums - targets))


# Everything below runs in numba, without Python's lock.


class _Half(NamedTuple):
    """Half of the candidates, and the sums of all but the last of them."""

    values: FloatArray
    sums: FloatArray  # ascending, between -inf and inf
    masks: npt.NDArray[np.uint32]  # of the sums, without the bounds
    listed: int  # sums


class _Walk(NamedTuple):
    """With or without the last candidate of each half: what that leaves of the target, and what it adds."""

    target: float
    low_value: float  # to the low sums
    low_mask: np.uint32
    high_mask: np.uint32


@njit(cache=True, nogil=True)
def _solve_rows(candidates, targets, masks, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, n = candidates.shape
    core = min(n, MAX_EXACT)
    low_n = core // 2
    high_n = core - low_n
    low_sums, low_masks = np.empty(_count(low_n) + 2), np.empty(_count(low_n), np.uint32)
    high_sums, high_masks = np.empty(_count(high_n) + 2), np.empty(_count(high_n), np.uint32)
    spare, spare_masks = np.empty(_count(high_n)), np.empty(_count(high_n), np.uint32)
    for row in range(count):
        values, mask = candidates[row], masks[row]
        target = targets[row]
        if n > core:
            target = _spend_surplus(values, target, core, mask)
        lows = _sorted_sums(values[: max(0, low_n - 1)], low_sums[1:], low_masks, spare, spare_masks)
        lows = _drop_repeats(low_sums[1:], low_masks, lows)
        highs = _sorted_sums(values[low_n : max(low_n, core - 1)], high_sums[1:], high_masks, spare, spare_masks)
        low_sums[0] = high_sums[0] = -np.inf
        low_sums[lows + 1] = high_sums[highs + 1] = np.inf
        low = _Half(values[:low_n], low_sums, low_masks, lows)
        high = _Half(values[low_n:core], high_sums, high_masks, highs)
        best_low, best_high = _nearest_pair(low, high, target)
        for i in range(low_n):
            mask[i] = (best_low >> i) & 1
        for i in range(high_n):
            mask[low_n + i] = (best_high >> i) & 1
        total = 0.0
        for i in range(n):
            if mask[i]:
                total += values[i]
        sums[row] = total


@njit(cache=True, nogil=True)
def _count(n):  # type: ignore[no-untyped-def]  # pragma: no cover
    """How many sums of n candidates there are without the last one."""
    return 1 << max(0, n - 1)


@njit(cache=True, nogil=True)
def _spend_surplus(values, target, core, mask):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Take surplus candidates, largest first, where they bring the target nearer to the middle of the core's reach.

    Marks them in mask and returns what is left of the target.
    """
    middle = 0.0
    for i in range(core):
        middle += 0.5 * values[i]
    order = np.argsort(-np.abs(values[core:]), kind="mergesort")
    for k in order:
        value = values[core + k]
        if abs(target - value - middle) < abs(target - middle):
            mask[core + k] = True
            target -= value
    return target


@njit(cache=True, nogil=True)
def _sorted_sums(values, out, bits, spare, spare_masks):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write all 2^n sums of values (each added in index order) into out, ascending, and their masks into bits.

    Adding one candidate turns the sorted list L into the merge of L and L + c. Equal sums keep the smaller mask first.
    Returns 2^n.
    """
    out[0], bits[0] = 0.0, 0
    zero, one = np.uintp(0), np.uintp(1)
    size = 1
    for i in range(values.size):
        c, bit = values[i], np.uint32(1 << i)
        for k in range(size):
            spare[k], spare_masks[k] = out[k], bits[k]
        # Two independent merges, from below and from above. No branches, since what comes next cannot be predicted;
        # unsigned indices, which numba need not check for counting from the end.
        a, b = zero, zero
        p, q = np.uintp(size - 1), np.uintp(size - 1)
        top = np.uintp(2 * size - 1)
        for k in range(np.uintp(size)):
            without, with_c = spare[a], spare[b] + c
            bits_without, bits_with = spare_masks[a], spare_masks[b] | bit
            first = without <= with_c
            out[k] = without if first else with_c
            bits[k] = bits_without if first else bits_with
            step = one if first else zero
            a += step
            b += one - step
            without, with_c = spare[p], spare[q] + c
            bits_without, bits_with = spare_masks[p], spare_masks[q] | bit
            last = without <= with_c
            out[top - k] = with_c if last else without
            bits[top - k] = bits_with if last else bits_without
            step = one if last else zero
            q -= step
            p -= one - step
        size *= 2
    return size


@njit(cache=True, nogil=True)
def _drop_repeats(sums, bits, size):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Keep one of equal sums, that of the smallest mask, in place; return how many are left."""
    kept = 0
    for k in range(1, size):
        if sums[k] != sums[kept]:
            kept += 1
            sums[kept], bits[kept] = sums[k], bits[k]
        elif bits[k] < bits[kept]:
            bits[kept] = bits[k]
    return kept + 1


@njit(cache=True, nogil=True)
def _nearest_pair(low, high, target):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The masks (low, high) of the best subset.

    One run of all the walks finds how near each block of their steps comes to the target. Those blocks that come within
    rounding distance of the nearest, mostly one, are walked again, and their sums compared in index order.
    """
    reach = abs(target) + _size(low.values) + _size(high.values)
    core = low.values.size + high.values.size
    slack = 4.0 * core * 2.220446049250313e-16 * reach  # more than two orders of addition can differ by
    c, low_mask = _last(low.values)
    d, high_mask = _last(high.values)
    none = np.uint32(0)
    walks = (
        _Walk(target, 0.0, none, none),
        _Walk(target - c, c, low_mask, none),
        _Walk(target - d, 0.0, none, high_mask),
        _Walk(target - d - c, c, low_mask, high_mask),
    )
    steps = low.listed + high.listed
    blocks = (steps + _BLOCK - 1) // _BLOCK
    distances, starts = np.empty(blocks), np.empty((blocks, 4), np.uintp)
    zero = np.uintp(0)
    firsts = zero, zero, zero, zero
    for block in range(blocks):
        starts[block, 0], starts[block, 1], starts[block, 2], starts[block, 3] = firsts
        top, end = high.listed - block * _BLOCK, high.listed - min(steps, (block + 1) * _BLOCK)
        distances[block], firsts = _walk(low.sums, high.sums, walks, top, end, firsts)
    nearest = distances.min() + 2.0 * slack
    best = np.inf, none, none  # the error and the masks of the best subset
    for block in range(blocks):
        if distances[block] > nearest:
            continue
        top, end = high.listed - block * _BLOCK, high.listed - min(steps, (block + 1) * _BLOCK)
        for i in range(4):
            first = starts[block, i]
            for k in range(top, end, -1):
                after, distance = _step(low.sums, high.sums, walks[i].target, k, first)
                if after == first and distance <= nearest:
                    best = _compare(low, high, target, walks[i], first, np.uintp(k) + first, slack, best)
                first = after
    return best[1], best[2]


@njit(cache=True, nogil=True)
def _size(values):  # type: ignore[no-untyped-def]  # pragma: no cover
    total = 0.0
    for value in values:
        total += abs(value)
    return total


@njit(cache=True, nogil=True)
def _last(values):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The last candidate and its mask; 0 and none where there is none."""
    return (values[values.size - 1] if values.size else 0.0), np.uint32((1 << values.size) >> 1)


@njit(cache=True, nogil=True)
def _walk(low, high, walks, top, end, firsts):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Take the four walks on while top falls to end: the least distance, and where they are then.

    Their steps do not wait for one another, and there are no branches, since where a walk goes cannot be predicted.
    """
    a, b, c, d = firsts
    least = np.inf
    for k in range(top, end, -1):
        a, from_a = _step(low, high, walks[0].target, k, a)
        b, from_b = _step(low, high, walks[1].target, k, b)
        c, from_c = _step(low, high, walks[2].target, k, c)
        d, from_d = _step(low, high, walks[3].target, k, d)
        from_a = from_a if from_a < from_b else from_b
        from_c = from_c if from_c < from_d else from_d
        from_a = from_a if from_a < from_c else from_c
        least = from_a if from_a < least else least
    return least, (a, b, c, d)


@njit(cache=True, nogil=True)
def _step(low, high, target, top, first):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Where a walk goes on, and how near it is to the target here.

    The walk is at the high sum top + first; first is the last low sum known to be smaller than what that leaves of the
    target. If the next low sum is smaller, too, it goes up to that one, else down to the next high sum: then first
    stays, and top, which falls by one each step, moves it. Unsigned indices, which numba need not check.
    """
    rest = target - high[np.uintp(top) + first]
    below, above = rest - low[first], low[first + np.uintp(1)] - rest
    after = first + np.uintp(above < 0.0)
    above = abs(above)
    return after, below if below < above else above


@njit(cache=True, nogil=True)
def _compare(low, high, target, walk, first, at, slack, best):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The best so far, or what is better of one high sum with the low sums on either side of what it leaves."""
    error, low_mask, high_mask = best
    rest, high_here = walk.target - high.sums[at], high.masks[at - np.uintp(1)] | walk.high_mask
    for direction in (-1, 1):
        k = np.int64(first) if direction < 0 else np.int64(first) + 1
        for _ in range(NEAR):
            if k < 1 or k > low.listed or abs(low.sums[k] - rest) > error + slack:
                break
            here = _index_order_error(high.values, target, low.sums[k] + walk.low_value, high_here)
            low_here = low.masks[k - 1] | walk.low_mask
            if here < error or (here == error and _precedes(low_here, high_here, low_mask, high_mask)):
                error, low_mask, high_mask = here, low_here, high_here
            k += direction
    return error, low_mask, high_mask


@njit(cache=True, nogil=True)
def _index_order_error(high_values, target, low_sum, high_mask):  # type: ignore[no-untyped-def]  # pragma: no cover
    total = low_sum
    for i in range(high_values.size):
        if (high_mask >> i) & 1:
            total += high_values[i]
    return abs(total - target)


@njit(cache=True, nogil=True)
def _precedes(low_a, high_a, low_b, high_b):  # type: ignore[no-untyped-def]  # pragma: no cover
    return high_a < high_b or (high_a == high_b and low_a < low_b)
