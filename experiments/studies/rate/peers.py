"""Codes of others on arrays: from a matrix and bits to what is decoded, and the bits a weight that it takes."""

from __future__ import annotations

import numpy as np
import torch

from slth.construct.codes import SCALE_BITS
from slth.construct.subset_sum import FloatArray

CLIPS = np.linspace(0.15, 1.0, 35)  # tried, over the largest of a group

#: (MSE over the variance, bits, source), on Gaussian weights, as published.
PUBLISHED = {"E8P": (0.089, 2.0, "arXiv 2402.04396"), "QTIP": (0.069, 2.0, "arXiv 2406.11235")}


def rounding(matrix: FloatArray, bits: int, group: int) -> tuple[FloatArray, float]:
    """Round to the nearest of 2^bits equidistant levels about 0, of the best clip of each group on a grid."""
    return decoded(*nearest(matrix, bits, group), matrix), bits + SCALE_BITS / group


def nearest(matrix: FloatArray, bits: int, group: int) -> tuple[FloatArray, FloatArray]:
    """What :func:`rounding` records: whole codes from -2^(bits - 1) below 2^(bits - 1), a group a row, and its step.

    A weight is decoded as (code + 1/2) step. The last row is filled up.
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
    """The matrix of codes and steps of groups, of the shape of `like`."""
    return _matrix((codes + 0.5) * steps, like)


def absmax(matrix: FloatArray, bits: int, group: int) -> tuple[FloatArray, float]:
    """The same with levels up to the largest of each group."""
    return decoded(*_rounded(_groups(matrix, group), 1.0, bits), matrix), bits + SCALE_BITS / group


def sign(matrix: FloatArray, bits: int, group: int) -> tuple[FloatArray, float]:
    """The signs times the mean size of each group; of one bit alone. Raises ValueError for more."""
    if bits != 1:
        raise ValueError(f"bits={bits}: must be 1 for signs")
    groups = _groups(matrix, group)
    scale = _single(np.abs(groups).mean(axis=1, keepdims=True))
    return _matrix(np.where(groups > 0, scale, -scale), matrix), 1 + SCALE_BITS / group


def _rounded(groups: FloatArray, clip: float, bits: int) -> tuple[FloatArray, FloatArray]:
    """(codes, steps), levels up to this share of the largest of each group."""
    step = _single(2.0 * clip * np.abs(groups).max(axis=1, keepdims=True) / 2**bits)
    step[step == 0.0] = 1.0
    half = 2 ** (bits - 1)
    return np.clip(np.floor(groups / step), -half, half - 1), step


def _single(scale: FloatArray) -> FloatArray:
    """Scales as they are recorded."""
    return torch.from_numpy(scale).bfloat16().double().numpy()


def _groups(matrix: FloatArray, group: int) -> FloatArray:
    """Weights in their order, `group` in a row, the last row filled up with the mean size of all."""
    flat = matrix.reshape(-1)
    return np.pad(flat, (0, -flat.size % group), constant_values=float(np.abs(flat).mean())).reshape(-1, group)


def _matrix(groups: FloatArray, like: FloatArray) -> FloatArray:
    return groups.reshape(-1)[: like.size].reshape(like.shape)
