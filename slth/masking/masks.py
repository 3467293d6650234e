"""The one place where scores become a mask.

Of n scores exactly floor(keep * n + 1/2), and at least one, are kept: those of largest magnitude, ties going to the
lowest index. The rule is exact always; what is fast is how it is found. Magnitudes of float32 compare like their bits
read as integers, so one pass over the scores counts those above a narrow bracket around the last threshold and picks
out those inside it, among which the threshold then lies (Floyd & Rivest 1975). Where it does not, the bracket is taken
anew from a sample, and where that fails it is everything.

A score that is picked out becomes a key, its magnitude's bits before its index counted backwards: keys are ordered as
the rule orders scores, and no two are equal. They take 8 bytes each, of all scores where these are all equal.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch.autograd.graph import increment_version

import slth.kernels as kernels
from slth.numbers import as_float
from slth.threads import in_parallel
from slth.watched import watched

_MAGNITUDE = 0x7FFFFFFF  # the bits of a float32 without its sign
_INFINITY = 0x7F800000  # beyond it lies NaN
_LAST_INDEX = 0xFFFFFFFF  # of a score in its group
_LEAST_REACH, _MOST_REACH = 1 << 11, 1 << 17  # in bits, of which a number has 2^23 until its double
_BLOCK = 256  # scores compared between two looks whether any lay in the bracket
_SAMPLE = 1 << 16
_ALONE = 1 << 20  # scores up to which one thread is as good as several
_PART = 1 << 18  # what each of several takes at least

Bits = npt.NDArray[np.int32]
Keys = npt.NDArray[np.int64]

# ---------------------------------------------------------------- how many


def as_keep(keep: float) -> float:
    """Keep as a plain number. Raises ValueError unless it lies in (0, 1]."""
    return as_float("keep", keep, "(0, 1]", "the share of weights kept")


def count_kept(n: int, keep: float) -> int:
    """How many of n weights are kept: floor(keep * n + 1/2), at least 1; keep is taken as the decimal it prints as.

    >>> [count_kept(n, 0.9) for n in (1, 10, 100, 1000)]
    [1, 9, 90, 900]
    """
    return _rounded(n, as_keep(keep))


@functools.lru_cache(maxsize=4096)
def _rounded(n: int, keep: float) -> int:
    return max(1, math.floor(Fraction(str(keep)) * n + Fraction(1, 2)))


#: name -> share of the way from keeping everything to the final keep, as a function of progress in [0, 1].
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: progress,
    "cubic": lambda progress: 1.0 - (1.0 - progress) ** 3,  # Zhu & Gupta 2017
}


def scheduled_keep(keep: float, schedule: str, progress: float) -> float:
    """The keep at a share `progress` in [0, 1] of the search: from 1 down to keep, along a name of SCHEDULES."""
    keep = as_keep(keep)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    ahead = 1.0 - SCHEDULES[schedule](min(max(progress, 0.0), 1.0))
    return min(1.0, keep * (1.0 - ahead) + ahead)


# ---------------------------------------------------------------- which


@dataclass(frozen=True)
class Cut:
    """Where a group of scores is cut: kept are |score| > threshold, and |score| == threshold at an index <= last_tie.

    The index counts through the group's tensors in order, each row by row. A :class:`Selector` gives a last_tie other
    than -1 only where it keeps some of several equal scores, and a threshold of -1 where it keeps everything.
    """

    threshold: float
    last_tie: int

    def mask(self, scores: torch.Tensor, offset: int = 0) -> torch.Tensor:
        """The mask of one tensor of the group, whose first score has index `offset`: bool, the scores' shape."""
        return _kept(scores.detach(), self.threshold, self.last_tie - offset if offset <= self.last_tie else None)


