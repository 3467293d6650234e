# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, type-arg, misc"
"""Where all groups are cut, found on their own device, in as many launches for a hundred groups as for one.

Each is found as `slth.kernels.select` finds one: a pass over the scores picks out those in a bracket around the last
cut while it counts those above, and two passes over these look at their lower digits. Where the cut has left the
bracket, four passes look at all scores of the group. Which it was, only the device knows.

A stretch of scores belongs to one segment. The stretches of a group follow one another as its segments do, so that the
program that looks for the last tie of a group knows the stretch that it lies in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import tables
from .cuts import Cuts
from .pieces import AT_GROUP, AT_OFFSET, AT_SCORES, piece, places, tensor

BLOCK = 2048  # scores that a program looks at together
STRETCHES = 1024  # of all scores, a power of two; and one more for each segment at most
ROOM = 32  # of so many scores of a stretch one may lie in the bracket, and a block in any case
PICK_WARPS = 8  # of the programs that pick out: with 4, two thirds of a processor's warps have no registers
FIND_BLOCK, FIND_WARPS = 8192, 16  # of the programs that look for the last ties, one a group

_MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # the bits of a float32 without its sign
_INFINITY = tl.constexpr(0x7F800000)  # beyond it lies NaN
_REACH = tl.constexpr(1 << 15)  # of the bracket to each side, in bit patterns: 0.2 to 0.4 % of the cut
_DIGITS = tl.constexpr(4)  # of 7, 8, 8 and 8 bits
_BINS = tl.constexpr(256)

# what the kernels tell each other of a group, int64
_ABOVE = tl.constexpr(0)  # magnitudes over the bracket
_INSIDE = tl.constexpr(1)  # and in it
_FULL = tl.constexpr(2)  # 1 where a stretch had no room for what it picked out
_COUNTS = tl.constexpr(16)  # of the digits, from here on: four times 256
_STATE = tl.constexpr(16 + 4 * 256)


class Cutting:
    """The buffers of a selection, which stay where they are: a cut begins where the last one was."""

    def __init__(self, placed: Sequence[tables.Placed], groups: int, device: torch.device) -> None:
        scores = [(one.segment.scores, one.layout) for one in placed]
        total = sum(tensor.numel() for tensor, _ in scores)
        blocks = triton.cdiv(triton.cdiv(total, BLOCK), STRETCHES)
        self._chunk = blocks * BLOCK
        self._room = max(self._chunk // ROOM, BLOCK)
        self._stretches = tables.pieces([(row, t.numel()) for row, (t, _) in enumerate(scores)], self._chunk)
        of_groups = torch.tensor([one.segment.group for one in placed], device="cpu")[self._stretches[:, 0].long()]
        ends = torch.bincount(of_groups, minlength=groups).cumsum(0)
        self._ends = torch.cat([ends.new_zeros(1), ends]).to(
            device
        )  # stretches of group i: from ends[i] to ends[i + 1]
        self._stretches = self._stretches.to(device)
        self._options = tables.reading(scores)

        def buffer(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        count = len(self._stretches)
        self._items = buffer(count, self._room)
        self._shares = buffer(count, _BINS.value)
        self._zeros = buffer(groups * _STATE.value + 1 + count, dtype=torch.int64)  # all that starts at 0
        self._state, nan, self._counts = self._zeros.split([groups * _STATE.value, 1, count])
        value, last_tie = buffer(groups, dtype=torch.float32), buffer(groups, dtype=torch.int64)
        self._cuts = Cuts(value, last_tie, nan[0])

    def cut(self, table: torch.Tensor, kept: torch.Tensor) -> Cuts:
        """Seven launches, however many groups there are."""
        self._zeros.zero_()
        value, last_tie, nan = self._cuts
        grid, where = (len(self._stretches),), (table, self._stretches)
        _pick_out[grid](
            *where, value, self._items, self._counts, self._state, nan, self._chunk, self._room,
            BLOCK=BLOCK, num_warps=PICK_WARPS, **self._options,
        )  # fmt: skip
        for digit in range(_DIGITS.value):
            _count_digit[grid](
                *where, kept, value, self._items, self._counts, self._state, self._shares, self._chunk, self._room,
                DIGIT=digit, LAST=_DIGITS.value - 1, BLOCK=BLOCK, **self._options,
            )  # fmt: skip
        _find[(len(value),)](
            *where, kept, self._ends, self._state, self._shares, value, last_tie, self._chunk,
            STRETCHES=STRETCHES, BLOCK=FIND_BLOCK, num_warps=FIND_WARPS, **self._options,
        )  # fmt: skip
        return self._cuts


# ---------------------------------------------------------------- kernels


@triton.jit
def _magnitudes(pointer, stride, at, stop, columns, MASKED: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr):
    """(the bits without sign of the BLOCK scores from `at` on, which of them lie before `stop`)."""
    index, row, column = places(at, columns, GRANULE, BLOCK)
    here = index < stop
    if MASKED:
        bits = tl.load(pointer + (row * stride + column), mask=here, other=0)
    else:
        bits = tl.load(pointer + (row * stride + column))
    return tl.reshape(bits & _MAGNITUDE, (BLOCK,)), tl.reshape(here, (BLOCK,))


@triton.jit
def _bracket(value_ptr):
    """The least bits in the bracket around the last cut."""
    near = tl.load(value_ptr).to(tl.int32, bitcast=True) & _MAGNITUDE
    return tl.maximum(tl.minimum(near, _INFINITY) - _REACH, 0)


@triton.jit
def _pick_out(
    table_ptr, stretches_ptr, value_ptr, items_ptr, counts_ptr, state_ptr, nan_ptr, chunk, room,
    WIDE: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count a stretch's magnitudes over the bracket, write those in it, less its begin, and say whether any is NaN."""
    program = tl.program_id(0).to(tl.int64)
    row_ptr, columns, start, stop = piece(table_ptr, stretches_ptr, program, chunk, WIDE)
    group = tl.load(row_ptr + AT_GROUP)
    pointer, stride = tensor(row_ptr, AT_SCORES, tl.int32, WIDE, GRANULE)
    low = _bracket(value_ptr + group)
    items_ptr += program * room
    counts_ptr += program
    above, inside, largest = (tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32))
    whole = start + (stop - start) // BLOCK * BLOCK
    for at in range(start, whole, BLOCK):
        bits, here = _magnitudes(pointer, stride, at, stop, columns, False, GRANULE, BLOCK)
        above += (bits - low >= 2 * _REACH).to(tl.int32)
        largest = tl.maximum(largest, bits)
        inside += _put(bits - low, items_ptr, counts_ptr, room)
    if whole < stop:
        bits, here = _magnitudes(pointer, stride, whole, stop, columns, True, GRANULE, BLOCK)
        offset = tl.where(here, bits - low, -1)
        above += (offset >= 2 * _REACH).to(tl.int32)
        largest = tl.maximum(largest, bits)
        inside += _put(offset, items_ptr, counts_ptr, room)
    found = tl.sum(inside, 0)
    state_ptr += group * _STATE
    tl.atomic_add(state_ptr + _ABOVE, tl.sum(above, 0).to(tl.int64), sem="relaxed")
    tl.atomic_add(state_ptr + _INSIDE, found.to(tl.int64), sem="relaxed")
    tl.atomic_max(state_ptr + _FULL, (found > room).to(tl.int64), sem="relaxed")
    tl.atomic_max(nan_ptr, (tl.max(largest, 0) > _INFINITY).to(tl.int64), sem="relaxed")


