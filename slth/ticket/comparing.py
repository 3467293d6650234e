"""Compare weights under a mask: with numba on the CPU, with torch on other devices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numba import njit

from slth.threads import holds

_PIECE = 1 << 18  # entries that one thread compares at a time


def same_kept(one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> bool:
    """Return whether two weights (same shape, dtype and device) are equal where a mask (bool) keeps them."""
    if one.is_cpu:
        return _by_loops(_same_kept, one, other, mask)
    return bool(((one == other) | ~mask).all())


def is_pruned(value: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor) -> bool:
    """Return whether a value equals the weight (same shape, dtype and device) where a mask (bool) keeps it, else 0."""
    if value.is_cpu:
        return _by_loops(_is_pruned, value, weight, mask)
    return torch.equal(value, torch.where(mask, weight, 0))


def _by_loops(check: Callable[[np.ndarray, np.ndarray, np.ndarray], bool], *tensors: torch.Tensor) -> bool:
    flat = [tensor.detach().flatten() for tensor in tensors]
    return holds(lambda part: check(*(_numbers(tensor[part]) for tensor in flat)), flat[0].numel(), _PIECE)


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    """Convert to a numpy array that numba supports: 16-bit floats become float32."""
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


@njit(cache=True, nogil=True)
def _same_kept(one, other, mask):  # type: ignore[no-untyped-def]  # pragma: no cover
    differs = False
    for i in range(one.size):
        differs |= mask[i] & (one[i] != other[i])
    return not differs


@njit(cache=True, nogil=True)
def _is_pruned(value, weight, mask):  # type: ignore[no-untyped-def]  # pragma: no cover
    differs = False
    for i in range(value.size):
        differs |= value[i] != (weight[i] if mask[i] else 0)
    return not differs
