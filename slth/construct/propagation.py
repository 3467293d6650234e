"""Certificates through the blocks of a transformer.

The target is run on given inputs, so the norms of its activations are known. The bound is on the drift between source
and target: write e for a bound on max_i |x'_i - x_i|, with x of the target and x' of the source, and a for max_i |x_i|.

* Normalisation. LN(x) = c / (|c|^2/d + eps)^(1/2), with c the centred x, has slope at most (|c|^2/d + eps)^(-1/2).
  Between c and c', |c| is at least s - e with s = min_i |c_i|, so LN moves by at most
  e / (max(s - e, 0)^2/d + eps)^(1/2), and by at most 2 sqrt(d).
* Attention. |Attn_S(x') - Attn_T(x)| <= |Attn_S(x') - Attn_T(x')| + |Attn_T(x') - Attn_T(x)|. The first is the
  certificate of `slth.construct.certificates` at norm a + e. For the second, the logits of head h move by at most
  m_h = |QK_h|_2 (2 a e + e^2) and the weights by tanh(m_h/2) in total variation. So the average moves by at most
  |y_h| = 2 a tanh(m_h/2) + e, where e is the movement of the points themselves, and the output by at most the smaller
  of sum_h |VO_h|_2 |y_h| and |[VO]|_2 (sum_h |y_h|^2)^(1/2) (heads stacked).
* Feed-forward. A pair of source layers computes x+ P + x- N for W: |x'(W) - x(W)| <= |W|_2 e, and the pair adds
  |[P - W; N + W]|_2 |x'|, since the positive and negative part of x' together have its norm. ReLU does not expand.
* Residuals add e.
* Rounding, if source and target are evaluated in float64. That of attention is part of its certificate. A network's
  layers add `BlockErrors.roundings` for inputs of norm 1: n eps times the sum of the absolute values of the n products
  that are added up. Residuals and the centring of LN add 4 d eps times the largest norm in the residual stream, and LN
  itself adds 4 d eps times sqrt(d).
Norms beyond 1e75, whose powers overflow, make the bound infinite.

The paper's own recursion (Lemmas 8, 12, 13 with input norms that grow up to 4 H sqrt(d1)-fold per block) is computed
from the same achieved errors for comparison; it is infinite after few blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from slth.attention import MultiHeadAttention
from slth.construct.certificates import Merged, certificate, evaluate, spectral_norm, stacked
from slth.models.transformer import Block, FeedForward, Transformer, normalise

_EPS = 1e-5  # of layer normalisation
_TINY = 1e-300  # the norm used for inputs of zeros, since certificates need alpha > 0
_HUGE = 1e75
_ROUNDING = 4.0 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class BlockNorms:
    """Largest norms of a target block's vectors over all evaluated inputs and positions (smallest for *_centred)."""

    attention_in: float
    attention_centred: float
    network_centred: float
    layers_in: list[float]
    length: int  # of the inputs, in tokens
    stream: float  # largest in the residual stream: before the block, after attention, after the block


@dataclass(frozen=True)
class BlockErrors:
    """The errors that a construction achieved in a block.

    Attributes:
        merged: merged matrices of the source's attention.
        layers: error of each feed-forward layer (`FeedForwardConstruction.errors`).
        roundings: bound on each layer's rounding errors in float64, for inputs of norm 1.
    """

    merged: Merged
    layers: list[torch.Tensor]
    roundings: list[float]


@torch.no_grad()
def block_norms(target: Transformer, x: torch.Tensor, mask: torch.Tensor | None = None) -> list[BlockNorms]:
    """Run the target on x (..., T, d) and record the norms of each block that :func:`propagate` needs."""
    norms = []
    for block in target.blocks:
        assert isinstance(block, Block)
        h = normalise(x, block.norm)
        y = block.attention(h, mask) + x
        g = normalise(y, block.norm)
        layers = []
        z = g
        for i, weight in enumerate(block.feed_forward.layers):
            z = z.relu() if i else z
            layers.append(_largest(z))
            z = z @ weight * block.feed_forward.scales[i]
        stream = max(_largest(x), _largest(y), _largest(z + y))
        norms.append(BlockNorms(_largest(h), _centred(x), _centred(y), layers, x.shape[-2], stream))
        x = z + y
    return norms


