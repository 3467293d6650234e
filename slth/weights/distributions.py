"""Convert random words to random numbers: each distribution in plain torch for any device, and as a loop for the CPU.

Both use only exact or correctly rounded operations, so that they give the same bits. The loops must have no fused
multiply-add and no reordering: numba does neither with the settings used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numba import float32, float64, njit, uint32

from slth.weights.quantile import ATANH_SERIES, LN2, MIDDLE, SHOULDER, quantile

_PIECE = 1024  # words that a loop converts at a time, so that its buffers stay in a core's L1 cache
_ROOT_HALF = math.sqrt(0.5)
_FRACTION = (1 << 52) - 1  # fraction bits of a float64


@dataclass(frozen=True)
class Distribution:
    """A conversion of random words to numbers.

    Attributes:
        per_word: how many numbers a word gives.
        of: (words, scale) -> float32 numbers, for int64 words in [0, 2^32): the reference.
        fill: (words, scale, out), writes the same numbers for uint32 words to float32 `out`, which may be shorter.
    """

    per_word: int
    of: Callable[[torch.Tensor, float], torch.Tensor]
    fill: Callable[[np.ndarray, float, np.ndarray], None]


# ---------------------------------------------------------------- in plain torch


def _uniform(words: torch.Tensor, scale: float) -> torch.Tensor:
    odd = 2 * (words >> 8) + (1 - (1 << 24))  # odd, |odd| < 2^24: exact in float32
    return odd.to(torch.float32) * float(np.float32(scale) * np.float32(2.0**-24))


def _uniform16(words: torch.Tensor, scale: float) -> torch.Tensor:
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=1).flatten()
    return (2 * halves + (1 - (1 << 16))).to(torch.float32) * float(np.float32(scale) * np.float32(2.0**-16))


def _sign(words: torch.Tensor, scale: float) -> torch.Tensor:
    bits = (words[:, None] >> torch.arange(32, device=words.device)) & 1
    return (1 - 2 * bits.flatten()).to(torch.float32) * float(np.float32(scale))


def _normal(words: torch.Tensor, scale: float) -> torch.Tensor:
    return (quantile((words.to(torch.float64) + 0.5) * 2.0**-32) * scale).to(torch.float32)


# ---------------------------------------------------------------- as loops on the CPU


@njit(cache=True, nogil=True)
def _fill_uniform(words: np.ndarray, scale: float, out: np.ndarray) -> None:  # pragma: no cover
    step = float32(scale) * float32(2.0**-24)
    for i in range(out.size):
        out[i] = float32(2 * np.int32(words[i] >> uint32(8)) + (1 - (1 << 24))) * step


@njit(cache=True, nogil=True)
def _fill_uniform16(words: np.ndarray, scale: float, out: np.ndarray) -> None:  # pragma: no cover
    step = float32(scale) * float32(2.0**-16)
    halves = words.view(np.uint16)  # low half first: the package runs on little-endian machines
    for i in range(out.size):
        out[i] = float32(2 * np.int32(halves[i]) + (1 - (1 << 16))) * step


@njit(cache=True, nogil=True)
def _fill_sign(words: np.ndarray, scale: float, out: np.ndarray) -> None:  # pragma: no cover
    plus = float32(scale)
    for i in range(out.size):
        out[i] = -plus if (words[i >> 5] >> uint32(i & 31)) & uint32(1) else plus


@njit(cache=True, nogil=True, inline="always")
def _ratio(above, below, x):  # type: ignore[no-untyped-def]  # pragma: no cover
    a, b = above[0], below[0]
    for k in range(1, len(above)):
        a = a * x + above[k]
        b = b * x + below[k]
    return a / b


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_normal(words: np.ndarray, scale: float, out: np.ndarray) -> None:  # pragma: no cover
    """Compute the middle of the distribution for a whole piece, then gather the words outside of it and recompute them.

    The quantile's tail is not needed, as no word gives a probability below e^-25.
    """
    where, t, e = np.empty(_PIECE, np.int64), np.empty(_PIECE, np.float64), np.empty(_PIECE, np.int64)
    bits = t.view(np.int64)
    for start in range(0, out.size, _PIECE):
        w, o = words[start : start + _PIECE], out[start : start + _PIECE]
        outside = 0
        for i in range(o.size):
            p = (float64(w[i]) + 0.5) * 2.0**-32
            q = p - 0.5
            o[i] = float32(q * _ratio(MIDDLE[0], MIDDLE[1], 0.180625 - q * q) * scale)
        for i in range(o.size):
            p = (float64(w[i]) + 0.5) * 2.0**-32
            where[outside], t[outside] = i, min(p, 1.0 - p)
            outside += int(abs(p - 0.5) > 0.425)
        for i in range(outside):  # t = mantissa in [1/2, 1) * 2^e
            e[i] = (bits[i] >> 52) - 1022
            bits[i] = (bits[i] & _FRACTION) | (1022 << 52)
        for i in range(outside):
            small = t[i] < _ROOT_HALF
            m = 2.0 * t[i] if small else t[i]
            s = (m - 1.0) / (m + 1.0)
            series = ATANH_SERIES[0]
            for k in range(1, len(ATANH_SERIES)):
                series = series * (s * s) + ATANH_SERIES[k]
            log = (float64(e[i]) - float64(small)) * LN2 + s * series
            t[i] = _ratio(SHOULDER[0], SHOULDER[1], math.sqrt(-log) - 1.6) * scale
        for i in range(outside):
            o[where[i]] = float32(-t[i] if w[where[i]] < 1 << 31 else t[i])


UNIFORM = Distribution(1, _uniform, _fill_uniform)
UNIFORM16 = Distribution(2, _uniform16, _fill_uniform16)
SIGN = Distribution(32, _sign, _fill_sign)
NORMAL = Distribution(1, _normal, _fill_normal)
