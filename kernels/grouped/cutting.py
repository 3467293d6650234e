# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, type-arg, misc"
"""Find the cuts of all groups on their device, with the same number of launches for any number of groups.

The algorithm is that of `slth.kernels.select`. One pass over the scores picks out those in a bracket around the last
cut and counts those above; two passes over these count their lower digits. If the cut has left the bracket, four passes
count the digits of all scores of the group. Only the device knows which case applies.

A stretch of scores belongs to one segment. The stretches of a group are in the order of its segments, so that the
program that searches a group's last tie knows the stretch that contains it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..select.digits import (
    ABOVE,
    BINS,
    COUNTS,
    DIGITS,
    FULL,
    INFINITY,
    INSIDE,
    MAGNITUDE,
    REACH,
    STATE,
    bracket,
    counted,
    in_bracket,
    put,
    so_far,
)
from . import tables
from .cuts import Cuts
from .pieces import AT_GROUP, AT_OFFSET, AT_SCORES, piece, places, tensor

BLOCK = 2048  # scores that a program processes together
STRETCHES = 1024  # stretches of all scores, a power of two, plus at most one per segment
ROOM = 32  # a stretch has room for 1 / ROOM of its scores in the bracket, and for one block at least
PICK_WARPS = 8  # warps of a program that picks out: with 4, registers would limit occupancy to a third
FIND_BLOCK, FIND_WARPS = 8192, 16  # of the programs that search the last ties, one per group


class Cutting:
    """The buffers of a selection, which keep their addresses; each cut starts from the last one."""

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
        self._shares = buffer(count, BINS.value)
        self._zeros = buffer(groups * STATE.value + 1 + count, dtype=torch.int64)  # all that starts at 0
        self._state, nan, self._counts = self._zeros.split([groups * STATE.value, 1, count])
        value, last_tie = buffer(groups, dtype=torch.float32), buffer(groups, dtype=torch.int64)
        self._cuts = Cuts(value, last_tie, nan[0])

    def cut(self, table: torch.Tensor, kept: torch.Tensor) -> Cuts:
        """Find the cuts of all groups, in seven launches for any number of groups."""
        self._zeros.zero_()
        value, last_tie, nan = self._cuts
        grid, where = (len(self._stretches),), (table, self._stretches)
        _pick_out[grid](
            *where, value, self._items, self._counts, self._state, nan, self._chunk, self._room,
            BLOCK=BLOCK, num_warps=PICK_WARPS, **self._options,
        )  # fmt: skip
        for digit in range(DIGITS.value):
            _count_digit[grid](
                *where, kept, value, self._items, self._counts, self._state, self._shares, self._chunk, self._room,
                DIGIT=digit, LAST=DIGITS.value - 1, BLOCK=BLOCK, **self._options,
            )  # fmt: skip
        _find[(len(value),)](
            *where, kept, self._ends, self._state, self._shares, value, last_tie, self._chunk,
            STRETCHES=STRETCHES, BLOCK=FIND_BLOCK, num_warps=FIND_WARPS, **self._options,
        )  # fmt: skip
        return self._cuts


# ---------------------------------------------------------------- kernels


@triton.jit
def _magnitudes(pointer, stride, at, stop, columns, MASKED: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr):
    """Return (the bits without sign of the BLOCK scores from `at`, the mask of those before `stop`)."""
    index, row, column = places(at, columns, GRANULE, BLOCK)
    here = index < stop
    if MASKED:
        bits = tl.load(pointer + (row * stride + column), mask=here, other=0)
    else:
        bits = tl.load(pointer + (row * stride + column))
    return tl.reshape(bits & MAGNITUDE, (BLOCK,)), tl.reshape(here, (BLOCK,))


@triton.jit
def _pick_out(
    table_ptr, stretches_ptr, value_ptr, items_ptr, counts_ptr, state_ptr, nan_ptr, chunk, room,
    WIDE: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count a stretch's magnitudes above the bracket, write the offsets of those in it, and flag NaN."""
    program = tl.program_id(0).to(tl.int64)
    row_ptr, columns, start, stop = piece(table_ptr, stretches_ptr, program, chunk, WIDE)
    group = tl.load(row_ptr + AT_GROUP)
    pointer, stride = tensor(row_ptr, AT_SCORES, tl.int32, WIDE, GRANULE)
    low = bracket(value_ptr + group)
    items_ptr += program * room
    counts_ptr += program
    above, inside, largest = (tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32))
    whole = start + (stop - start) // BLOCK * BLOCK
    for at in range(start, whole, BLOCK):
        bits, here = _magnitudes(pointer, stride, at, stop, columns, False, GRANULE, BLOCK)
        above += (bits - low >= 2 * REACH).to(tl.int32)
        largest = tl.maximum(largest, bits)
        inside += put(bits - low, items_ptr, counts_ptr, room)
    if whole < stop:
        bits, here = _magnitudes(pointer, stride, whole, stop, columns, True, GRANULE, BLOCK)
        offset = tl.where(here, bits - low, -1)
        above += (offset >= 2 * REACH).to(tl.int32)
        largest = tl.maximum(largest, bits)
        inside += put(offset, items_ptr, counts_ptr, room)
    found = tl.sum(inside, 0)
    state_ptr += group * STATE
    tl.atomic_add(state_ptr + ABOVE, tl.sum(above, 0).to(tl.int64), sem="relaxed")
    tl.atomic_add(state_ptr + INSIDE, found.to(tl.int64), sem="relaxed")
    tl.atomic_max(state_ptr + FULL, (found > room).to(tl.int64), sem="relaxed")
    tl.atomic_max(nan_ptr, (tl.max(largest, 0) > INFINITY).to(tl.int64), sem="relaxed")


