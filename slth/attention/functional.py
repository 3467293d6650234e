"""Functions on queries, keys and values that all attentions share: masks, softmax attention and the norm."""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm as _rms_norm

from slth import kernels
from slth.kernels.attention.masks import check_attending, is_of_pairs
from slth.kernels.attention.reference import masked_softmax

NORM_EPS = 1e-5

# ---------------------------------------------------------------- masks


def fit_mask(mask: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """Return the mask with at least two axes. Raises ValueError unless it is bool, broadcastable to queries by keys."""
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"mask of type {type(mask).__name__}: must be a torch.Tensor of torch.bool, True = attend")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask of dtype {mask.dtype}: must be torch.bool, True = attend")
    mask = mask if mask.dim() > 1 else mask[None]
    if mask.shape[-2] not in (1, queries) or mask.shape[-1] not in (1, keys):
        raise ValueError(f"mask of shape {tuple(mask.shape)}: must end in {(queries, keys)} or broadcast to it")
    return mask


def check_mask(mask: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """Return the mask with at least two axes. Raises ValueError if it does not fit or masks all keys of a query.

    Queries that are padding (see `slth.kernels.attention` for padding in masks) may have no keys: their output is 0.
    """
    mask = fit_mask(mask, queries, keys)
    if is_of_pairs(mask):
        check_attending(mask, queries, keys)
    return mask


def causal_mask(mask: torch.Tensor | None, queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Combine a mask, or None, with the causal mask; returns a bool tensor that broadcasts to (..., queries, keys).

    The queries are the last of the tokens: query i attends to keys up to keys - queries + i. Raises ValueError for a
    mask as `slth.attention.attend` does.
    """
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if mask is None:
        return causal
    mask = fit_mask(mask, queries, keys)
    joint = mask & causal
    if is_of_pairs(mask):
        check_attending(joint, queries, keys)
    return joint


# ---------------------------------------------------------------- softmax attention


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False
) -> torch.Tensor:
    """Compute softmax(q k^T; mask) v for several heads; the scale must be included in q.

    Args:
        q, k: (..., heads, T, n); a single head is broadcast.
        v: (..., heads, T, m); a single head is broadcast.
        mask: bool, broadcastable to (..., T, T), the same for all heads.
        causal: whether to apply the :func:`causal_mask` too.

    Returns:
        (..., heads, T, m), 0 for padding (`slth.kernels.attention`) that attends to nothing.

    Raises:
        ValueError: for a mask row without True that is not padding, and a mask that does not fit.
    """
    mask = _checked(mask, causal, q.shape[-2], k.shape[-2])
    batch, groups = _batch(q, k, v, mask), max(k.shape[-3], v.shape[-3])
    q, k, v = _expanded(q, batch), _expanded(k, (*batch[:-1], groups)), _expanded(v, (*batch[:-1], groups))
    return kernels.attention(q, k, v, _by_head(mask), causal, scale=1.0, padded=True)


def _checked(mask: torch.Tensor | None, causal: bool, queries: int, keys: int) -> torch.Tensor | None:
    """The mask with at least two axes. Raises ValueError, naming the row without heads, for a row without True."""
    if mask is None:
        return None
    if causal:
        causal_mask(mask, queries, keys, mask.device)
        return fit_mask(mask, queries, keys)
    return check_mask(mask, queries, keys)


def _batch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> tuple[int, ...]:
    """The axes (..., heads) of the result; a mask has no axis of heads."""
    batch: tuple[int, ...] = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    if mask is None or mask.dim() == 2:
        return batch
    return (*torch.broadcast_shapes(mask.shape[:-2], batch[:-1]), batch[-1])


def _expanded(tokens: torch.Tensor, batch: tuple[int, ...]) -> torch.Tensor:
    """Broadcast tokens (..., T, n) to (*batch, T, n)."""
    return tokens if tokens.shape[:-2] == batch else tokens.expand(*batch, *tokens.shape[-2:])


def _by_head(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Reshape a mask (..., T, T), the same for all heads, so that it broadcasts to (..., heads, T, T)."""
    return mask if mask is None or mask.dim() == 2 else mask.unsqueeze(-3)


def merged_attention(
    x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False
) -> torch.Tensor:
    """Compute attention from merged matrices: the sum over heads of softmax(x qk_h x^T; mask) x vo_h.

    Args:
        x: (..., T, d_in).
        qk: (..., heads, d_in, d_in), including the scale.
        vo: (..., heads, d_in, d_out).
        mask: bool, broadcastable to (..., T, T).
        causal: whether token t attends only to tokens up to t.

    Returns:
        (..., T, d_out).

    Raises:
        ValueError: as :func:`attend` does.
    """
    if qk.dim() == 3:
        mask = _checked(mask, causal, x.shape[-2], x.shape[-2])
        if mask is not None and mask.dim() > 2:
            x = _expanded(x, torch.broadcast_shapes(mask.shape[:-2], x.shape[:-2]))
        return kernels.merged_attention(x, qk, vo, _by_head(mask), causal, padded=True)
    x = x.unsqueeze(-3)  # (..., 1, T, d_in), shared by the heads
    return attend(x @ qk, x, x @ vo, mask, causal).sum(dim=-3)


def softmax_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Compute softmax(q k^T; mask) v of one head directly from the formula, for `reference` methods.

    q (including the scale), k (..., T, n), v (..., T, m), mask bool broadcastable to (..., T, T) -> (..., T, m).
    """
    logits = q @ k.mT  # (..., T, T)
    return (logits.softmax(-1) if mask is None else masked_softmax(logits, mask)) @ v


# ---------------------------------------------------------------- heads


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Return x / sqrt(mean(x^2) + 1e-5) over the last axis, without learned parameters."""
    return _rms_norm(x, x.shape[-1:], eps=NORM_EPS)


def repeat_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Repeat each key or value head (..., g, T, n) for heads / g consecutive query heads: (..., heads, T, n).

    A single head is not repeated, as it is broadcast: (..., 1, T, n).
    """
    groups = x.shape[-3]
    return x if groups in (1, heads) else x.repeat_interleave(heads // groups, dim=-3)
