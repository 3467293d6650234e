"""Rotary position embeddings."""

from __future__ import annotations

import torch

ROPE_BASE = 10000.0


def rope(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotate x (..., T, n) by positions (T,), int (Su et al. 2021, arXiv 2104.09864, eq. 34); same shape and dtype.

    Each pair of columns 2i and 2i + 1 is rotated by the angle position * 10000^(-2i / n), so that the inner product of
    two vectors depends on the difference of their positions. (Some libraries pair columns i and i + n/2 instead, which
    is the same up to a permutation of columns.) Raises ValueError for an odd n.
    """
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"rope of width {width}: must be even, positions turn pairs")
    pair = torch.arange(0, width, 2, dtype=torch.float64, device=x.device)
    angle = positions.to(torch.float64)[:, None] * ROPE_BASE ** (-pair / width)  # (T, n/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2)
