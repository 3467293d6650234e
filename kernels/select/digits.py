# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, type-arg, misc"
"""Radix selection on a GPU: functions for the kernels that cut one group of scores, and for those that cut many.

Magnitudes of float32 compare like their 31 bits read as integers, which are split into four digits from the top. A pass
counts the next digit of the items whose higher digits equal the cut's; the rank then determines the next digit of the
cut. The items are all scores, or those in a bracket of bit patterns around the last cut, which need only the two lower
digits.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # the bits of a float32 without its sign
INFINITY = tl.constexpr(0x7F800000)  # larger bits are NaN
REACH = tl.constexpr(1 << 15)  # half width of the bracket in bit patterns: 0.2 to 0.4 % of the cut
DIGITS = tl.constexpr(4)  # of 7, 8, 8 and 8 bits
BINS = tl.constexpr(256)

# offsets in the state of a group that kernels share, int64
ABOVE = tl.constexpr(0)  # number of magnitudes above the bracket
INSIDE = tl.constexpr(1)  # number of magnitudes in it
FULL = tl.constexpr(2)  # 1 if a stretch had no room for all it picked out
LOW = tl.constexpr(3)  # begin of the bracket, if a kernel writes it
COUNTS = tl.constexpr(16)  # counts of the digits: four times 256
STATE = tl.constexpr(16 + 4 * 256)


@triton.jit
def bracket(value_ptr):
    """Return the least bits in the bracket around the last cut."""
    near = tl.load(value_ptr).to(tl.int32, bitcast=True) & MAGNITUDE
    return tl.maximum(tl.minimum(near, INFINITY) - REACH, 0)


@triton.jit
def put(offset, items_ptr, counts_ptr, room):
    """Write the offsets in the bracket, in any order and as long as there is room; return 1 for each of them, else 0.

    They are few, so an atomic position for each is faster than a prefix sum.
    """
    inside = offset.to(tl.uint32, bitcast=True) < 2 * REACH
    place = tl.atomic_add(counts_ptr + tl.zeros_like(offset), 1, mask=inside, sem="relaxed")
    tl.store(items_ptr + place, offset, mask=inside & (place < room))
    return inside.to(tl.int32)


@triton.jit
def counted(item, here, prefix, DIGIT: tl.constexpr, LAST: tl.constexpr):
    """Count the values of a digit among the items that begin with the prefix."""
    shift: tl.constexpr = 8 * (LAST - DIGIT)
    if DIGIT > 0:
        here &= (item >> (shift + 8)) == prefix
    return tl.histogram((item >> shift) & (BINS - 1), BINS, mask=here)


@triton.jit
def in_bracket(state_ptr, k):
    """Tell whether the score of rank k is in the bracket, and all scores in the bracket were picked out."""
    above = tl.load(state_ptr + ABOVE)
    return (above < k) & (k <= above + tl.load(state_ptr + INSIDE)) & (tl.load(state_ptr + FULL) == 0)


@triton.jit
def so_far(state_ptr, k, KNOWN: tl.constexpr):
    """Return (the first KNOWN digits of the cut, its rank among the items that begin with them).

    In a bracket the upper two digits were not counted: no count reaches the rank, so they are 0 and the rank remains.
    """
    above = tl.load(state_ptr + ABOVE)
    rank = tl.where(in_bracket(state_ptr, k), k - above, k)
    prefix = tl.zeros((), tl.int32)
    bins = tl.arange(0, BINS)
    for digit in tl.static_range(KNOWN):
        counts = tl.load(state_ptr + COUNTS + digit * BINS + bins)
        larger = tl.cumsum(counts, 0, reverse=True) - counts
        here = (larger < rank) & (rank <= larger + counts)
        prefix = prefix * BINS + tl.sum(tl.where(here, bins, 0), 0)
        rank -= tl.sum(tl.where(here, larger, 0), 0)
    return prefix, rank