@triton.jit
def _count_digit(
    table_ptr, stretches_ptr, kept_ptr, value_ptr, items_ptr, counts_ptr, state_ptr, shares_ptr, chunk, room,
    DIGIT: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the values of one digit among a stretch's items whose higher digits equal the cut's.

    The items are those that were picked out if the cut is among them, else all scores.
    """
    program = tl.program_id(0).to(tl.int64)
    row_ptr, columns, start, stop = piece(table_ptr, stretches_ptr, program, chunk, WIDE)
    group = tl.load(row_ptr + AT_GROUP)
    state_ptr += group * STATE
    k = tl.load(kept_ptr + group)
    bracketed = in_bracket(state_ptr, k)
    if DIGIT < 2 and bracketed:
        return
    prefix = so_far(state_ptr, k, DIGIT)[0]
    counts = tl.zeros((BINS,), tl.int32)
    if bracketed:
        items_ptr += program * room
        length = tl.load(counts_ptr + program)
        for first in range(0, length, BLOCK):
            number = first + tl.arange(0, BLOCK)
            item = tl.load(items_ptr + number, mask=number < length, other=0)
            counts += counted(item, number < length, prefix, DIGIT, LAST)
    else:
        pointer, stride = tensor(row_ptr, AT_SCORES, tl.int32, WIDE, GRANULE)
        whole = start + (stop - start) // BLOCK * BLOCK
        for at in range(start, whole, BLOCK):
            bits, here = _magnitudes(pointer, stride, at, stop, columns, False, GRANULE, BLOCK)
            counts += counted(bits, bits >= 0, prefix, DIGIT, LAST)
        if whole < stop:
            bits, here = _magnitudes(pointer, stride, whole, stop, columns, True, GRANULE, BLOCK)
            counts += counted(bits, here, prefix, DIGIT, LAST)
    bins = tl.arange(0, BINS)
    tl.atomic_add(state_ptr + COUNTS + DIGIT * BINS + bins, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
    if DIGIT == LAST:
        tl.store(shares_ptr + program * BINS + bins, counts)


@triton.jit
def _find(
    table_ptr, stretches_ptr, kept_ptr, ends_ptr, state_ptr, shares_ptr, value_ptr, last_tie_ptr, chunk,
    STRETCHES: tl.constexpr, WIDE: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the cut of a group, and the index of the last of its ties that is kept."""
    group = tl.program_id(0).to(tl.int64)
    state_ptr += group * STATE
    k = tl.load(kept_ptr + group)
    item, rank = so_far(state_ptr, k, DIGITS)
    least = item + tl.where(in_bracket(state_ptr, k), bracket(value_ptr + group), 0)
    stretch, rank = _stretch_of(shares_ptr + item % BINS, ends_ptr + group, rank, STRETCHES)
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
    """Return (the stretch of a group that contains the tie of this rank, its rank there)."""
    begin, end = tl.load(ends_ptr), tl.load(ends_ptr + 1)
    stretch, left, seen = begin, rank, tl.zeros((), tl.int64)
    for first in range(begin, end, STRETCHES):
        number = first + tl.arange(0, STRETCHES)
        ties = tl.load(ties_ptr + number * BINS, mask=number < end, other=0).to(tl.int64)
        before = seen + tl.cumsum(ties, 0) - ties
        here = (before < rank) & (rank <= before + ties)
        stretch += tl.sum(tl.where(here, number - begin, 0), 0)
        left -= tl.sum(tl.where(here, before, 0), 0)
        seen += tl.sum(ties, 0)
    return stretch, left
