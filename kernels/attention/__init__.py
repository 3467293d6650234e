"""Softmax attention: head by head, from merged matrices, and under weight masks."""

from __future__ import annotations

import math

import torch

from ..arguments import check_floats
from ..autocast import as_autocast
from ..cut import Scored
from ..dispatch import Kernel, check_impl
from ..factors import Factors
from ..masked_weight import masked_weight
from . import reference
from .masks import BlockMask, check_attended

WIDEST = 256  # head width that Triton's attention holds on chip

_ATTENTION = Kernel(reference.attention)
_MERGED = Kernel(reference.merged_attention)


@as_autocast
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | BlockMask | None = None,
    causal: bool = False,
    *,
    scale: float | None = None,
    padded: bool = False,
    impl: str = "auto",
) -> torch.Tensor:
    """softmax(scale q k^T; mask) v for heads side by side, the T x S matrix never written to memory.

    Args:
        q: (..., heads, T, n), float.
        k: (..., groups, S, n), groups dividing heads: heads / groups neighbours share one (GQA).
        v: (..., groups, S, m).
        mask: bool, broadcastable to (..., heads, T, S), True = attend; or a :class:`BlockMask`, whose empty blocks cost
            nothing. A token that the mask says is padding may attend to nothing, and gets zeros: with one row for all
            queries it is a mask of keys, which says so; with more, a token is padding to which no query attends.
        causal: query t attends to keys up to S - T + t only.
        scale: 1 / sqrt(n) unless given.
        padded: every query that attends to nothing is padding, whatever the mask looks like.
        impl: "auto", "reference", "cpu" or "triton" (n, m <= 256).

    Returns (..., heads, T, m), of q's dtype. Raises ValueError for a query that attends to nothing and is no padding,
    and for shapes, dtypes or devices that do not fit.
    """
    check_floats(q=q, k=k, v=v)
    _check_heads(q, k, v)
    check_attended(mask, causal, (*q.shape[:-1], k.shape[-2]), q.device, padded)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _ATTENTION.choose(impl, q, too_wide(q.shape[-1], v.shape[-1]))(q, k, v, mask, causal, scale)


@as_autocast
def merged_attention(
    x: torch.Tensor,
    qk: torch.Tensor,
    vo: torch.Tensor,
    mask: torch.Tensor | BlockMask | None = None,
    causal: bool = False,
    *,
    padded: bool = False,
    impl: str = "auto",
) -> torch.Tensor:
    """Attention from merged matrices: sum over heads of softmax(x qk_h x^T; mask) x vo_h; keys and values are x itself.

    The route for heads wider than their input: the width of the T x T part is d, whatever theirs was.

    Args:
        x: (..., T, d), float.
        qk: (heads, d, d), the scale included.
        vo: (heads, d, d_out).
        mask: as in :func:`attention`, broadcastable to (..., heads, T, T).
        causal: token t attends to tokens up to t only.
        padded: as in :func:`attention`.
        impl: "auto", "reference", "cpu" or "triton" (d <= 256).

    Returns (..., T, d_out), of x's dtype. Raises ValueError as :func:`attention` does.
    """
    check_floats(x=x, qk=qk, vo=vo)
    d = x.shape[-1]
    if x.dim() < 2 or qk.shape[1:] != (d, d) or vo.shape[:2] != qk.shape[:2] or vo.dim() != 3:
        shapes = f"x {tuple(x.shape)}, qk {tuple(qk.shape)}, vo {tuple(vo.shape)}"
        raise ValueError(f"{shapes}: must be (..., T, d), (heads, d, d), (heads, d, d_out)")
    length = x.shape[-2]
    check_attended(mask, causal, (*x.shape[:-2], qk.shape[0], length, length), x.device, padded)
    return _MERGED.choose(impl, x, too_wide(d))(x, qk, vo, mask, causal)


@as_autocast
def masked_mha(
    x: torch.Tensor,
    weights: Factors,
    masks: tuple[torch.Tensor | Scored | None, ...] = (None, None, None, None),
    mask: torch.Tensor | BlockMask | None = None,
    causal: bool = False,
    *,
    impl: str = "auto",
) -> torch.Tensor:
    """Multi-head attention under weight masks: heads wider than d_in are merged, others attend as they are.

    Args:
        x: (..., T, d_in), float.
        weights: query, key and value (heads, d_in, hidden), output (heads, hidden, d_out).
        masks: of these four, each as in :func:`masked_weight`, or None: all are kept.
        mask: which tokens attend to which, as in :func:`attention`.
        causal: token t attends to tokens up to t only.
        impl: "auto", "reference", "cpu" or "triton".

    Returns (..., T, d_out), of x's dtype. Raises ValueError as :func:`masked_weight` and :func:`attention` do.
    """
    check_impl(impl)
    query, key, value, output = weights
    check_floats(x=x, query=query, key=key, value=value, output=output)
    heads, d_in, hidden = query.shape if query.dim() == 3 else (0, 0, 0)
    inner = (heads, d_in, hidden)
    if x.shape[-1] != d_in or key.shape != inner or value.shape != inner or output.shape[:2] != (heads, hidden):
        shapes = ", ".join(f"{name} {tuple(w.shape)}" for name, w in weights._asdict().items())
        raise ValueError(f"x {tuple(x.shape)}, {shapes}: must be (heads, d_in, hidden), output (heads, hidden, d_out)")
    if len(masks) != 4:
        raise ValueError(f"masks: {len(masks)} given, must be 4: of query, key, value and output")
    query, key, value, output = (
        weight if one is None else masked_weight(weight, one, impl=impl)
        for weight, one in zip(weights, masks, strict=True)
    )
    scale = 1.0 / math.sqrt(hidden)
    if hidden > d_in:
        return merged_attention(x, (query @ key.mT) * scale, value @ output, mask, causal, impl=impl)
    tokens = x.unsqueeze(-3)
    found = attention(tokens @ query, tokens @ key, tokens @ value, mask, causal, scale=scale, impl=impl)
    return (found @ output).sum(-3)


def _check_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    of_q, of_k, of_v = q.shape, k.shape, v.shape
    same = of_q[-1:] == of_k[-1:] and of_k[:-1] == of_v[:-1]
    if same and len(of_q) == len(of_k) >= 3 and of_q[:-3] == of_k[:-3] and of_q[-3] % of_k[-3] == 0:
        return
    shapes = f"q {tuple(of_q)}, k {tuple(of_k)}, v {tuple(of_v)}"
    if not same or min(len(of_q), len(of_k)) < 3:
        raise ValueError(f"{shapes}: must be (..., heads, T, n), (..., groups, S, n), (..., groups, S, m)")
    raise ValueError(f"{shapes}: batches must be the same, and the groups of k and v must divide the heads of q")


def too_wide(*widths: int) -> str:
    """What keeps Triton's attention from heads of these widths, empty where nothing does."""
    return f"a head of width {max(widths)}, must be at most {WIDEST}" if max(widths) > WIDEST else ""
