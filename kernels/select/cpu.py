"""Selection in usually one pass over the scores, with numba on the CPU and torch's operations on any device.

Magnitudes of float32 compare like their bits read as integers. One pass over the scores counts those above a narrow
bracket around the last threshold and picks out those inside it, among which the new threshold usually is (Floyd &
Rivest 1975). If it is not, the bracket is re-estimated from a sample; as a last resort it contains all scores.

A score that is picked out becomes a key: the bits of its magnitude, followed by its index counted backwards. So keys
are in the order of selection, and all different. A key takes 8 bytes; if all scores are equal, all become keys.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from numba import carray, njit  # type: ignore[attr-defined]

from slth.watched import watched

from ..cut import Cut
from ..rows import INFINITY, MAGNITUDE, Rows, int32_at, rows_of, shared
from . import reference
from .nan import refuse_nan

LAST_INDEX = 0xFFFFFFFF  # largest index of a score in its group
_LEAST_REACH, _MOST_REACH = 1 << 11, 1 << 17  # in bit patterns, of which there are 2^23 from a number to its double
_BLOCK = 256  # scores compared between two checks whether any is in the bracket
_SAMPLE = 1 << 16  # most scores of a sample

Bits = npt.NDArray[np.int32]
Keys = npt.NDArray[np.int64]


def select_threshold(scores: torch.Tensor, k: int, near: Cut | None) -> Cut:
    """Find the cut that keeps exactly k scores, as tensors; value is below the k-th score if all ties are kept."""
    if watched():  # numba reads memory, which cannot be traced and which fake tensors do not have
        return reference.select_threshold(scores, k, near)
    return Cut(*Selection().cut([scores.detach()], k).tensors(scores.device))


class Selection:
    """The cuts of one group of scores step after step; each search starts from the last cut."""

    def __init__(self) -> None:
        self._last: int | None = None  # bits of the least kept magnitude
        self._expected = 0  # its extrapolation to the next step
        self._reach = 0  # half width of the bracket around it

    def cut(self, scores: Sequence[torch.Tensor], k: int) -> Cut:
        """Find the cut that keeps exactly k of all scores together, as Python numbers.

        On the CPU, tensors with contiguous, evenly spaced rows are not copied: contiguous tensors, and blocks of their
        rows or columns. last_tie is -1 unless only some of several equal scores are kept, and value is -1 if all scores
        are kept. Raises ValueError for NaN.
        """
        held = _hold([s.detach() for s in scores if s.numel()])
        if k == held.total:
            held.census(0, 0)  # raises for NaN
            return Cut(-1.0)
        keys, place = self._bracketed(held, k)
        keys.partition(place)
        key = int(keys[place])
        least, index = key >> 32, LAST_INDEX - (key & LAST_INDEX)
        self._remember(least)
        if place and int(keys[:place].max()) >> 32 == least:  # an equal score is not kept
            return Cut(_as_float(least), index)
        return Cut(_as_float(least - 1))  # least > 0, otherwise all scores would be kept

    def settle(self) -> None:
        """Do nothing: NaN is detected immediately."""

    def _bracketed(self, held: _Held, k: int) -> tuple[Keys, int]:
        """Return the keys of the scores in a bracket, and the index of the last kept one if they were sorted."""
        for low, high in self._brackets(held, k / held.total):
            above, keys = held.census(low, high)
            if above < k <= above + keys.size:
                return keys, above + keys.size - k
        raise AssertionError("the last bracket holds every score")

    def _brackets(self, held: _Held, share: float) -> Iterator[tuple[int, int]]:
        """Yield intervals [low, high) of bits to search the least kept magnitude in, the most likely first."""
        if self._last is not None:
            yield max(self._expected - self._reach, 0), min(self._expected + self._reach, INFINITY) + 1
        yield _sampled_bracket(held.sample(), share)
        yield 0, INFINITY + 1

    def _remember(self, least: int) -> None:
        if self._last is None:
            self._last, self._expected, self._reach = least, least, _MOST_REACH
        moved, missed = least - self._last, least - self._expected
        self._reach = min(max(4 * abs(missed), abs(moved), self._reach // 2, _LEAST_REACH), _MOST_REACH)
        self._last, self._expected = least, min(max(least + moved, 0), INFINITY)


def _sampled_bracket(sample: Bits, share: float) -> tuple[int, int]:
    """Return five standard deviations around the least of the `share` largest magnitudes of a sample."""
    sample = np.sort(sample)
    place, slack = sample.size * (1.0 - share), 5.0 * math.sqrt(sample.size * share * (1.0 - share)) + 5.0
    first, last = int(place - slack), int(place + slack)
    return int(sample[first]) if first >= 0 else 0, (int(sample[last]) if last < sample.size else INFINITY) + 1


def _as_float(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))


# ---------------------------------------------------------------- scores on the host or a device


class _Held(Protocol):
    """The scores of a group on some device."""

    total: int

    def sample(self) -> Bits:
        """Return the bits of some magnitudes, spread over all scores."""

    def census(self, low: int, high: int) -> tuple[int, Keys]:
        """Return (number of magnitudes >= high, keys of those in [low, high)). Raises ValueError for NaN."""


def _hold(scores: list[torch.Tensor]) -> _Held:
    whole, pieces = [], []
    for s in scores:
        rows = rows_of(s)
        if rows is None:
            s = s.contiguous()
            rows = rows_of(s)
        if rows is None:
            return _DeviceScores(scores)
        whole.append(s)
        pieces.append(rows)
    return _HostScores(whole, pieces)


class _HostScores:
    """Scores in rows, for numba loops."""

    def __init__(self, scores: list[torch.Tensor], pieces: list[Rows]) -> None:
        self.scores, self.pieces = scores, pieces
        self.ends = list(itertools.accumulate(piece.size for piece in pieces))
        self.total = self.ends[-1]

    def sample(self) -> Bits:
        index = _spread(self.total)
        parts, offset = [], 0
        for scores, end, inner in zip(
            self.scores, self.ends, np.split(index, np.searchsorted(index, self.ends[:-1])), strict=True
        ):
            flat = (scores.view(-1, scores.shape[-1]) if scores.dim() else scores.view(1, 1)).numpy()
            parts.append(flat[np.divmod(inner - offset, flat.shape[1])].view(np.int32) & np.int32(MAGNITUDE))
            offset = end
        return np.concatenate(parts)

    def census(self, low: int, high: int) -> tuple[int, Keys]:
        found: list[tuple[int, int, Keys]] = []
        shared(lambda start, stop: found.append(self._counted(start, stop, low, high)), self.total)
        if len(found) == 1:
            above, largest, keys = found[0]
        else:
            aboves, peaks, parts = zip(*found, strict=True)
            above, largest, keys = sum(aboves), max(peaks), np.concatenate(parts)
        refuse_nan(largest > INFINITY)
        return above, keys

    def _counted(self, start: int, stop: int, low: int, high: int) -> tuple[int, int, Keys]:
        """Return (magnitudes >= high, the largest, keys of those in [low, high)) of the indices from start to stop."""
        keys = np.empty(stop - start, np.int64)  # memory is only touched where it is written
        above = inside = largest = 0
        for i in range(bisect_right(self.ends, start), bisect_left(self.ends, stop) + 1):
            offset = self.ends[i - 1] if i else 0
            (place,), columns, _ = self.pieces[i]
            first, last = max(start - offset, 0), min(stop, self.ends[i]) - offset
            more, hits, peak = _count_rows(*place, columns, first, last, low, high, LAST_INDEX - offset, keys[inside:])
            above, inside, largest = above + more, inside + hits, max(largest, peak)
        return above, largest, keys[:inside]


class _DeviceScores:
    """Scores on any device, read with torch's operations; only keys and counts are copied to the host."""

    def __init__(self, scores: list[torch.Tensor]) -> None:
        flat = [s.to(scores[0].device).reshape(-1) for s in scores]
        self.magnitudes = (torch.cat(flat) if len(flat) > 1 else flat[0]).view(torch.int32) & MAGNITUDE
        self.total = self.magnitudes.numel()

    def sample(self) -> Bits:
        index = torch.from_numpy(_spread(self.total)).to(self.magnitudes.device)
        return np.asarray(self.magnitudes[index].cpu().numpy())

    def census(self, low: int, high: int) -> tuple[int, Keys]:
        reaches, exceeds = self.magnitudes >= low, self.magnitudes >= high
        counts = torch.stack((exceeds.sum(), self.magnitudes.amax().long()))
        index = (reaches & ~exceeds).nonzero().squeeze(1)
        keys = (self.magnitudes[index].long() << 32) | (LAST_INDEX - index)
        above, largest = counts.tolist()
        refuse_nan(largest > INFINITY)
        return above, np.asarray(keys.cpu().numpy())


