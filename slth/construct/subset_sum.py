"""Exact subset sums, many at a time: which candidates add up to a number nearest to the target?

Meet in the middle (Horowitz & Sahni 1974): all sums of each half of the candidates, made in ascending order by merging,
then one walk up the first list and down the second. 2^(n/2) steps a problem instead of 2^n, float64 throughout.

The answer is the minimum over all 2^n subsets of |sum - target| *as float64 computes it* when a subset is added up in
index order, the smallest mask (read as a binary number, candidate i is bit i) among equals. The walk itself adds in
another order, so whatever it finds within rounding distance of the best is added up again in index order: the 64
nearest sums on either side, which is all there are unless candidates differ by more than a dozen orders of magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from slth.threads import in_parallel

#: Candidates that one exact search takes. 2^40 sums of size about 1 lie about 1e-12 apart; much beyond that float64
#: itself cannot tell sums apart, so the surplus only moves the target towards the middle of what these can reach.
MAX_EXACT = 40

NEAR = 64  # sums of one half looked at on either side of what is wanted
_NOTED = 256  # high sums that are noted before they are looked at

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

    Time grows as 2^(n/2), memory per thread likewise (30 MiB at n = 40). `threads` defaults to the cores this process
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


@njit(cache=True, nogil=True)
def _solve_rows(candidates, targets, masks, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, n = candidates.shape
    core = min(n, MAX_EXACT)
    low_n = core // 2
    high_n = core - low_n
    bounded, low_bits = np.empty((1 << low_n) + 2), np.empty(1 << low_n, np.uint32)
    low = bounded[1:]
    bounded[0] = -np.inf
    high, high_bits = np.empty(1 << high_n), np.empty(1 << high_n, np.uint32)
    spare, spare_bits = np.empty((1 << high_n) // 2 + 1), np.empty((1 << high_n) // 2 + 1, np.uint32)
    for row in range(count):
        values, mask = candidates[row], masks[row]
        target = targets[row]
        if n > core:
            target = _spend_surplus(values, target, core, mask)
        lows = _sorted_sums(values[:low_n], low, low_bits, spare, spare_bits)
        lows = _drop_repeats(low, low_bits, lows)
        low[lows] = np.inf
        highs = _sorted_sums(values[low_n:core], high, high_bits, spare, spare_bits)
        best_low, best_high = _nearest_pair(
            values, low_n, core, target, bounded, low_bits, lows, high, high_bits, highs
        )
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
def _sorted_sums(values, out, bits, spare, spare_bits):  # type: ignore[no-untyped-def]  # pragma: no cover
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
            spare[k], spare_bits[k] = out[k], bits[k]
        # Two independent merges, from below and from above. No branches, since what comes next cannot be predicted;
        # unsigned indices, which numba need not check for counting from the end.
        a, b = zero, zero
        p, q = np.uintp(size - 1), np.uintp(size - 1)
        top = np.uintp(2 * size - 1)
        for k in range(np.uintp(size)):
            without, with_c = spare[a], spare[b] + c
            bits_without, bits_with = spare_bits[a], spare_bits[b] | bit
            first = without <= with_c
            out[k] = without if first else with_c
            bits[k] = bits_without if first else bits_with
            step = one if first else zero
            a += step
            b += one - step
            without, with_c = spare[p], spare[q] + c
            bits_without, bits_with = spare_bits[p], spare_bits[q] | bit
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
def _nearest_pair(values, low_n, core, target, bounded, low_bits, lows, high, high_bits, highs):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The masks (low, high) of the best subset: one walk down the high sums and up the low ones.

    bounded holds the low sums between -inf and inf. Which list the walk moves on in cannot be predicted, so it has no
    branches: it notes each high sum that comes within rounding distance of the nearest so far and forgets those that
    another one leaves behind, and :func:`_compare_noted` looks at what is noted in the end.
    """
    reach = abs(target)
    for i in range(core):
        reach += abs(values[i])
    slack = 4.0 * core * 2.220446049250313e-16 * reach  # more than two orders of addition can differ by
    found = np.inf, np.uint32(0), np.uint32(0)  # the error and the masks of the best subset
    noted, firsts = np.empty(_NOTED, np.intp), np.empty(_NOTED, np.intp)
    count, nearest = 0, reach  # the empty subset is no further
    zero, one = np.uintp(0), np.uintp(1)
    first, left = zero, np.uintp(highs)  # first: of the low sums, the first that is large enough, once `passed`
    while left > zero:
        wanted = target - high[left - one]
        above = bounded[first + one] - wanted
        passed = above >= 0.0
        distance = min(wanted - bounded[first], above) if passed else np.inf
        count = 0 if distance < nearest - 2.0 * slack else count
        noted[count], firsts[count] = left - one, first
        count += distance <= nearest + 2.0 * slack
        nearest = min(nearest, distance)
        step = one if passed else zero
        left -= step
        first += one - step
        if count == _NOTED or left == zero:
            for i in range(count):
                sides = bounded[1:], low_bits, lows, firsts[i], high[noted[i]], high_bits[noted[i]]
                found = _compare_noted(values, low_n, core, target, slack, *sides, found)
            count = 0
    return found[1], found[2]


@njit(cache=True, nogil=True)
def _compare_noted(values, low_n, core, target, slack, low, low_bits, lows, first, high_sum, high_mask, found):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The best so far, or what is better of one high sum with the low sums on either side of what it wants."""
    best, best_low, best_high = found
    wanted = target - high_sum
    for k in range(first - 1, max(-1, first - NEAR - 1), -1):
        if wanted - low[k] > best + slack:
            break
        error = _index_order_error(values, low_n, core, target, low[k], high_mask)
        if error < best or (error == best and _precedes(low_bits[k], high_mask, best_low, best_high)):
            best, best_low, best_high = error, low_bits[k], high_mask
    for k in range(first, min(lows, first + NEAR)):
        if low[k] - wanted > best + slack:
            break
        error = _index_order_error(values, low_n, core, target, low[k], high_mask)
        if error < best or (error == best and _precedes(low_bits[k], high_mask, best_low, best_high)):
            best, best_low, best_high = error, low_bits[k], high_mask
    return best, best_low, best_high


@njit(cache=True, nogil=True)
def _index_order_error(values, low_n, core, target, low_sum, high_bits):  # type: ignore[no-untyped-def]  # pragma: no cover
    total = low_sum
    for i in range(core - low_n):
        if (high_bits >> i) & 1:
            total += values[low_n + i]
    return abs(total - target)


@njit(cache=True, nogil=True)
def _precedes(low_a, high_a, low_b, high_b):  # type: ignore[no-untyped-def]  # pragma: no cover
    return high_a < high_b or (high_a == high_b and low_a < low_b)