@triton.jit
def _put(offset, items_ptr, counts_ptr, room):
    """Write those offsets that lie in the bracket, in any order and as far as there is room; 1 for each, else 0.

    They are few, so that a place for each by itself takes less time than a sum over all before it.
    """
    inside = offset.to(tl.uint32, bitcast=True) < 2 * _REACH
    place = tl.atomic_add(counts_ptr + tl.zeros_like(offset), 1, mask=inside, sem="relaxed")
    tl.store(items_ptr + place, offset, mask=inside & (place < room))
    return inside.to(tl.int32)


@triton.jit
def _count_digit(
    table_ptr, stretches_ptr, kept_ptr, value_ptr, items_ptr, counts_ptr, state_ptr, shares_ptr, chunk, room,
    DIGIT: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the values of one digit among a stretch's items whose digits so far are the cut's.

    The items are those that were picked out, where the cut lies among them, else all scores.
    """
    program = tl.program_id(0).to(tl.int64)
    row_ptr, columns, start, stop = piece(table_ptr, stretches_ptr, program, chunk, WIDE)
    group = tl.load(row_ptr + AT_GROUP)
    state_ptr += group * _STATE
    k = tl.load(kept_ptr + group)
    in_bracket = _in_bracket(state_ptr, k)
    if DIGIT < 2 and in_bracket:
        return
    prefix = _so_far(state_ptr, k, DIGIT)[0]
    counts = tl.zeros((_BINS,), tl.int32)
    if in_bracket:
        items_ptr += program * room
        length = tl.load(counts_ptr + program)
        for first in range(0, length, BLOCK):
            number = first + tl.arange(0, BLOCK)
            item = tl.load(items_ptr + number, mask=number < length, other=0)
            counts += _counted(item, number < length, prefix, DIGIT, LAST)
    else:
        pointer, stride = tensor(row_ptr, AT_SCORES, tl.int32, WIDE, GRANULE)
        whole = start + (stop - start) // BLOCK * BLOCK
        for at in range(start, whole, BLOCK):
            bits, here = _magnitudes(pointer, stride, at, stop, columns, False, GRANULE, BLOCK)
            counts += _counted(bits, bits >= 0, prefix, DIGIT, LAST)
        if whole < stop:
            bits, here = _magnitudes(pointer, stride, whole, stop, columns, True, GRANULE, BLOCK)
            counts += _counted(bits, here, prefix, DIGIT, LAST)
    bins = tl.arange(0, _BINS)
    tl.atomic_add(state_ptr + _COUNTS + DIGIT * _BINS + bins, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
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
    """(the cut's first digits, its rank among the items that begin with them).

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
    table_ptr, stretches_ptr, kept_ptr, ends_ptr, state_ptr, shares_ptr, value_ptr, last_tie_ptr, chunk,
    STRETCHES: tl.constexpr, WIDE: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the cut of a group, and the index of the last of its ties that is kept."""
    group = tl.program_id(0).to(tl.int64)
    state_ptr += group * _STATE
    k = tl.load(kept_ptr + group)
    item, rank = _so_far(state_ptr, k, _DIGITS)
    least = item + tl.where(_in_bracket(state_ptr, k), _bracket(value_ptr + group), 0)
    stretch, rank = _stretch_of(shares_ptr + item % _BINS, ends_ptr + group, rank, STRETCHES)
    row_ptr, columns, at, stop = piece(table_ptr, stretches_ptr, stretch, chunk, WIDE)
    pointer, stride = tensor(row_ptr, AT_SCORES, tl.int32, WIDE, GRANULE)
    seen, place = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
    within = tl.arange(0, BLOCK)
    while (seen < rank) & (at < stop):
        bits, here = _magnitudes(pointer, stride, at, stop, columns, True, GRANULE, BLOCK)
        ranks = tl.cumsum(((bits == least) & here).to(tl.int32), 0)
        tie = (bits == least) & here & (seen + ranks == rank)
        place += tl.sum(tl.where(tie, at + within, 0).to(tl.int64), 0)
        seen += tl.max(ranks, 0)
        at += BLOCK
    tl.store(value_ptr + group, least.to(tl.float32, bitcast=True))
    tl.store(last_tie_ptr + group, tl.load(row_ptr + AT_OFFSET) + place)


@triton.jit
def _stretch_of(ties_ptr, ends_ptr, rank, STRETCHES: tl.constexpr):
    """(the stretch of a group in which the tie of that rank lies, its rank there)."""
    begin, end = tl.load(ends_ptr), tl.load(ends_ptr + 1)
    stretch, left, seen = begin, rank, tl.zeros((), tl.int64)
    for first in range(begin, end, STRETCHES):
        number = first + tl.arange(0, STRETCHES)
        ties = tl.load(ties_ptr + number * _BINS, mask=number < end, other=0).to(tl.int64)
        before = seen + tl.cumsum(ties, 0) - ties
        here = (before < rank) & (rank <= before + ties)
        stretch += tl.sum(tl.where(here, number - begin, 0), 0)
        left -= tl.sum(tl.where(here, before, 0), 0)
        seen += tl.sum(ties, 0)
    return stretch, left
