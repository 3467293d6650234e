"""MHLA in plain torch, in quadratic form: the reference for the other implementations."""

from __future__ import annotations

import torch

from ..precision import wide


def mhla(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mixing: torch.Tensor, block: int, causal: bool, normalise: bool
) -> torch.Tensor:
    """Compute linear attention whose blocks of tokens are mixed by a matrix, in quadratic form."""
    dtype, length = q.dtype, q.shape[-2]
    q, k, v, mixing = wide(q), wide(k), wide(v), wide(mixing)
    at = torch.arange(length, device=q.device) // block
    weights = (q @ k.mT) * mixing[at][:, at]  # (..., heads, T, T)
    if causal:
        weights = weights.tril()
    sums = weights @ v
    if normalise:
        total = weights.sum(-1, keepdim=True)
        sums = sums / torch.where(total == 0, 1.0, total)
    return sums.to(dtype)
