"""Softmax attention: by head, from merged matrices, and with masked weights."""

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

WIDEST = 256  # largest head width of the Triton kernels, which hold heads on chip

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
    """Compute softmax(scale q k^T; mask) v; Triton never writes the T x S matrix to memory.

    Args:
        q: (..., heads, T, n), float.
        k: (..., groups, S, n); groups must divide heads, and heads / groups neighbouring heads share a group (GQA).
        v: (..., groups, S, m).
        mask: bool, broadcastable to (..., heads, T, S), True = attend; or a :class:`BlockMask`, whose empty blocks are
            skipped. Queries without any key are an error, except for padding, whose output is 0. A mask with one row
            for all queries is a mask of keys, so any query may lack keys. With more rows, a token is padding if no
            query attends to it.
        causal: query t attends to keys up to S - T + t only.
        scale: None: 1 / sqrt(n).
        padded: treat every query without any key as padding.
        impl: "auto", "reference", "cpu" or "triton" (n, m <= 256).

    Returns (..., heads, T, m) in q's dtype. Raises ValueError for a query without any key that is not padding, and for
    shapes, dtypes or devices that do not fit.
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
    """Compute attention from merged matrices: sum over heads of softmax(x qk_h x^T; mask) x vo_h.

    Keys and values are x itself. This is faster for heads that are wider than their input, since the cost of the T x T
    part depends on d instead of the head width.

    Args:
        x: (..., T, d), float.
        qk: (heads, d, d), including the scale.
        vo: (heads, d, d_out).
        mask: as in :func:`attention`, broadcastable to (..., heads, T, T).
        causal: token t attends to tokens up to t only.
        padded: as in :func:`attention`.
        impl: "auto", "reference", "cpu" or "triton" (d <= 256).

    Returns (..., T, d_out) in x's dtype. Raises ValueError as :func:`attention` does.
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
    """Compute multi-head attention with masked weights; heads wider than d_in are merged first.

    Args:
        x: (..., T, d_in), float.
        weights: query, key and value (heads, d_in, hidden), output (heads, hidden, d_out).
        masks: masks of these four weights, as in :func:`masked_weight`. None: all entries are kept.
        mask: attention mask, as in :func:`attention`.
        causal: token t attends to tokens up to t only.
        impl: "auto", "reference", "cpu" or "triton".

    Returns (..., T, d_out) in x's dtype. Raises ValueError as :func:`masked_weight` and :func:`attention` do.
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
    """Return why Triton's attention cannot handle heads of these widths; "" if it can."""
    return f"a head of width {max(widths)}, must be at most {WIDEST}" if max(widths) > WIDEST else ""
