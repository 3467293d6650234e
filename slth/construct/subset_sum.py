"""Exact subset sums for many problems at a time: find the candidates whose sum is nearest to the target.

The search meets in the middle (Horowitz & Sahni 1974): the sums of each half of the candidates are listed in ascending
order by merging, then two pointers walk up one list and down the other. This takes 2^(n/2) steps per problem instead of
2^n, all in float64. The last candidate of each half is left out of its list. With and without each of these two
candidates, there are four walks over lists of half the length, which a processor executes in parallel.

The result minimises |sum - target| over all 2^n subsets, *as float64 computes it* when a subset is added up in index
order; ties go to the smallest mask, read as a binary number with candidate i as bit i. The walks add in another order,
so sums within rounding distance of the best are added up again in index order: the 64 nearest on either side, which
suffices unless candidates differ by more than a dozen orders of magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from slth.threads import in_parallel

#: Most candidates of an exact search. 2^40 sums of size about 1 lie about 1e-12 apart; with many more float64 cannot
#: distinguish the sums. So further candidates only move the target towards the middle of the reach of these.
MAX_EXACT = 40

NEAR = 64  # low sums to compare on either side of the target minus a high sum
_BLOCK = 64  # steps of the walks between saved positions

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SubsetSums:
    """Solutions of P problems: masks (P, n) bool, sums (P,) float64 in index order, errors (P,) = |sums - targets|."""

    masks: BoolArray
    sums: FloatArray
    errors: FloatArray


def solve(candidates: npt.ArrayLike, targets: npt.ArrayLike, *, threads: int | None = None) -> SubsetSums:
    """Find the subset of each row of candidates (P, n) whose sum is nearest to its target (P,).

    Exact for n <= 40: the result has the least |sum - target| over all 2^n subsets in float64, with sums in index order
    and ties to the smallest mask, read as a binary number with candidate i as bit i. For n > 40 the other candidates
    are first taken greedily by size to move the target towards the middle of the reach of the first 40, which are then
    searched exactly.

    Time grows as 2^(n/2), as does memory per thread (15 MiB at n = 40). `threads` defaults to the cores that this
    process may use; the result does not depend on it. Raises ValueError for other shapes, for values or sums that are
    not finite, and for threads < 1.
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


# Everything below runs in numba without the GIL.


class _Half(NamedTuple):
    """Half of the candidates, and the sums of all of them but the last."""

    values: FloatArray
    sums: FloatArray  # ascending, with -inf in front and inf behind
    masks: npt.NDArray[np.uint32]  # of the sums, without -inf and inf
    listed: int  # the number of sums


class _Walk(NamedTuple):
    """One of the four walks, with or without the last candidate of each half.

    target: the target minus these candidates; the other fields are the contribution of these candidates.
    """

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
            target = _take_surplus(values, target, core, mask)
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
    """Return the number of sums of n candidates without the last one."""
    return 1 << max(0, n - 1)


@njit(cache=True, nogil=True)
def _take_surplus(values, target, core, mask):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Take surplus candidates, largest first, if they bring the target nearer to the middle of the core's reach.

    Sets them in mask and returns the rest of the target.
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
        # Two independent merges, from below and from above, without branches, since they could not be predicted.
        # Indices are unsigned, so numba need not handle negative ones.
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
    """Keep one of equal sums, the one with the smallest mask, in place; return how many are left."""
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
    """Return the masks (low, high) of the best subset.

    A first pass of all walks finds the least distance to the target in each block of steps. Blocks within rounding
    distance of the least, usually one, are walked again, and their sums are compared in index order.
    """
    reach = abs(target) + _size(low.values) + _size(high.values)
    core = low.values.size + high.values.size
    slack = 4.0 * core * 2.220446049250313e-16 * reach  # above the difference between two orders of addition
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
    """Return the last candidate and its mask; 0 and no bits if there is none."""
    return (values[values.size - 1] if values.size else 0.0), np.uint32((1 << values.size) >> 1)


@njit(cache=True, nogil=True)
def _walk(low, high, walks, top, end, firsts):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Advance the four walks while top falls to end; return the least distance and their positions at the end.

    Their steps are independent of one another, and there are no branches, since they could not be predicted.
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
    """Return a walk's next position, and its distance to the target at this one.

    The walk is at the high sum top + first, where first is the last low sum known to be smaller than the target minus
    that high sum. If the next low sum is smaller too, the walk goes up to it, else down to the next high sum: first
    then stays, and top falls by one in each step. Indices are unsigned, so numba need not handle negative ones.
    """
    rest = target - high[np.uintp(top) + first]
    below, above = rest - low[first], low[first + np.uintp(1)] - rest
    after = first + np.uintp(above < 0.0)
    above = abs(above)
    return after, below if below < above else above


@njit(cache=True, nogil=True)
def _compare(low, high, target, walk, first, at, slack, best):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return the better of best and of one high sum with the low sums on either side of the target minus it."""
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
