"""The one place where scores become a mask.

Of n scores exactly floor(keep * n + 1/2), and at least one, are kept: those of largest magnitude, ties going to the
lowest index. The rule is exact always; what is fast is how it is found. Magnitudes of float32 compare like their bits
read as integers, so one pass over the scores counts those above a narrow bracket around the last threshold and picks
out those inside it, among which the threshold then lies (Floyd & Rivest 1975). Where it does not, the bracket is taken
anew from a sample, and where that fails the whole is partitioned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from slth.threads import in_parallel

_MAGNITUDE = 0x7FFFFFFF  # the bits of a float32 without its sign
_LARGEST = float(np.finfo(np.float32).max)
_BLOCK = 256  # scores compared between two looks whether any lay in the bracket
_SAMPLE = 1 << 16
_PART = 1 << 18  # scores that a thread takes at a time

Bits = npt.NDArray[np.uint32]

# ---------------------------------------------------------------- how many


def check_keep(keep: float) -> None:
    """Raise ValueError unless keep is a number in (0, 1]."""
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise ValueError(f"keep={keep!r}: must be a number in (0, 1], the share of weights kept")


def count_kept(n: int, keep: float) -> int:
    """How many of n weights are kept: floor(keep * n + 1/2), at least 1; keep is taken as the decimal it prints as.

    >>> [count_kept(n, 0.9) for n in (1, 10, 100, 1000)]
    [1, 9, 90, 900]
    """
    check_keep(keep)
    return max(1, math.floor(Fraction(str(keep)) * n + Fraction(1, 2)))


#: name -> share of the way from keeping everything to the final keep, as a function of progress in [0, 1].
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: progress,
    "cubic": lambda progress: 1.0 - (1.0 - progress) ** 3,  # Zhu & Gupta 2017
}


def scheduled_keep(keep: float, schedule: str, progress: float) -> float:
    """The keep at a share `progress` in [0, 1] of the search: from 1 down to keep, along a name of SCHEDULES."""
    check_keep(keep)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    ahead = 1.0 - SCHEDULES[schedule](min(max(progress, 0.0), 1.0))
    return min(1.0, keep * (1.0 - ahead) + ahead)


# ---------------------------------------------------------------- which


@dataclass(frozen=True)
class Cut:
    """Where a group of scores is cut: kept are |score| > threshold, and |score| == threshold at an index <= last_tie.

    The index counts through the group's tensors in order, each row by row.
    """

    threshold: float
    last_tie: int

    def mask(self, scores: torch.Tensor, offset: int = 0) -> torch.Tensor:
        """The mask of one tensor of the group, whose first score has index `offset`: bool, the scores' shape."""
        magnitude = scores.detach().abs()
        kept = magnitude > self.threshold
        if offset <= self.last_tie:
            index = torch.arange(offset, offset + scores.numel(), device=scores.device).reshape(scores.shape)
            kept |= (magnitude == self.threshold) & (index <= self.last_tie)
        return kept


class Selector:
    """Finds the cut of one group of scores, step after step, and remembers where it was."""

    def __init__(self) -> None:
        self._last = 0.0  # threshold
        self._width = 0.0  # of the bracket, relative to the threshold

    def cut(self, scores: Sequence[torch.Tensor], keep: float) -> Cut:
        """The cut that keeps exactly :func:`count_kept` of the group's scores, float32 of any shape and device.

        Raises ValueError where there are no scores, where they are not float32 or hold NaN.
        """
        total = sum(s.numel() for s in scores)
        if total == 0:
            raise ValueError("scores: there are none; at least one is needed")
        for s in scores:
            if s.dtype != torch.float32:
                raise ValueError(f"scores of dtype {s.dtype}: must be float32")
        _refuse_nan(scores)
        kept = count_kept(total, keep)
        if kept == total:
            return Cut(0.0, total - 1)
        pieces = [_Piece(s.detach()) for s in scores if s.numel()]
        threshold, above = self._threshold(pieces, kept)
        return Cut(_as_float(threshold), self._last_tie(pieces, threshold, kept - above))

    def _threshold(self, pieces: list[_Piece], kept: int) -> tuple[int, int]:
        """(bits of the kept-th largest magnitude, how many are larger)."""
        for low, high in self._brackets(pieces, kept):
            above, inside = _census(pieces, low, high)
            if inside is not None and above < kept <= above + len(inside):
                found = _kth_largest(inside, kept - above)
                break
        else:
            everything = np.concatenate([piece.magnitudes() for piece in pieces])
            above, inside, found = 0, everything, _kth_largest(everything, kept)
        value = _as_float(found)
        moved = abs(value - self._last) / value if 0 < value < math.inf else 1.0
        self._last, self._width = value, min(max(4.0 * moved, 1e-4), 0.02)
        return found, above + int((inside > found).sum())

    def _brackets(self, pieces: list[_Piece], kept: int) -> list[tuple[int, int]]:
        """Intervals [low, high) of bits to look for the threshold in, the likeliest first."""
        around = []
        if 0 < self._last < _LARGEST / 2:
            around.append((_as_bits(self._last * (1.0 - self._width)), _as_bits(self._last * (1.0 + self._width)) + 1))
        return [*around, _sampled_bracket(pieces, kept)]

    @staticmethod
    def _last_tie(pieces: list[_Piece], threshold: int, wanted: int) -> int:
        """Index of the wanted-th score whose magnitude is the threshold."""
        offset = 0
        for piece in pieces:
            ties = piece.indices_of(threshold)
            if wanted <= len(ties):
                return offset + int(ties[wanted - 1])
            wanted -= len(ties)
            offset += piece.scores.numel()
        raise AssertionError("fewer ties than were counted")


