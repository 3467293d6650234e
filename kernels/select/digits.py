# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, type-arg, misc"
"""Radix selection on a GPU: what kernels that cut one group of scores have in common with those that cut many.

Magnitudes of float32 compare like their bits read as integers, 31 of them, which are looked at in four digits from the
top. A pass counts the next digit of those items whose digits so far are those of the cut, and where the rank falls says
what the next digit is. The items are all scores; or those in a bracket of bit patterns around the last cut, which need
the two lower digits alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # the bits of a float32 without its sign
INFINITY = tl.constexpr(0x7F800000)  # beyond it lies NaN
REACH = tl.constexpr(1 << 15)  # of the bracket to each side, in bit patterns: 0.2 to 0.4 % of the cut
DIGITS = tl.constexpr(4)  # of 7, 8, 8 and 8 bits
BINS = tl.constexpr(256)

# what the kernels tell each other of a group, int64
ABOVE = tl.constexpr(0)  # magnitudes over the bracket
INSIDE = tl.constexpr(1)  # and in it
FULL = tl.constexpr(2)  # 1 where a stretch had no room for what it picked out
LOW = tl.constexpr(3)  # where the bracket begins, if a kernel writes it
COUNTS = tl.constexpr(16)  # of the digits, from here on: four times 256
STATE = tl.constexpr(16 + 4 * 256)


@triton.jit
def bracket(value_ptr):
    """The least bits in the bracket around the last cut."""
    near = tl.load(value_ptr).to(tl.int32, bitcast=True) & MAGNITUDE
    return tl.maximum(tl.minimum(near, INFINITY) - REACH, 0)


@triton.jit
def put(offset, items_ptr, counts_ptr, room):
    """Write those offsets that lie in the bracket, in any order and as far as there is room; 1 for each, else 0.

    They are few, so that a place for each by itself takes less time than a sum over all before it.
    """
    inside = offset.to(tl.uint32, bitcast=True) < 2 * REACH
    place = tl.atomic_add(counts_ptr + tl.zeros_like(offset), 1, mask=inside, sem="relaxed")
    tl.store(items_ptr + place, offset, mask=inside & (place < room))
    return inside.to(tl.int32)


@triton.jit
def counted(item, here, prefix, DIGIT: tl.constexpr, LAST: tl.constexpr):
    """How many items have each value of a digit, of those that begin with the prefix."""
    shift: tl.constexpr = 8 * (LAST - DIGIT)
    if DIGIT > 0:
        here &= (item >> (shift + 8)) == prefix
    return tl.histogram((item >> shift) & (BINS - 1), BINS, mask=here)


@triton.jit
def in_bracket(state_ptr, k):
    """Whether the score of rank k lies in the bracket, and all of the bracket was picked out."""
    above = tl.load(state_ptr + ABOVE)
    return (above < k) & (k <= above + tl.load(state_ptr + INSIDE)) & (tl.load(state_ptr + FULL) == 0)


@triton.jit
def so_far(state_ptr, k, KNOWN: tl.constexpr):
    """(the cut's first digits, KNOWN of them, its rank among the items that begin with them).

    The upper two were not counted in a bracket: no count reaches the rank, which leaves it, and makes them 0.
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
