"""Selection of the k largest scores on their device, without a copy to the host.

The algorithm is radix selection (`digits.py`): four passes over the scores, each of which counts a digit. With a
threshold to start from, one pass picks out the scores in a bracket of 2^16 bit patterns around it and counts those
above (Floyd & Rivest 1975). The passes then count only these scores, unless the rank is outside of the bracket or the
bracket has too many scores. All kernels are launched in any case, without synchronising; those that are not needed end
at once.

A program works on the same stretch of scores in all passes, so that the last kernel knows the stretch that contains the
last kept tie, and searches only this stretch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..cut import Cut
from .digits import (
    ABOVE,
    BINS,
    COUNTS,
    DIGITS,
    FULL,
    INSIDE,
    LOW,
    MAGNITUDE,
    REACH,
    STATE,
    bracket,
    counted,
    in_bracket,
    put,
    so_far,
)
from .nan import NaNWatch

BLOCK = 2048  # scores that a program processes together
PROGRAMS = 1024  # most stretches, a power of two: nearly 8 for each of the 132 multiprocessors of an H100
ROOM = 32  # a stretch has room for 1 / ROOM of its scores in the bracket, and for one block at least
WARPS = 4
FIND_BLOCK, FIND_WARPS = 8192, 16  # of the single program that searches the last tie


def select_threshold(scores: torch.Tensor, k: int, near: Cut | None) -> Cut:
    """Find the threshold that keeps the k largest magnitudes, with ties to the lowest index."""
    scores = scores.detach()
    bits = scores.reshape(-1).view(torch.int32)
    total, device = bits.numel(), bits.device
    programs, chunk, room = _stretches(total)
    zeros = torch.zeros(STATE.value + programs, dtype=torch.int64, device=device)
    state, counts = zeros[: STATE.value], zeros[STATE.value :]
    # without a bracket nothing is picked out
    items = bits if near is None else torch.empty((programs, room), dtype=torch.int32, device=device)
    shares = torch.empty((programs, BINS.value), dtype=torch.int32, device=device)
    value = torch.empty((), dtype=torch.float32, device=device)
    last_tie = torch.empty((), dtype=torch.int64, device=device)
    sizes = {"BLOCK": BLOCK, "num_warps": WARPS}
    with torch.cuda.device_of(bits):
        if near is not None:
            start, _ = near.tensors(device)
            _pick_out[(programs,)](bits, start, items, counts, state, total, chunk, room, **sizes)
        for digit in range(DIGITS.value):
            _count_digit[(programs,)](
                bits, items, counts, state, shares, total, chunk, room, k, DIGIT=digit, LAST=DIGITS.value - 1, **sizes
            )
        _find[(1,)](bits, state, shares, value, last_tie, total, chunk, k, programs,
                    PROGRAMS=PROGRAMS, BLOCK=FIND_BLOCK, num_warps=FIND_WARPS)  # fmt: skip
    return Cut(value, last_tie)


class Selection:
    """The cuts of one group of scores step after step, which stay on their device."""

    def __init__(self) -> None:
        self._last: Cut | None = None
        self._nan = NaNWatch()

    def cut(self, scores: Sequence[torch.Tensor], k: int) -> Cut:
        """Find the cut that keeps exactly k of all scores together, as tensors.

        Raises ValueError for NaN, which is detected one or more calls later, or by :meth:`settle`.
        """
        device = scores[0].device
        flat = (
            scores[0].detach() if len(scores) == 1 else torch.cat([s.detach().to(device).reshape(-1) for s in scores])
        )
        self._nan.look(flat)
        self._last = select_threshold(flat, k, self._last)
        return self._last

    def settle(self) -> None:
        """Wait for the NaN checks. Raises ValueError if one found NaN."""
        self._nan.settle()


def _stretches(total: int) -> tuple[int, int, int]:
    """Return (number of stretches, scores of each except the last, room for picked-out scores of each)."""
    blocks = triton.cdiv(triton.cdiv(total, BLOCK), PROGRAMS)
    chunk = blocks * BLOCK
    return triton.cdiv(total, chunk), chunk, max(chunk // ROOM, BLOCK)


# ---------------------------------------------------------------- kernels


@triton.jit
def _pick_out(bits_ptr, near_ptr, items_ptr, counts_ptr, state_ptr, total, chunk, room, BLOCK: tl.constexpr):
    """Count a stretch's magnitudes above the bracket, and write the offsets of those in it as long as there is room."""
    program = tl.program_id(0).to(tl.int64)
    low = bracket(near_ptr)
    length = tl.minimum(chunk, total - program * chunk).to(tl.int32)
    whole = length // BLOCK * BLOCK
    bits_ptr += program * chunk
    items_ptr += program * room
    counts_ptr += program
    above, inside = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    at = tl.arange(0, BLOCK)
    for start in range(0, whole, BLOCK):  # without a mask: read 16 bytes at a time
        offset = (tl.load(bits_ptr + start + at) & MAGNITUDE) - low
        above += (offset >= 2 * REACH).to(tl.int32)
        inside += put(offset, items_ptr, counts_ptr, room)
    offset = (tl.load(bits_ptr + whole + at, mask=whole + at < length, other=0) & MAGNITUDE) - low
    offset = tl.where(whole + at < length, offset, -1)
    above += (offset >= 2 * REACH).to(tl.int32)
    found = tl.sum(inside + put(offset, items_ptr, counts_ptr, room), 0)
    tl.atomic_add(state_ptr + ABOVE, tl.sum(above, 0).to(tl.int64), sem="relaxed")
    tl.atomic_add(state_ptr + INSIDE, found.to(tl.int64), sem="relaxed")
    tl.atomic_max(state_ptr + FULL, (found > room).to(tl.int64), sem="relaxed")
    tl.atomic_max(state_ptr + LOW, low.to(tl.int64), sem="relaxed")