@dataclass(frozen=True, eq=False)
class DeviceCut:
    """A cut whose numbers, without axes, stay on the scores' device: nothing waits for them. Otherwise as :class:`Cut`.

    threshold: float32; last_tie: int64. Scores that have moved since, or lie on another device, are cut where they are.
    """

    threshold: torch.Tensor
    last_tie: torch.Tensor

    def mask(self, scores: torch.Tensor, offset: int = 0) -> torch.Tensor:
        """The mask of one tensor of the group, whose first score has index `offset`: bool, the scores' shape."""
        threshold, last_tie = _threshold(self, offset, scores.device)
        return _kept(scores.detach(), threshold, last_tie)


class Selector:
    """Finds the cut of one group of scores, step after step, and remembers where it was."""

    def __init__(self) -> None:
        self._last: int | None = None  # bits of the least magnitude that was kept
        self._expected = 0  # and of the next one, as far as it moves on steadily
        self._reach = 0  # how far from there it is looked for
        self._on_device: kernels.Threshold | None = None  # the last cut that never left the device
        self._nan = _NaNWatch()

    def cut(self, scores: Sequence[torch.Tensor], keep: float) -> Cut | DeviceCut:
        """The cut that keeps exactly :func:`count_kept` of the group's scores, float32 of any shape and device.

        On the CPU no copy is made of tensors whose rows are contiguous and evenly spaced: all contiguous ones, and
        blocks of their rows or columns. Where `slth.kernels` takes Triton nothing comes back to the host; NaN is then
        noticed a call or more later, or by :meth:`settle`.

        Raises ValueError where there are no scores or over 2^32, and where they are not float32 or hold NaN.
        """
        for s in scores:
            if s.dtype != torch.float32:
                raise ValueError(f"scores of dtype {s.dtype}: must be float32")
        total = sum(s.numel() for s in scores)
        if not 0 < total <= _LAST_INDEX + 1:
            raise ValueError(f"scores: there are {total or 'none'}; at least one is needed, and at most 2^32")
        kept = count_kept(total, keep)
        if kernels.takes_triton("select_threshold", scores[0]):
            return self._cut_on_device([s.detach() for s in scores], kept)
        held = _hold([s.detach() for s in scores if s.numel()])
        if kept == total:
            held.census(0, 0)  # which refuses NaN
            return Cut(-1.0, -1)
        keys, place = self._bracketed(held, kept, total)
        keys.partition(place)
        least, index = int(keys[place]) >> 32, _LAST_INDEX - (int(keys[place]) & _LAST_INDEX)
        self._remember(least)
        if place and int(keys[:place].max()) >> 32 == least:  # an equal score is not kept
            return Cut(_as_float(least), index)
        return Cut(_as_float(least - 1), -1)  # least is not 0: then nothing would be cut off

    def settle(self) -> None:
        """Wait for what cuts on a device have found. Raises ValueError where it was NaN."""
        self._nan.settle()

    def _cut_on_device(self, scores: list[torch.Tensor], kept: int) -> DeviceCut:
        device = scores[0].device
        flat = scores[0] if len(scores) == 1 else torch.cat([s.to(device).reshape(-1) for s in scores])
        self._nan.look(flat)
        near = self._on_device and kernels.Threshold(*(number.to(device) for number in self._on_device))
        self._on_device = kernels.select_threshold(flat, kept, near=near)
        return DeviceCut(*self._on_device)

    def _bracketed(self, held: _Held, kept: int, total: int) -> tuple[Keys, int]:
        """Keys of the scores in a bracket, and the place among them, were they sorted, of the last one kept."""
        for low, high in self._brackets(held, kept / total):
            above, keys = held.census(low, high)
            if above < kept <= above + keys.size:
                return keys, above + keys.size - kept
        raise AssertionError("the last bracket holds every score")

    def _brackets(self, held: _Held, share: float) -> Iterator[tuple[int, int]]:
        """Intervals [low, high) of bits to look for the least kept magnitude in, the likeliest first."""
        if self._last is not None:
            yield max(self._expected - self._reach, 0), min(self._expected + self._reach, _INFINITY) + 1
        yield _sampled_bracket(held.sample(), share)
        yield 0, _INFINITY + 1

    def _remember(self, least: int) -> None:
        if self._last is None:
            self._last, self._expected, self._reach = least, least, _MOST_REACH
        moved, missed = least - self._last, least - self._expected
        self._reach = min(max(4 * abs(missed), abs(moved), self._reach // 2, _LEAST_REACH), _MOST_REACH)
        self._last, self._expected = least, min(max(least + moved, 0), _INFINITY)


def _sampled_bracket(sample: Bits, share: float) -> tuple[int, int]:
    """Five standard deviations about the least of the `share` largest magnitudes of a sample."""
    sample = np.sort(sample)
    place, slack = sample.size * (1.0 - share), 5.0 * math.sqrt(sample.size * share * (1.0 - share)) + 5.0
    first, last = int(place - slack), int(place + slack)
    return int(sample[first]) if first >= 0 else 0, (int(sample[last]) if last < sample.size else _INFINITY) + 1


def _as_bits(magnitude: float) -> int:
    return int(np.float32(magnitude).view(np.int32)) & _MAGNITUDE


def _as_float(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))


# ---------------------------------------------------------------- scores where they lie


class _Held(Protocol):
    """The scores of a group, wherever they lie."""

    def sample(self) -> Bits:
        """Some magnitudes, spread over all scores."""

    def census(self, low: int, high: int) -> tuple[int, Keys]:
        """(how many magnitudes are >= high, the keys of those in [low, high)). Raises ValueError for NaN."""


def _hold(scores: list[torch.Tensor]) -> _Held:
    return _HostScores(scores) if all(s.device.type == "cpu" for s in scores) else _DeviceScores(scores)


class _HostScores:
    """Scores in rows, for numba's loops."""

    def __init__(self, scores: list[torch.Tensor]) -> None:
        self.pieces = [rows for s in scores for rows in _rows_of(s) or _rows_of(s.contiguous()) or ()]
        self.ends = list(itertools.accumulate(s.numel() for s in scores))

    def sample(self) -> Bits:
        index = _spread(self.ends[-1])
        parts, offset = [], 0
        for rows, end, inner in zip(
            self.pieces, self.ends, np.split(index, np.searchsorted(index, self.ends[:-1])), strict=True
        ):
            row, column = np.divmod(inner - offset, rows.columns)
            parts.append(rows.memory.view(np.int32)[row * rows.stride + column] & np.int32(_MAGNITUDE))
            offset = end
        return np.concatenate(parts)

    def census(self, low: int, high: int) -> tuple[int, Keys]:
        found: list[tuple[int, int, Keys]] = []

        def work(part: slice) -> None:
            keys = np.empty(part.stop - part.start, np.int64)  # of which no more is touched than written to
            above = inside = largest = 0
            for rows, start, stop, offset in self._within(part):
                where = rows.memory.view(np.int32), rows.stride, rows.columns, start, stop
                more, hits, peak = _count_rows(
                    *where, np.int32(low), np.int32(high), _LAST_INDEX - offset, keys[inside:]
                )
                above, inside, largest = above + more, inside + hits, max(largest, peak)
            found.append((above, largest, keys[:inside]))

        _shared(work, self.ends[-1])
        _refuse_nan(max(largest for _, largest, _ in found))
        return sum(above for above, _, _ in found), np.concatenate([keys for _, _, keys in found])

    def _within(self, part: slice) -> Iterator[tuple[_Rows, int, int, int]]:
        """Pieces that part reaches into: (rows, from which of their indices, up to which, where they begin)."""
        for i in range(bisect_right(self.ends, part.start), bisect_left(self.ends, part.stop) + 1):
            offset = self.ends[i - 1] if i else 0
            yield self.pieces[i], max(part.start - offset, 0), min(part.stop, self.ends[i]) - offset, offset


class _DeviceScores:
    """Scores on any device, by torch: they are read there, and only keys and counts travel."""

    def __init__(self, scores: list[torch.Tensor]) -> None:
        flat = [s.to(scores[0].device).reshape(-1) for s in scores]
        self.magnitudes = (torch.cat(flat) if len(flat) > 1 else flat[0]).view(torch.int32) & _MAGNITUDE

    def sample(self) -> Bits:
        index = torch.from_numpy(_spread(self.magnitudes.numel())).to(self.magnitudes.device)
        return np.asarray(self.magnitudes[index].cpu().numpy())

    def census(self, low: int, high: int) -> tuple[int, Keys]:
        reaches, exceeds = self.magnitudes >= low, self.magnitudes >= high
        counts = torch.stack((exceeds.sum(), self.magnitudes.amax().long()))
        index = (reaches & ~exceeds).nonzero().squeeze(1)
        keys = (self.magnitudes[index].long() << 32) | (_LAST_INDEX - index)
        above, largest = counts.tolist()
        _refuse_nan(largest)
        return above, np.asarray(keys.cpu().numpy())


class _NaNWatch:
    """Notices NaN in scores on a device without waiting for it: what is found is told at a later look."""

    def __init__(self) -> None:
        self.found: torch.Tensor | None = None  # a flag on its way to the host
        self.waiting: torch.Tensor | None = None  # one that is still on the device, of looks since then
        self.arrived: torch.cuda.Event | None = None

    def __getstate__(self) -> dict[str, object]:
        """What a copy begins with: all that was found, waited for, as events cannot be copied."""
        if self.arrived is not None:
            self.arrived.synchronize()
        flags = [flag.cpu() for flag in (self.found, self.waiting) if flag is not None]
        return {"found": torch.stack(flags).any() if flags else None, "waiting": None, "arrived": None}

    def look(self, scores: torch.Tensor) -> None:
        """Raise ValueError where an earlier look has found NaN, and look at these."""
        if self.found is not None and (self.arrived is None or self.arrived.query()):
            found, self.found = bool(self.found), None
            _refuse_nan(_INFINITY + found)
        seen = scores.isnan().any()
        self.waiting = seen if self.waiting is None else self.waiting.to(seen.device) | seen
        if self.found is None:
            self.found, self.waiting = self.waiting.to("cpu", non_blocking=True), None
            if scores.is_cuda:
                self.arrived = torch.cuda.Event()
                self.arrived.record(torch.cuda.current_stream(scores.device))

    def settle(self) -> None:
        """Raise ValueError where any look has found NaN that was not told yet: waits for all of them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        flags = [flag for flag in (self.found, self.waiting) if flag is not None]
        self.found = self.waiting = None
        _refuse_nan(_INFINITY + any(bool(flag) for flag in flags))


def _refuse_nan(largest: int) -> None:
    if largest > _INFINITY:
        raise ValueError("scores hold NaN: all must be numbers")


def _spread(total: int) -> Keys:
    """At most _SAMPLE indices in [0, total), ascending: one at an uneven place in each of as many equal parts."""
    part = np.arange(min(total, _SAMPLE))
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    return np.asarray((part + part * golden % 1.0) * (total / part.size), np.int64)


@njit(cache=True, nogil=True)
def _count_rows(bits, stride, columns, start, stop, low, high, last, keys):  # type: ignore[no-untyped-def]  # pragma: no cover
    """(magnitudes >= high, magnitudes in [low, high), the largest) of the indices from start up to stop.

    Into keys goes a key for each in [low, high); last is what the first index of the rows counts backwards as.
    """
    above, inside, largest = 0, 0, np.int32(0)
    while start < stop:
        row, column = start // columns, start % columns
        length = min(columns - column, stop - start)
        first = row * stride + column
        for begin in range(first, first + length, _BLOCK):
            block = bits[begin : min(begin + _BLOCK, first + length)]
            at_low, at_high = np.int32(0), np.int32(0)
            for i in range(block.size):  # no branches, and 32 bits throughout: compiled to vector instructions
                magnitude = np.int32(block[i] & np.int32(_MAGNITUDE))
                at_low = np.int32(at_low + (magnitude >= low))
                at_high = np.int32(at_high + (magnitude >= high))
                largest = max(largest, magnitude)
            above += int(at_high)
            if at_low > at_high:
                for i in range(block.size):
                    magnitude = np.int32(block[i] & np.int32(_MAGNITUDE))
                    if np.uint32(magnitude - low) < np.uint32(high - low):  # both bounds in one
                        keys[inside] = (np.int64(magnitude) << 32) | (last - (start + begin - first + i))
                        inside += 1
        start += length
    return above, inside, largest


# ---------------------------------------------------------------- masked weights


def masked_weight(weight: torch.Tensor, scores: torch.Tensor, cut: Cut | DeviceCut, offset: int = 0) -> torch.Tensor:
    """Weight where the cut keeps its score, else exactly 0, as a new tensor; otherwise as :func:`write_masked`."""
    out = torch.empty_like(weight)
    write_masked(weight, scores, cut, offset, out)
    return out


def write_masked(
    weight: torch.Tensor, scores: torch.Tensor, cut: Cut | DeviceCut, offset: int, out: torch.Tensor
) -> None:
    """Write weight where the cut keeps its score, else exactly 0, into out: three tensors of one shape.

    offset is the first score's index in its group. One pass on the CPU where all are float32 in evenly spaced rows, and
    where `slth.kernels` takes Triton. Raises ValueError where the shapes differ.
    """
    if weight.dim() > 1 and kernels.takes_triton("masked_weight", weight):
        threshold = _threshold(cut, offset, weight.device)
        kernels.masked_weight(weight.detach(), (scores.detach(), threshold), out=out)
        return
    rows = _rows_of(weight, scores, out)
    if rows is None or isinstance(cut, DeviceCut):
        out.copy_(torch.where(cut.mask(scores, offset), weight.detach(), 0))
        return
    w, s, o = [(r.memory.view(np.int32), r.stride) for r in rows]
    size, columns = rows[0].size, rows[0].columns
    ties = min(max(cut.last_tie + 1 - offset, 0), size)  # before this index the threshold itself is kept, too
    bound = _as_bits(cut.threshold) if cut.threshold >= 0 else -1

    def work(part: slice) -> None:
        for start, stop, least in (
            (part.start, min(ties, part.stop), bound),
            (max(ties, part.start), part.stop, bound + 1),
        ):
            if start < stop:
                _mask_rows(*w, *s, *o, columns, start, stop, np.int32(least))

    _shared(work, size)
    increment_version(out)  # numba's writing is not seen by autograd


def _threshold(cut: Cut | DeviceCut, offset: int, device: torch.device) -> kernels.Threshold:
    """A cut as the kernels take it, on a device that is not waited for."""
    if isinstance(cut, DeviceCut):
        last_tie = cut.last_tie - offset if offset else cut.last_tie
        return kernels.Threshold(cut.threshold.to(device), last_tie.to(device))
    return kernels.Threshold(
        torch.full((), cut.threshold, dtype=torch.float32, device=device),
        torch.full((), cut.last_tie - offset, dtype=torch.int64, device=device),
    )


def score_gradient(grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """grad * weight, with the score's sign (+ for a score of 0): the straight-through gradient of |score|.

    Three tensors of one shape; the gradient has the scores' dtype, and gradients of its own in `grad` and `weight`.
    Raises ValueError where the shapes differ.
    """
    followed = watched() or (torch.is_grad_enabled() and any(t.requires_grad for t in (grad, weight, scores)))
    if not followed and scores.dim() > 1 and kernels.takes_triton("score_gradient", weight):
        made: torch.Tensor = kernels.score_gradient(grad, weight, scores)
        return made
    out = torch.empty_like(scores)
    rows = None if followed else _rows_of(grad, weight, scores, out)
    if rows is None:
        slope = (grad * weight).to(scores.dtype)
        return torch.where(scores < 0, -slope, slope)
    g, w, s, o = [(r.memory, r.stride) for r in rows]

    def work(part: slice) -> None:
        _slope_rows(*g, *w, *s, *o, rows[0].columns, part.start, part.stop)

    _shared(work, rows[0].size)
    return out


def traced_masked(
    weight: torch.Tensor, scores: torch.Tensor, threshold: float | torch.Tensor, last_tie: int | torch.Tensor
) -> torch.Tensor:
    """weight where the score is kept, else exactly 0, in operations that torch.compile can follow and fuse.

    threshold, float32, and last_tie, int64, of a :class:`Cut` are tensors without axes, so that a graph outlives them;
    last_tie counts from the first of these scores.
    """
    return torch.where(_kept(scores, threshold, last_tie), weight, 0)


def _kept(scores: torch.Tensor, threshold: float | torch.Tensor, last_tie: int | torch.Tensor | None) -> torch.Tensor:
    magnitude = scores.abs()
    kept = magnitude > threshold
    if last_tie is None:
        return kept
    index = torch.arange(scores.numel(), device=scores.device).reshape(scores.shape)
    return kept | ((magnitude == threshold) & (index <= last_tie))


# ---------------------------------------------------------------- rows in memory


class _Rows(NamedTuple):
    """A float32 tensor as rows of one length: its element at row r and column c is memory[r * stride + c]."""

    memory: npt.NDArray[np.float32]
    stride: int
    columns: int
    size: int


def _rows_of(*tensors: torch.Tensor) -> list[_Rows] | None:
    """Tensors of one shape as rows of one length, or None where that, or their device or dtype, is not for numba.

    Raises ValueError where their shapes differ.
    """
    if any(t.shape != tensors[0].shape for t in tensors):
        raise ValueError(f"shapes {', '.join(str(tuple(t.shape)) for t in tensors)}: must be the same")
    if not all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors):
        return None
    size = tensors[0].numel()
    if all(t.is_contiguous() for t in tensors):
        return [_Rows(t.detach().reshape(-1).numpy(), size, size, size) for t in tensors]
    try:
        flat = [t.detach().view(-1, t.shape[-1]) for t in tensors]
    except RuntimeError:  # rows that are not evenly spaced
        return None
    if any(t.stride(1) != 1 for t in flat):
        return None
    rows, columns = flat[0].shape
    spans = [t.as_strided(((rows - 1) * t.stride(0) + columns,), (1,)) for t in flat]
    return [_Rows(span.numpy(), t.stride(0), columns, size) for span, t in zip(spans, flat, strict=True)]


def _shared(work: Callable[[slice], None], count: int) -> None:
    """Work on range(count) with as many threads as torch may use, where that is worth their while."""
    if count <= _ALONE:
        work(slice(0, count))
        return
    in_parallel(
        lambda parts: work(slice(parts.start * _PART, min(parts.stop * _PART, count))),
        -(-count // _PART),
        torch.get_num_threads(),
    )


@njit(cache=True, nogil=True)
def _mask_rows(weight, w_stride, scores, s_stride, out, o_stride, columns, start, stop, least):  # type: ignore[no-untyped-def]  # pragma: no cover
    """out = weight where the score's magnitude is at least so much, else 0, all as bits, from start up to stop."""
    while start < stop:
        row, column = start // columns, start % columns
        length = min(columns - column, stop - start)
        w = weight[row * w_stride + column :][:length]
        s = scores[row * s_stride + column :][:length]
        o = out[row * o_stride + column :][:length]
        for i in range(length):
            o[i] = w[i] if np.int32(s[i] & np.int32(_MAGNITUDE)) >= least else np.int32(0)
        start += length


@njit(cache=True, nogil=True)
def _slope_rows(grad, g_stride, weight, w_stride, scores, s_stride, out, o_stride, columns, start, stop):  # type: ignore[no-untyped-def]  # pragma: no cover
    while start < stop:
        row, column = start // columns, start % columns
        length = min(columns - column, stop - start)
        g = grad[row * g_stride + column :][:length]
        w = weight[row * w_stride + column :][:length]
        s = scores[row * s_stride + column :][:length]
        o = out[row * o_stride + column :][:length]
        for i in range(length):
            slope = g[i] * w[i]
            o[i] = -slope if s[i] < 0 else slope
        start += length
