"""Functions on queries, keys and values that all attentions share: masks, softmax attention, the norm."""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm as _rms_norm

from slth import kernels
from slth.kernels.attention.masks import check_attending, is_of_pairs
from slth.kernels.attention.reference import masked_softmax

NORM_EPS = 1e-5

# ---------------------------------------------------------------- masks


def fit_mask(mask: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """The mask with two axes or more. Raises ValueError unless it is bool and broadcasts to (..., queries, keys)."""
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"mask of type {type(mask).__name__}: must be a torch.Tensor of torch.bool, True = attend")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask of dtype {mask.dtype}: must be torch.bool, True = attend")
    mask = mask if mask.dim() > 1 else mask[None]
    if mask.shape[-2] not in (1, queries) or mask.shape[-1] not in (1, keys):
        raise ValueError(f"mask of shape {tuple(mask.shape)}: must end in {(queries, keys)} or broadcast to it")
    return mask


def check_mask(mask: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """The mask with two axes or more. Raises ValueError unless it fits and each query sees something or is padding.

    See `slth.kernels.attention` for how a mask says what is padding; what attends to nothing gets zeros.
    """
    mask = fit_mask(mask, queries, keys)
    if is_of_pairs(mask):
        check_attending(mask, queries, keys)
    return mask


def causal_mask(mask: torch.Tensor | None, queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Mask, or nothing, together with the causal one, where the queries are the last of the keys: bool.

    Query i attends to keys up to keys - queries + i. mask as in `slth.attention.attend`, its errors too.
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
    """softmax(q k^T; mask) v for heads side by side, the scale already in q.

    q, k (..., heads, T, n), v (..., heads, T, m), heads broadcast where one has a single head; mask bool,
    broadcastable to (..., T, T), the same for all heads; causal: the :func:`causal_mask`, too. Returns (..., heads, T,
    m). Padding (`slth.kernels.attention`) that attends to nothing gets zeros. Raises ValueError for another mask row
    with no True.
    """
    mask = _checked(mask, causal, q.shape[-2], k.shape[-2])
    batch, groups = _batch(q, k, v, mask), max(k.shape[-3], v.shape[-3])
    q, k, v = _expanded(q, batch), _expanded(k, (*batch[:-1], groups)), _expanded(v, (*batch[:-1], groups))
    return kernels.attention(q, k, v, _by_head(mask), causal, scale=1.0, padded=True)


def _checked(mask: torch.Tensor | None, causal: bool, queries: int, keys: int) -> torch.Tensor | None:
    """The mask with two axes or more. Raises ValueError for a row with no True, which it names without the heads."""
    if mask is None:
        return None
    if causal:
        causal_mask(mask, queries, keys, mask.device)
        return fit_mask(mask, queries, keys)
    return check_mask(mask, queries, keys)


def _batch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> tuple[int, ...]:
    """The axes (..., heads) of the result; a mask has none of heads."""
    batch: tuple[int, ...] = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    if mask is None or mask.dim() == 2:
        return batch
    return (*torch.broadcast_shapes(mask.shape[:-2], batch[:-1]), batch[-1])


def _expanded(tokens: torch.Tensor, batch: tuple[int, ...]) -> torch.Tensor:
    """(..., T, n) broadcast to (*batch, T, n)."""
    return tokens if tokens.shape[:-2] == batch else tokens.expand(*batch, *tokens.shape[-2:])


def _by_head(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask (..., T, T), the same for all heads, as it broadcasts to (..., heads, T, T)."""
    return mask if mask is None or mask.dim() == 2 else mask.unsqueeze(-3)


def merged_attention(
    x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False
) -> torch.Tensor:
    """Attention from merged matrices: sum over heads of softmax(x qk_h x^T; mask) x vo_h.

    x (..., T, d_in); qk (..., heads, d_in, d_in), the scale included; vo (..., heads, d_in, d_out);
    mask bool, broadcastable to (..., T, T); causal: token t attends to tokens up to t only. Returns (..., T, d_out).
    Raises ValueError as :func:`attend` does.
    """
    if qk.dim() == 3:
        mask = _checked(mask, causal, x.shape[-2], x.shape[-2])
        if mask is not None and mask.dim() > 2:
            x = _expanded(x, torch.broadcast_shapes(mask.shape[:-2], x.shape[:-2]))
        return kernels.merged_attention(x, qk, vo, _by_head(mask), causal, padded=True)
    x = x.unsqueeze(-3)  # (..., 1, T, d_in), shared by the heads
    return attend(x @ qk, x, x @ vo, mask, causal).sum(dim=-3)


def softmax_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax(q k^T; mask) v of one head, the scale already in q, step by step as the formula has it.

    q, k (..., T, n), v (..., T, m), mask bool broadcastable to (..., T, T) -> (..., T, m). For `reference` methods.
    """
    logits = q @ k.mT  # (..., T, T)
    return (logits.softmax(-1) if mask is None else masked_softmax(logits, mask)) @ v


# ---------------------------------------------------------------- heads


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """X / sqrt(mean(x^2) + 1e-5) over the last axis, nothing learned."""
    return _rms_norm(x, x.shape[-1:], eps=NORM_EPS)


def repeat_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Key or value heads (..., g, T, n), each for heads / g queries side by side -> (..., heads or 1, T, n).

    A single one is left to be broadcast.
    """
    groups = x.shape[-3]
    return x if groups in (1, heads) else x.repeat_interleave(heads // groups, dim=-3)