@triton.jit
def _count_digit(
    bits_ptr, items_ptr, counts_ptr, state_ptr, shares_ptr, total, chunk, room, k,
    DIGIT: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the values of one digit among a stretch's items whose higher digits equal the threshold's."""
    bracketed = in_bracket(state_ptr, k)
    if DIGIT < 2 and bracketed:
        return
    program = tl.program_id(0).to(tl.int64)
    prefix, _ = so_far(state_ptr, k, DIGIT)
    if bracketed:
        stretch_ptr = items_ptr + program * room
        length = tl.load(counts_ptr + program).to(tl.int32)
    else:
        stretch_ptr = bits_ptr + program * chunk
        length = tl.minimum(chunk, total - program * chunk).to(tl.int32)
    whole = length // BLOCK * BLOCK
    at = tl.arange(0, BLOCK)
    counts = tl.zeros((BINS,), tl.int32)
    for start in range(0, whole, BLOCK):
        item = tl.load(stretch_ptr + start + at) & MAGNITUDE
        counts += counted(item, item >= 0, prefix, DIGIT, LAST)
    here = whole + at < length
    item = tl.load(stretch_ptr + whole + at, mask=here, other=0) & MAGNITUDE
    counts += counted(item, here, prefix, DIGIT, LAST)
    bins = tl.arange(0, BINS)
    tl.atomic_add(state_ptr + COUNTS + DIGIT * BINS + bins, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
    if DIGIT == LAST:
        tl.store(shares_ptr + program * BINS + bins, counts)


@triton.jit
def _find(
    bits_ptr, state_ptr, shares_ptr, value_ptr, last_tie_ptr, total, chunk, k, programs,
    PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the threshold, and the index of the last of its ties that is kept."""
    item, rank = so_far(state_ptr, k, DIGITS)
    low = tl.where(in_bracket(state_ptr, k), tl.load(state_ptr + LOW), 0).to(tl.int32)
    least = item + low
    tl.store(value_ptr, least.to(tl.float32, bitcast=True))
    # the stretch that contains it, and its rank there
    at = tl.arange(0, PROGRAMS)
    ties = tl.load(shares_ptr + at * BINS + item % BINS, mask=at < programs, other=0).to(tl.int64)
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
        bits = tl.load(bits_ptr + first + start + at, mask=start + at < length, other=-1) & MAGNITUDE
        tie = (bits == least) & (start + at < length)
        ranks = tl.cumsum(tie.to(tl.int32), 0)
        place += tl.sum(tl.where(tie & (seen + ranks == rank), start + at, 0), 0)
        seen += tl.max(ranks, 0)
        start += BLOCK
    tl.store(last_tie_ptr, first + place)
