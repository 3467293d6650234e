"""Other codes on arrays: (matrix, bits) -> (decoded matrix, bits per weight used)."""

from __future__ import annotations

import numpy as np
import torch

from slth.construct.codes import SCALE_BITS
from slth.construct.subset_sum import FloatArray

CLIPS = np.linspace(0.15, 1.0, 35)  # clips to try, relative to the largest weight of a group

#: Published results on Gaussian weights: (MSE over the variance, bits, source).
PUBLISHED = {"E8P": (0.089, 2.0, "arXiv 2402.04396"), "QTIP": (0.069, 2.0, "arXiv 2406.11235")}


def rounding(matrix: FloatArray, bits: int, group: int) -> tuple[FloatArray, float]:
    """Round to 2^bits equidistant levels around 0, with the best clip of a grid for each group."""
    return decoded(*nearest(matrix, bits, group), matrix), bits + SCALE_BITS / group


def nearest(matrix: FloatArray, bits: int, group: int) -> tuple[FloatArray, FloatArray]:
    """Return the codes and steps of :func:`rounding`, one row of codes per group.

    Codes are integers in [-2^(bits - 1), 2^(bits - 1)). A weight is decoded as (code + 1/2) step. The last row is
    padded.
    """
    groups = _groups(matrix, group)
    codes, steps, least = np.zeros_like(groups), np.ones((len(groups), 1)), np.full((len(groups), 1), np.inf)
    for clip in CLIPS:
        tried, step = _rounded(groups, clip, bits)
        error = np.square((tried + 0.5) * step - groups).sum(axis=1, keepdims=True)
        codes, steps = np.where(error < least, tried, codes), np.where(error < least, step, steps)
        least = np.minimum(error, least)
    return codes, steps


def decoded(codes: FloatArray, steps: FloatArray, like: FloatArray) -> FloatArray:
    """Decode codes and steps of groups to a matrix of the shape of `like`."""
    return _matrix((codes + 0.5) * steps, like)


def absmax(matrix: FloatArray, bits: int, group: int) -> tuple[FloatArray, float]:
    """Do the same as :func:`rounding`, with levels up to the largest weight of each group."""
    return decoded(*_rounded(_groups(matrix, group), 1.0, bits), matrix), bits + SCALE_BITS / group


def sign(matrix: FloatArray, bits: int, group: int) -> tuple[FloatArray, float]:
    """Code signs times the mean absolute value of each group, for one bit only. Raises ValueError for more."""
    if bits != 1:
        raise ValueError(f"bits={bits}: must be 1 for signs")
    groups = _groups(matrix, group)
    scale = _single(np.abs(groups).mean(axis=1, keepdims=True))
    return _matrix(np.where(groups > 0, scale, -scale), matrix), 1 + SCALE_BITS / group


def _rounded(groups: FloatArray, clip: float, bits: int) -> tuple[FloatArray, FloatArray]:
    """Return (codes, steps), with levels up to this share of the largest weight of each group."""
    step = _single(2.0 * clip * np.abs(groups).max(axis=1, keepdims=True) / 2**bits)
    step[step == 0.0] = 1.0
    half = 2 ** (bits - 1)
    return np.clip(np.floor(groups / step), -half, half - 1), step


def _single(scale: FloatArray) -> FloatArray:
    """Round scales to the precision in which they are recorded."""
    return torch.from_numpy(scale).bfloat16().double().numpy()


def _groups(matrix: FloatArray, group: int) -> FloatArray:
    """Split weights in order into rows of `group`; the last row is padded with the mean absolute value."""
    flat = matrix.reshape(-1)
    return np.pad(flat, (0, -flat.size % group), constant_values=float(np.abs(flat).mean())).reshape(-1, group)


def _matrix(groups: FloatArray, like: FloatArray) -> FloatArray:
    return groups.reshape(-1)[: like.size].reshape(like.shape)
