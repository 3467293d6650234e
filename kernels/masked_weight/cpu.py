"""Masked weights with numba loops, if all tensors are float32 on the CPU with evenly spaced rows.

Otherwise, and if torch traces operations (compilers, transforms, second derivatives), torch's operations are used.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import carray, njit  # type: ignore[attr-defined]
from torch.autograd.graph import increment_version

from slth.watched import followed, watched

from ..cut import Cut, Scored
from ..rows import MAGNITUDE, bits_of, float32_at, int32_at, rows_of, shared
from . import reference


def masked_weight(weight: torch.Tensor, mask: torch.Tensor | Scored, out: torch.Tensor | None) -> torch.Tensor:
    """Compute the masked weight in one pass, with the reference's result."""
    if isinstance(mask, torch.Tensor):
        return reference.masked_weight(weight, mask, out)
    scores, cut = mask
    assert isinstance(cut, Cut)
    if not isinstance(cut.last_tie, int) or isinstance(cut.value, torch.Tensor) or watched():
        return _by_torch(weight, scores, cut, out)
    made = torch.empty_like(weight) if out is None else out
    rows = rows_of(weight, scores, made)
    if rows is None:
        return _by_torch(weight, scores, cut, out)
    (w, s, o), columns, size = rows
    ties = min(max(cut.last_tie + 1, 0), size)  # ties before this index are kept
    bound = bits_of(cut.value) if cut.value >= 0 else -1

    def work(start: int, stop: int) -> None:
        if start < ties:
            _mask_rows(*w, *s, *o, columns, start, min(ties, stop), bound)
        if stop > ties:
            _mask_rows(*w, *s, *o, columns, max(ties, start), stop, bound + 1)

    shared(work, size)
    if out is not None:
        increment_version(out)  # autograd does not notice that numba writes
    return made


def _by_torch(weight: torch.Tensor, scores: torch.Tensor, cut: Cut, out: torch.Tensor | None) -> torch.Tensor:
    made = torch.where(cut.mask(scores), weight.detach(), 0)
    if out is None and made.stride() == weight.stride():
        return made
    return (torch.empty_like(weight) if out is None else out).copy_(made)  # torch.where's layout depends on the mask


def score_gradient(grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Compute the scores' gradient in one pass, with the reference's result; grad * weight is rounded as in torch."""
    if not (watched() or followed(grad, weight, scores)):
        out = torch.empty_like(scores)
        rows = rows_of(grad, weight, scores, out)
        if rows is not None:
            (g, w, s, o), columns, size = rows
            shared(lambda start, stop: _slope_rows(*g, *w, *s, *o, columns, start, stop), size)
            return out
    slope = (grad * weight).to(scores.dtype)
    return torch.where(scores < 0, -slope, slope)


@njit(cache=True, nogil=True)
def _mask_rows(weight, w_stride, scores, s_stride, out, o_stride, columns, start, stop, least):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write weight where the score's magnitude is at least `least`, else 0, all as bits, from start up to stop."""
    least = np.int32(least)
    while start < stop:
        row, column = start // columns, start % columns
        length = min(columns - column, stop - start)
        w = carray(int32_at(weight + 4 * (row * w_stride + column)), length)
        s = carray(int32_at(scores + 4 * (row * s_stride + column)), length)
        o = carray(int32_at(out + 4 * (row * o_stride + column)), length)
        for i in range(length):
            o[i] = w[i] if np.int32(s[i] & np.int32(MAGNITUDE)) >= least else np.int32(0)
        start += length


@njit(cache=True, nogil=True)
def _slope_rows(grad, g_stride, weight, w_stride, scores, s_stride, out, o_stride, columns, start, stop):  # type: ignore[no-untyped-def]  # pragma: no cover
    while start < stop:
        row, column = start // columns, start % columns
        length = min(columns - column, stop - start)
        g = carray(float32_at(grad + 4 * (row * g_stride + column)), length)
        w = carray(float32_at(weight + 4 * (row * w_stride + column)), length)
        s = carray(float32_at(scores + 4 * (row * s_stride + column)), length)
        o = carray(float32_at(out + 4 * (row * o_stride + column)), length)
        for i in range(length):
            slope = g[i] * w[i]
            o[i] = -slope if s[i] < 0 else slope
        start += length
