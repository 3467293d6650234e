"""Attention with torch's fused kernels, on any device."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from .masks import BlockMask, attended


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | BlockMask | None,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """Compute softmax(scale q k^T; mask) v, as the reference does."""
    *batch, heads, queries, _ = q.shape
    lower = causal and mask is None and queries == k.shape[-2]  # torch aligns queries with the first keys, not the last
    seen = None if lower else attended(mask, causal, queries, k.shape[-2], q.device)
    if seen is not None and seen.dim() > 2:
        seen = seen.expand(*batch, *seen.shape[-3:]).reshape(-1, *seen.shape[-3:])
    # torch's fast kernels need exactly four axes, and equal numbers of heads of keys and queries
    q, k, v = (_in_four(t, heads) for t in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=lower, scale=scale)
    return out if len(batch) == 1 else out.reshape(*batch, *out.shape[1:])


def _in_four(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """Reshape (..., groups, T, n) to (batch, heads, T, n); a single group is broadcast."""
    groups = tokens.shape[-3]
    if groups == 1 < heads:
        tokens = tokens.expand(*tokens.shape[:-3], heads, *tokens.shape[-2:])
    elif groups < heads:
        tokens = tokens.repeat_interleave(heads // groups, dim=-3)
    return tokens if tokens.dim() == 4 else tokens.reshape(tokens.shape[:-3].numel(), *tokens.shape[-3:])


def merged_attention(
    x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, mask: torch.Tensor | BlockMask | None, causal: bool
) -> torch.Tensor:
    """Compute the sum over heads of softmax(x qk_h x^T; mask) x vo_h, as the reference does."""
    tokens = x.unsqueeze(-3)  # (..., 1, T, d), shared by the heads
    return attention(tokens @ qk, tokens, tokens @ vo, mask, causal, 1.0).sum(-3)