def _spread(total: int) -> Keys:
    """Return ascending indices in [0, total): one at an irregular position in each of equal parts.

    There are total^(2/3) of them (Floyd & Rivest 1975): with more, the look-up would cost more than it saves.
    """
    part = np.arange(min(math.ceil(total ** (2 / 3)), _SAMPLE))
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    return np.asarray((part + part * golden % 1.0) * (total / part.size), np.int64)


@njit(cache=True, nogil=True)
def _count_rows(address, stride, columns, start, stop, low, high, last, keys):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return (magnitudes >= high, magnitudes in [low, high), the largest) of the indices from start up to stop.

    Writes a key for each magnitude in [low, high) into keys; last is the first index of the rows, counted backwards.
    """
    above, inside, largest, low, high = 0, 0, np.int32(0), np.int32(low), np.int32(high)
    while start < stop:
        row, column = start // columns, start % columns
        length = min(columns - column, stop - start)
        bits = carray(int32_at(address + 4 * (row * stride + column)), length)
        for begin in range(0, length, _BLOCK):
            block = bits[begin : min(begin + _BLOCK, length)]
            at_low, at_high = np.int32(0), np.int32(0)
            for i in range(block.size):  # no branches and only 32 bits, so that it compiles to vector instructions
                magnitude = np.int32(block[i] & np.int32(MAGNITUDE))
                at_low = np.int32(at_low + (magnitude >= low))
                at_high = np.int32(at_high + (magnitude >= high))
                largest = max(largest, magnitude)
            above += int(at_high)
            if at_low > at_high:
                for i in range(block.size):
                    magnitude = np.int32(block[i] & np.int32(MAGNITUDE))
                    if np.uint32(magnitude - low) < np.uint32(high - low):  # compares with both bounds at once
                        keys[inside] = (np.int64(magnitude) << 32) | (last - (start + begin + i))
                        inside += 1
        start += length
    return above, inside, largest
