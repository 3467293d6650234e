"""Attention in plain torch, the reference for the other implementations."""

from __future__ import annotations

import torch

from ..precision import wide
from .masks import BlockMask, attended


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | BlockMask | None, causal: bool, scale: float
) -> torch.Tensor:
    """Compute softmax(scale q k^T; mask) v; mask is bool, broadcastable to (..., heads, T, S)."""
    groups = q.shape[-3] // k.shape[-3]
    q, k, v, dtype = wide(q), wide(k), wide(v), q.dtype
    k, v = (t.repeat_interleave(groups, dim=-3) if groups > 1 else t for t in (k, v))
    logits = (q @ k.mT) * scale  # (..., heads, T, S)
    seen = attended(mask, causal, q.shape[-2], k.shape[-2], q.device)
    weights = logits.softmax(-1) if seen is None else masked_softmax(logits, seen)
    return (weights @ v).to(dtype)


def masked_softmax(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute softmax over the last axis where a broadcastable bool mask is True; rows without a True are exactly 0."""
    least = torch.finfo(logits.dtype).min  # not -inf: a row of -inf would give NaN
    weights = logits.masked_fill(~mask, least).softmax(-1)
    return weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def merged_attention(
    x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, mask: torch.Tensor | BlockMask | None, causal: bool
) -> torch.Tensor:
    """Compute the sum over heads of softmax(x qk_h x^T; mask) x vo_h."""
    tokens = wide(x).unsqueeze(-3)  # (..., 1, T, d), shared by the heads
    heads = attention(tokens @ wide(qk), tokens, tokens, mask, causal, 1.0)  # (..., heads, T, d)
    return (heads @ wide(vo)).sum(-3).to(x.dtype)
