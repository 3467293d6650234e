"""Where to cut scores for exactly k to be kept, found on their own device: nothing is copied to the host.

Magnitudes of float32 compare like their bits read as integers, 31 of them, which are looked at in four digits from the
top (7, 8, 8 and 8 bits): a pass counts the next digit of those items whose digits so far are those of the threshold,
and where the rank falls says what the next digit is (radix selection). The items are all scores; or, with a threshold
to start from, those in a bracket of 2^16 bit patterns around it, which one pass over the scores has picked out while
counting those above (Floyd & Rivest 1975). They need the two lower digits alone. Where the rank is not in the bracket,
or too many are, the passes go over all scores: kernels that have nothing to do end at once, and none waits for the
host.

A program works on one stretch of scores from the first pass to the last, so that the last kernel knows the stretch of
the tie that is kept last, and looks for it there alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..cut import Cut
from .nan import NaNWatch

BLOCK = 2048  # scores that a program looks at together
PROGRAMS = 1024  # stretches at most, a power of two: 8 for each of the 132 processors of an H100, less a few
ROOM = 32  # of so many scores one may lie in the bracket, and a block of each stretch in any case
WARPS = 4
FIND_BLOCK, FIND_WARPS = 8192, 16  # of the one program that looks for the last tie

_MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # the bits of a float32 without its sign
_INFINITY = tl.constexpr(0x7F800000)
_REACH = tl.constexpr(1 << 15)  # of the bracket to each side, in bit patterns: 0.2 to 0.4 % of the threshold
_DIGITS = tl.constexpr(4)
_BINS = tl.constexpr(256)

# what the kernels tell each other, int64
_ABOVE = tl.constexpr(0)  # magnitudes over the bracket
_INSIDE = tl.constexpr(1)  # and in it
_FULL = tl.constexpr(2)  # 1 where a stretch had no room for what it picked out
_LOW = tl.constexpr(3)  # where the bracket begins
_COUNTS = tl.constexpr(16)  # of the digits, from here on: four times 256
STATE = 16 + 4 * 256


def select_threshold(scores: torch.Tensor, k: int, near: Cut | None) -> Cut:
    """The threshold that keeps the k largest magnitudes, ties going to the lowest index."""
    scores = scores.detach()
    bits = scores.reshape(-1).view(torch.int32)
    total, device = bits.numel(), bits.device
    programs, chunk, room = _stretches(total)
    state = torch.zeros(STATE, dtype=torch.int64, device=device)
    if near is None:
        items = counts = bits  # which are not read
    else:
        items = torch.empty((programs, room + BLOCK), dtype=torch.int32, device=device)
        counts = torch.empty(programs, dtype=torch.int32, device=device)
    shares = torch.empty((programs, _BINS.value), dtype=torch.int32, device=device)
    value = torch.empty((), dtype=torch.float32, device=device)
    last_tie = torch.empty((), dtype=torch.int64, device=device)
    sizes = {"BLOCK": BLOCK, "num_warps": WARPS}
    with torch.cuda.device_of(bits):
        if near is not None:
            start, _ = near.tensors(device)
            _pick_out[(programs,)](bits, start, items, counts, state, total, chunk, room, **sizes)
        for digit in range(_DIGITS.value):
            _count_digit[(programs,)](
                bits, items, counts, state, shares, total, chunk, room, k, DIGIT=digit, LAST=_DIGITS.value - 1, **sizes
            )
        _find[(1,)](bits, state, shares, value, last_tie, total, chunk, k, programs,
                    PROGRAMS=PROGRAMS, BLOCK=FIND_BLOCK, num_warps=FIND_WARPS)  # fmt: skip
    return Cut(value, last_tie)


class Selection:
    """The cuts of one group of scores, step after step, which never leave their device."""

    def __init__(self) -> None:
        self._last: Cut | None = None
        self._nan = NaNWatch()

    def cut(self, scores: Sequence[torch.Tensor], k: int) -> Cut:
        """The cut that keeps exactly k of all scores together, as tensors.

        Raises ValueError for NaN, which is noticed a call or more later, or by :meth:`settle`.
        """
        device = scores[0].device
        flat = (
            scores[0].detach() if len(scores) == 1 else torch.cat([s.detach().to(device).reshape(-1) for s in scores])
        )
        self._nan.look(flat)
        self._last = select_threshold(flat, k, self._last)
        return self._last

    def settle(self) -> None:
        """Wait for what was found of NaN. Raises ValueError where there was any."""
        self._nan.settle()


def _stretches(total: int) -> tuple[int, int, int]:
    """(how many stretches the scores are cut into, scores of each but the last, how many of each find room)."""
    blocks = triton.cdiv(triton.cdiv(total, BLOCK), PROGRAMS)
    chunk = blocks * BLOCK
    return triton.cdiv(total, chunk), chunk, max(chunk // ROOM, BLOCK)


# ---------------------------------------------------------------- kernels


@triton.jit
def _pick_out(bits_ptr, near_ptr, items_ptr, counts_ptr, state_ptr, total, chunk, room, BLOCK: tl.constexpr):
    """Count a stretch's magnitudes over the bracket, and write those in it, less its begin, as far as there is room."""
    program = tl.program_id(0).to(tl.int64)
    near = tl.load(near_ptr).to(tl.int32, bitcast=True) & _MAGNITUDE
    low = tl.maximum(tl.minimum(near, _INFINITY) - _REACH, 0)
    length = tl.minimum(chunk, total - program * chunk).to(tl.int32)
    whole = length // BLOCK * BLOCK
    bits_ptr += program * chunk
    items_ptr += program * (room + BLOCK)
    above = tl.zeros((BLOCK,), tl.int32)
    found = tl.zeros((), tl.int32)
    at = tl.arange(0, BLOCK)
    for start in range(0, whole, BLOCK):  # without a mask: read 16 bytes at a time
        offset = (tl.load(bits_ptr + start + at) & _MAGNITUDE) - low
        above += (offset >= 2 * _REACH).to(tl.int32)
        found = _append(offset, items_ptr, found, room)
    offset = (tl.load(bits_ptr + whole + at, mask=whole + at < length, other=0) & _MAGNITUDE) - low
    offset = tl.where(whole + at < length, offset, -1)
    above += (offset >= 2 * _REACH).to(tl.int32)
    found = _append(offset, items_ptr, found, room)
    tl.store(counts_ptr + program, tl.minimum(found, room))
    tl.atomic_add(state_ptr + _ABOVE, tl.sum(above, 0).to(tl.int64))
    tl.atomic_add(state_ptr + _INSIDE, found.to(tl.int64))
    tl.atomic_max(state_ptr + _FULL, (found > room).to(tl.int64))
    tl.atomic_max(state_ptr + _LOW, low.to(tl.int64))


