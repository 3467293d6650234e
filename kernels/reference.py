"""Every kernel in plain torch: what it means, and what its Triton form is held against.

Half precision is computed in float32 and rounded once at the end, so that the reference is nearer to the truth than any
form that is faster. Arguments have been checked by `slth.kernels.calls`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from slth.weights import inits

from .bits import unpack_mask
from .shapes import Scored, Threshold, as_threshold

#: Distributions that a kernel can draw from: all whose values are exact in any arithmetic.
SEEDED = {"uniform": inits.uniform, "uniform16": inits.uniform16, "sign": inits.sign}


def wide(x: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision that the reference works in: float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# ---------------------------------------------------------------- masked weights


def kept(mask: torch.Tensor | Scored, columns: int) -> torch.Tensor:
    """The mask, bool (rows, columns), of bits or of scores and their threshold."""
    if isinstance(mask, torch.Tensor):
        return unpack_mask(mask, columns)
    scores, given = mask
    value, last_tie = as_threshold(given, scores.device)
    magnitude = scores.detach().abs()
    index = torch.arange(scores.numel(), device=scores.device).reshape(scores.shape)
    return (magnitude > value) | ((magnitude == value) & (index <= last_tie))


class _Straight(Function):
    """The masked weight; backward as if the mask were |score|, to the scores alone (Ramanujan et al. 2020)."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scores)
        return torch.where(mask, weight, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        return None, score_gradient(grad, *ctx.saved_tensors), None


def score_gradient(grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The gradient to the scores from that to the masked weight, as if the mask were |score|."""
    slope = grad.to(scores.dtype) * weight.to(scores.dtype)
    return torch.where(scores < 0, -slope, slope)


def masked_weight(weight: torch.Tensor, mask: torch.Tensor | Scored) -> torch.Tensor:
    """Weight where the mask keeps it, else exactly 0; differentiable in the scores."""
    weight = weight.detach()
    here = kept(mask, weight.shape[-1])
    if isinstance(mask, torch.Tensor):
        return torch.where(here, weight, 0)
    out: torch.Tensor = _Straight.apply(weight, mask[0], here)  # type: ignore[no-untyped-call]
    return out


def masked_linear(
    x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor | Scored, bias: torch.Tensor | None
) -> torch.Tensor:
    """X (..., in) times the masked weight (out, in)."""
    y = wide(x) @ masked_weight(wide(weight), mask).mT
    return (y if bias is None else y + wide(bias)).to(x.dtype)


# ---------------------------------------------------------------- attention


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool, scale: float
) -> torch.Tensor:
    """softmax(scale q k^T; mask) v; mask bool, broadcastable to (..., heads, T, S)."""
    groups = q.shape[-3] // k.shape[-3]
    q, k, v, dtype = wide(q), wide(k), wide(v), q.dtype
    k, v = (t.repeat_interleave(groups, dim=-3) if groups > 1 else t for t in (k, v))
    logits = (q @ k.mT) * scale  # (..., heads, T, S)
    seen = attended(mask, causal, q.shape[-2], k.shape[-2], q.device)
    weights = logits.softmax(-1) if seen is None else masked_softmax(logits, seen)
    return (weights @ v).to(dtype)


def masked_softmax(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """softmax over the last axis where mask, bool and broadcastable, is True, else exactly 0: also where nothing is."""
    least = torch.finfo(logits.dtype).min  # not -inf, of which a row would make NaN
    weights = logits.masked_fill(~mask, least).softmax(-1)
    return weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def attended(
    mask: torch.Tensor | None, causal: bool, queries: int, keys: int, device: torch.device
) -> torch.Tensor | None:
    """The mask together with the causal one, whose queries are the last of the keys; None where all is seen."""
    if not causal:
        return mask
    lower = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return lower if mask is None else mask & lower


def merged_attention(
    x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    """Sum over heads of softmax(x qk_h x^T; mask) x vo_h."""
    tokens = wide(x).unsqueeze(-3)  # (..., 1, T, d), shared by the heads
    heads = attention(tokens @ wide(qk), tokens, tokens, mask, causal, 1.0)  # (..., heads, T, d)
    return (heads @ wide(vo)).sum(-3).to(x.dtype)


def mhla(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mixing: torch.Tensor, block: int, causal: bool, normalise: bool
) -> torch.Tensor:
    """Linear attention whose blocks of tokens see each other through a matrix, as the quadratic form."""
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


# ---------------------------------------------------------------- weights from a seed


def seeded_weight(
    shape: tuple[int, int],
    seed: int,
    name: str,
    distribution: str,
    scale: float,
    stream: int,
    bits: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """The random weight of `slth.weights.inits`, float32, 0 where bits say so."""
    weight = SEEDED[distribution](shape, scale, seed=seed, name=name, stream=stream, device=device)
    return weight if bits is None else torch.where(unpack_mask(bits, shape[-1]), weight, 0)


# ---------------------------------------------------------------- selection


def select_threshold(scores: torch.Tensor, k: int) -> Threshold:
    """Where to cut for exactly k scores to be kept, by sorting them."""
    magnitude = scores.detach().abs().flatten()
    ordered = magnitude.sort(descending=True).values
    value = ordered[k - 1]
    above = (magnitude > value).sum()
    ties = (magnitude == value).cumsum(0)
    last_tie = torch.where(ties == k - above, torch.arange(ties.numel(), device=ties.device), ties.numel()).amin()
    return Threshold(value, last_tie)