class _Piece:
    """One tensor of a group as rows of bits: on the CPU without a copy wherever its last axis is contiguous."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores
        flat = scores if scores.dim() >= 2 else scores.reshape(1, -1)
        rows = flat.flatten(0, -2) if flat.dim() > 2 else flat
        rows = rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()
        if rows.is_contiguous():
            rows = rows.reshape(1, -1)
        self.rows = rows.view(torch.int32)  # (rows, columns)

    def bits(self) -> Bits:
        return self.rows.cpu().numpy().view(np.uint32)

    def magnitudes(self) -> Bits:
        out: Bits = (self.bits() & np.uint32(_MAGNITUDE)).reshape(-1)
        return out

    def indices_of(self, magnitude: int) -> npt.NDArray[np.int64]:
        if self.rows.device.type != "cpu":
            hits = (self.rows & _MAGNITUDE) == magnitude
            return np.asarray(hits.flatten().nonzero().flatten().cpu().numpy())
        bits = self.bits()
        return np.asarray(np.flatnonzero(_equal_rows(bits, np.uint32(magnitude))))


def _census(pieces: list[_Piece], low: int, high: int) -> tuple[int, Bits | None]:
    """(how many magnitudes are >= high, those in [low, high)), None where these are too many to be worth it."""
    above, inside = 0, []
    for piece in pieces:
        if piece.rows.device.type == "cpu":
            count, values = _census_cpu(piece.bits(), low, high)
        else:
            magnitudes = piece.rows & _MAGNITUDE
            count = int((magnitudes >= high).sum())
            hits = magnitudes[(magnitudes >= low) & (magnitudes < high)]
            values = hits.cpu().numpy().view(np.uint32)
        if values is None:
            return 0, None
        above += count
        inside.append(values)
    return above, np.concatenate(inside)


def _census_cpu(bits: Bits, low: int, high: int) -> tuple[int, Bits | None]:
    rows, columns = bits.shape
    parts = [
        (row, slice(start, min(start + _PART, columns))) for row in range(rows) for start in range(0, columns, _PART)
    ]
    if columns < _PART:  # many short rows: several to a part
        step = max(1, _PART // columns)
        parts = [(slice(row, row + step), slice(0, columns)) for row in range(0, rows, step)]  # type: ignore[misc]
    found: list[tuple[int, Bits | None]] = [(0, None)] * len(parts)

    def work(which: slice) -> None:
        for i in range(which.start, which.stop):
            part = np.atleast_2d(bits[parts[i]])
            room = np.empty(max(4096, part.size // 8), np.uint32)
            above, inside = _count_rows(part, np.uint32(low), np.uint32(high), room)
            found[i] = above, room[:inside] if inside <= room.size else None

    in_parallel(work, len(parts), None if bits.size > _PART else 1)
    if any(values is None for _, values in found):
        return 0, None
    return sum(above for above, _ in found), np.concatenate([values for _, values in found if values is not None])


@njit(cache=True, nogil=True)
def _count_rows(bits, low, high, room):  # type: ignore[no-untyped-def]  # pragma: no cover
    """(magnitudes >= high, magnitudes in [low, high)), the latter written into room as far as it reaches."""
    above, inside = 0, 0
    for r in range(bits.shape[0]):
        row = bits[r]
        for start in range(0, row.size, _BLOCK):
            stop = min(start + _BLOCK, row.size)
            at_low, at_high = 0, 0
            for i in range(start, stop):  # no branches: compiled to vector compares
                magnitude = row[i] & np.uint32(_MAGNITUDE)
                at_low += magnitude >= low
                at_high += magnitude >= high
            above += at_high
            if at_low > at_high:
                for i in range(start, stop):
                    magnitude = row[i] & np.uint32(_MAGNITUDE)
                    if low <= magnitude < high:
                        if inside < room.size:
                            room[inside] = magnitude
                        inside += 1
    return above, inside


@njit(cache=True, nogil=True)
def _equal_rows(bits, magnitude):  # type: ignore[no-untyped-def]  # pragma: no cover
    out = np.empty(bits.size, np.bool_)
    k = 0
    for r in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            out[k] = (bits[r, c] & np.uint32(_MAGNITUDE)) == magnitude
            k += 1
    return out


def _sampled_bracket(pieces: list[_Piece], kept: int) -> tuple[int, int]:
    """Five standard deviations about the threshold's place in an evenly spread sample."""
    total = sum(piece.scores.numel() for piece in pieces)
    every = max(1, total // _SAMPLE)
    parts = []
    for piece in pieces:
        rows, columns = piece.rows.shape
        at = torch.arange(0, rows * columns, every, device=piece.rows.device)
        at = (at + at * 7919 % every).clamp(max=rows * columns - 1)  # off any pattern of the rows
        parts.append((piece.rows[at // columns, at % columns] & _MAGNITUDE).cpu().numpy().view(np.uint32))
    sample = np.sort(np.concatenate(parts))[::-1]
    share = kept / total
    place, slack = share * len(sample), 5.0 * math.sqrt(len(sample) * share * (1.0 - share)) + 5.0
    first, last = int(place - slack), int(place + slack)
    high = int(sample[first]) + 1 if first >= 0 else _MAGNITUDE
    low = int(sample[last]) if last < len(sample) else 0
    return low, high


def _kth_largest(values: Bits, k: int) -> int:
    return int(np.partition(values, len(values) - k)[len(values) - k])


def _as_bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _as_float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def _refuse_nan(scores: Sequence[torch.Tensor]) -> None:
    if any(bool(torch.isnan(s).any()) for s in scores):
        raise ValueError("scores hold NaN: all must be numbers")


# ---------------------------------------------------------------- masked weights


class _StraightThrough(Function):
    """weight * mask forward; backward as if the mask were |score|: the gradient is grad * weight * sign(score)."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, scores: torch.Tensor, cut: Cut, offset: int) -> torch.Tensor:
        ctx.save_for_backward(weight, scores)
        return masked(weight, scores, cut, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None, None]:
        weight, scores = ctx.saved_tensors
        return None, score_gradient(grad, weight, scores), None, None


def straight_through(weight: torch.Tensor, scores: torch.Tensor, cut: Cut, offset: int = 0) -> torch.Tensor:
    """weight where the cut keeps the score, else 0; gradients reach the scores alone (Ramanujan et al. 2020)."""
    out: torch.Tensor = _StraightThrough.apply(weight, scores, cut, offset)  # type: ignore[no-untyped-call]
    return out


def masked(weight: torch.Tensor, scores: torch.Tensor, cut: Cut, offset: int = 0) -> torch.Tensor:
    """weight where the cut keeps the score, else exactly 0. One pass on the CPU for contiguous float32."""
    if _is_plain(weight) and _is_plain(scores):
        out = torch.empty_like(weight)
        w, s, o = (t.detach().reshape(-1).numpy() for t in (weight, scores, out))
        threshold, last = np.uint32(_as_bits(cut.threshold)), cut.last_tie - offset

        def work(part: slice) -> None:
            _mask_part(w, s.view(np.uint32), threshold, last, o, part.start, part.stop)

        in_parallel(work, w.size, None if w.size > _PART else 1)
        return out
    return torch.where(cut.mask(scores, offset), weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


def score_gradient(grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """grad * weight, with the score's sign (+ for a score of 0): the straight-through gradient of |score|."""
    if _is_plain(grad) and _is_plain(weight) and _is_plain(scores):
        out = torch.empty_like(scores)
        g, w, s, o = (t.detach().reshape(-1).numpy() for t in (grad, weight, scores, out))

        def work(part: slice) -> None:
            _gradient_part(g, w, s, o, part.start, part.stop)

        in_parallel(work, g.size, None if g.size > _PART else 1)
        return out
    slope = (grad * weight).to(scores.dtype)
    return torch.where(scores < 0, -slope, slope)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


@njit(cache=True, nogil=True)
def _mask_part(weight, score_bits, threshold, last_tie, out, start, stop):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(start, stop):
        magnitude = score_bits[i] & np.uint32(_MAGNITUDE)
        kept = (magnitude > threshold) | ((magnitude == threshold) & (i <= last_tie))
        out[i] = weight[i] if kept else np.float32(0.0)


@njit(cache=True, nogil=True)
def _gradient_part(grad, weight, scores, out, start, stop):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(start, stop):
        slope = grad[i] * weight[i]
        out[i] = -slope if scores[i] < 0 else slope