def _largest(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dim=-1).max())


def _centred(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x - x.mean(-1, keepdim=True), dim=-1).min())


def propagate(e: float, block: Block, norms: BlockNorms, errors: BlockErrors) -> float:
    """Bound the drift after a block of the target, given a bound e on the drift before it."""
    d = block.attention.d_in
    into = _into(e, block.norm, norms.attention_centred, norms.stream, d)
    e = e + _attention_drift(into, norms.attention_in, block.attention, errors.merged, norms.length)
    into = _into(e, block.norm, norms.network_centred, norms.stream, d)
    e = e + _network_drift(into, norms.layers_in, block.feed_forward, errors.layers, errors.roundings)
    e = e + _ROUNDING * d * (norms.stream + e)
    return e if e < _HUGE else math.inf


def _into(e: float, norm: bool, centred: float, stream: float, d: int) -> float:
    """Bound the drift of the inputs of attention or network, given the drift e of the residual stream."""
    e = e + _ROUNDING * d * (stream + e)
    return _through_norm(e, centred, d) + _ROUNDING * d * math.sqrt(d) if norm else e


def _through_norm(e: float, centred: float, d: int) -> float:
    least = max(centred - e, 0.0)
    return min(e / math.sqrt(least * least / d + _EPS), 2.0 * math.sqrt(d))


def _attention_drift(e: float, a: float, target: MultiHeadAttention, source: Merged, length: int) -> float:
    if not a + e <= _HUGE:
        return math.inf
    evaluated = evaluate("target", target)
    qk, vo = evaluated
    own = float(certificate(evaluated, source, max(a + e, _TINY), length=length).bound)
    m = spectral_norm(qk) * (2.0 * a * e + e * e)
    moved = 2.0 * a * torch.tanh(m / 2.0) + e  # (heads,)
    added = (spectral_norm(vo) * moved).sum()
    together = spectral_norm(stacked(vo)) * torch.linalg.vector_norm(moved)
    return own + min(float(added), float(together))


def _network_drift(
    e: float, norms: list[float], network: FeedForward, errors: list[torch.Tensor], roundings: list[float]
) -> float:
    for weight, scale, norm, error, rounding in zip(
        network.layers, network.scales, norms, errors, roundings, strict=True
    ):
        if not e < _HUGE:
            return math.inf
        lipschitz = spectral_norm((weight * scale).detach().double()).item()
        e = lipschitz * e + (spectral_norm(error).item() + rounding) * (norm + e)
    return e


def recursion(target: Transformer, alpha: float, blocks: list[BlockErrors]) -> list[float]:
    """Compute the paper's bound after each block from the achieved errors.

    It uses Lemma 8 and Theorem 10 for a block's own error, the corrected Lemma 13 for the error of its inputs, and
    input norms beta_b = alpha (4 H sqrt(d1))^(b-1), doubled for the source. As in the theorem, every factor of the
    target is assumed to have spectral norm at most 1; otherwise the result is no bound. It is infinite where exp
    overflows or norms exceed 1e75.
    """
    drift, beta = 0.0, 0.0
    bounds: list[float] = []
    for b, block in enumerate(target.blocks):
        assert isinstance(block, Block)
        heads, d = block.attention.heads, target.d
        beta = max(alpha, _TINY) if b == 0 else beta * 4.0 * heads * math.sqrt(d)
        norm = beta if b == 0 else 2.0 * beta
        if norm > _HUGE:
            return bounds + [math.inf] * (len(target.blocks) - b)
        qk, vo = block.attention.merged()
        attention = float(certificate((qk, vo), blocks[b].merged, norm).lemma8)
        growth = 1.0
        for error in blocks[b].layers:
            growth *= 1.0 + spectral_norm(error).item()
        network_in = norm * (heads * math.sqrt(d) + 1.0) + attention
        own = 2.0 * attention + (growth - 1.0) * network_in  # twice: the residual also carries the attention's error
        inherited = 2.0 * heads * math.sqrt(d) * (beta * _expm1(6.0 * beta * drift) + 2.0 * drift)
        drift = own + inherited
        bounds.append(drift)
    return bounds


def _expm1(x: float) -> float:
    return math.expm1(x) if x < 700.0 else math.inf