@triton.jit
def _append(offset, items_ptr, found, room):
    """Write those offsets that lie in the bracket behind what was found before; how many there are now.

    Where there is no room they go into the block behind it, which nobody reads.
    """
    inside = offset.to(tl.uint32, bitcast=True) < 2 * _REACH
    ranks = tl.cumsum(inside.to(tl.int32), 0)
    tl.store(items_ptr + tl.minimum(found, room) + ranks - 1, offset, mask=inside)
    return found + tl.max(ranks, 0)


@triton.jit
def _count_digit(
    bits_ptr, items_ptr, counts_ptr, state_ptr, shares_ptr, total, chunk, room, k,
    DIGIT: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the values of one digit among a stretch's items whose digits so far are the threshold's."""
    in_bracket = _in_bracket(state_ptr, k)
    if DIGIT < 2 and in_bracket:
        return
    program = tl.program_id(0).to(tl.int64)
    prefix, _ = _so_far(state_ptr, k, DIGIT)
    if in_bracket:
        stretch_ptr = items_ptr + program * (room + BLOCK)
        length = tl.load(counts_ptr + program)
    else:
        stretch_ptr = bits_ptr + program * chunk
        length = tl.minimum(chunk, total - program * chunk).to(tl.int32)
    whole = length // BLOCK * BLOCK
    at = tl.arange(0, BLOCK)
    counts = tl.zeros((_BINS,), tl.int32)
    for start in range(0, whole, BLOCK):
        item = tl.load(stretch_ptr + start + at) & _MAGNITUDE
        counts += _counted(item, item >= 0, prefix, DIGIT, LAST)
    here = whole + at < length
    item = tl.load(stretch_ptr + whole + at, mask=here, other=0) & _MAGNITUDE
    counts += _counted(item, here, prefix, DIGIT, LAST)
    bins = tl.arange(0, _BINS)
    tl.atomic_add(state_ptr + _COUNTS + DIGIT * _BINS + bins, counts.to(tl.int64), mask=counts > 0)
    if DIGIT == LAST:
        tl.store(shares_ptr + program * _BINS + bins, counts)


@triton.jit
def _counted(item, here, prefix, DIGIT: tl.constexpr, LAST: tl.constexpr):
    """How many items have each value of a digit, of those that begin with the prefix."""
    shift: tl.constexpr = 8 * (LAST - DIGIT)
    if DIGIT > 0:
        here &= (item >> (shift + 8)) == prefix
    return tl.histogram((item >> shift) & (_BINS - 1), _BINS, mask=here)


@triton.jit
def _in_bracket(state_ptr, k):
    """Whether the score of rank k lies in the bracket, and all of the bracket was picked out."""
    above = tl.load(state_ptr + _ABOVE)
    return (above < k) & (k <= above + tl.load(state_ptr + _INSIDE)) & (tl.load(state_ptr + _FULL) == 0)


@triton.jit
def _so_far(state_ptr, k, DIGITS: tl.constexpr):
    """(the threshold's first digits, its rank among the items that begin with them).

    The upper two were not counted in a bracket: no count reaches the rank, which leaves it, and makes them 0.
    """
    above = tl.load(state_ptr + _ABOVE)
    rank = tl.where(_in_bracket(state_ptr, k), k - above, k)
    prefix = tl.zeros((), tl.int32)
    bins = tl.arange(0, _BINS)
    for digit in tl.static_range(DIGITS):
        counts = tl.load(state_ptr + _COUNTS + digit * _BINS + bins)
        larger = tl.cumsum(counts, 0, reverse=True) - counts
        here = (larger < rank) & (rank <= larger + counts)
        prefix = prefix * _BINS + tl.sum(tl.where(here, bins, 0), 0)
        rank -= tl.sum(tl.where(here, larger, 0), 0)
    return prefix, rank


@triton.jit
def _find(
    bits_ptr, state_ptr, shares_ptr, value_ptr, last_tie_ptr, total, chunk, k, programs,
    PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the threshold, and the index of the last of its ties that is kept."""
    item, rank = _so_far(state_ptr, k, _DIGITS)
    low = tl.where(_in_bracket(state_ptr, k), tl.load(state_ptr + _LOW), 0).to(tl.int32)
    least = item + low
    tl.store(value_ptr, least.to(tl.float32, bitcast=True))
    # the stretch it lies in, and its rank there
    at = tl.arange(0, PROGRAMS)
    ties = tl.load(shares_ptr + at * _BINS + item % _BINS, mask=at < programs, other=0).to(tl.int64)
    before = tl.cumsum(ties, 0) - ties
    here = (before < rank) & (rank <= before + ties)
    first = tl.sum(tl.where(here, at, 0), 0) * chunk.to(tl.int64)
    rank -= tl.sum(tl.where(here, before, 0), 0)
    # its place in the stretch
    length = tl.minimum(chunk, total - first)
    at = tl.arange(0, BLOCK)
    start = tl.zeros((), tl.int32)
    seen = tl.zeros((), tl.int32)
    place = tl.zeros((), tl.int32)
    while (seen < rank) & (start < length):
        bits = tl.load(bits_ptr + first + start + at, mask=start + at < length, other=-1) & _MAGNITUDE
        tie = (bits == least) & (start + at < length)
        ranks = tl.cumsum(tie.to(tl.int32), 0)
        place += tl.sum(tl.where(tie & (seen + ranks == rank), start + at, 0), 0)
        seen += tl.max(ranks, 0)
        start += BLOCK
    tl.store(last_tie_ptr, first + place)
