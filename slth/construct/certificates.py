"""Bounds on the output error of a pruned attention, computed from the errors of its merged matrices.

Setting: target and source with H heads and merged matrices QK_h (d_in x d_in, scale included) and VO_h (d_in x d_out);
inputs x_1 .. x_T of norm <= alpha, any T, any attention mask with a True in each row. The aim is a bound on
max_i |Attn_S(x_i) - Attn_T(x_i)|.

Derivation. Fix a query x_i and write, for head h, D_h = QK_S,h - QK_T,h; E_h = VO_S,h - VO_T,h; p_T, p_S the two
rows of attention weights; z_T = sum_k p_T,k x_k and z_S alike; y_h = z_S - z_T. Then

    Attn_S(x_i) - Attn_T(x_i) = sum_h  VO_h^T y_h + E_h^T z_h,    |z_h| <= alpha,                                  (1)

with VO_h = VO_S,h and z_h = z_T, or VO_h = VO_T,h and z_h = z_S. Each head may take either: |z_h| <= alpha holds for
both, and y_h is the same. The logits of the two softmaxes differ by e_k = <u_h, x_k> with u_h = D_h^T x_i, so
|u_h| <= alpha |D_h|_2 and |e_k| <= m_h = alpha^2 |D_h|_2.

* Total variation. Two softmaxes whose logits differ by at most m differ by at most tanh(m/2) in total variation: for a
  set A of keys with weight a under p_T, the weight under p_S is at most a e^m / (a e^m + (1-a) e^-m); the difference is
  largest at a = 1 / (1 + e^m), where it is tanh(m/2). Two averages of points of norm <= alpha whose weights differ by
  tau in total variation lie within 2 alpha tau. Hence |y_h| <= 2 alpha tanh(m_h/2).
* Covariance. Along the logits z + s e, 0 <= s <= 1, the average has derivative d/ds sum_k p_k x_k = Cov_s u_h, where
  Cov_s is the covariance of the points under the weights at s. Its trace is at most alpha^2, so |y_h| <= alpha^2 |u_h|,
  and since
  all heads share x_i:  (sum_h |y_h|^2)^(1/2) <= alpha^3 |[D_1 .. D_H]|_2. Moreover VO_h^T Cov u_h is a mixture, of
  total weight alpha^2, of VO_h^T c <c, u_h> over unit vectors c, so that
  |VO_h^T y_h| <= alpha^3 max_c |VO_h^T c| |D_h c| <= alpha^3 min_t lambda_max(t VO_h VO_h^T + D_h^T D_h / t) / 2.
  This bound is below that of total variation where VO_h amplifies other directions than those in which D_h is large.

With [VO] the heads' matrices stacked on top of each other, the first sum of (1) is at most the least of

    sum_h min(2 alpha tanh(m_h/2) |VO_h|_2, alpha^3 lambda_max(..)/2)    (heads added up, each the lesser of S and T)
    |[VO]|_2 (sum_h (2 alpha tanh(m_h/2))^2)^(1/2)                       (heads stacked)
    |[VO]|_2 alpha^3 |[D_1 .. D_H]|_2                                    (covariance, stacked)

where the stacked ones take the least |[VO]|_2 of three choices: all heads from S, all from T, or each head from the
side with the smaller |VO_h|_2. The second sum is at most min(sum_h alpha |E_h|_2, alpha sqrt(H) |[E]|_2).

A last term, `slth.construct.rounding`, bounds the rounding errors when both are evaluated in float64. It is relative to
the factors if they are known, else to the merged matrices. float32 rounds more, by an amount that grows with the
logits: on the README's example 3e-7 of the outputs at alpha 4, 1e-6 at 8, 3e-6 at 16, 1e-5 at 64, and at most 2^29
times `Certificate.rounding`.

Lemma 8 with its exponential, as Theorem 9 uses it, is computed for comparison: it is infinite or far above the error
wherever logits differ by more than about 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from slth.attention import Attention
from slth.construct.checks import check_alike, check_alpha, check_attention, check_finite, check_merged
from slth.construct.copies import double
from slth.construct.rounding import Evaluated, Merged, Sizes, average_moved, spectral_norm
from slth.numbers import as_int

__all__ = ["Certificate", "Evaluated", "Merged", "certificate", "logit_certificate", "spectral_norm", "stacked"]


@dataclass(frozen=True)
class Certificate:
    """Bounds on max_i |Attn_S(x_i) - Attn_T(x_i)|_2 over inputs of norm <= alpha, each (...,) float64, never NaN.

    Attributes:
        bound: the sum of softmax, values and rounding; infinite where an intermediate result may overflow.
        lemma8: the bound in the paper's form (Lemma 8 inside Theorem 9).
        softmax: the part that is due to different logits.
        values: the part that is due to different W_VO.
        rounding: bound on the rounding errors of float64; those of float32 are at most 2^29 times as large.
        alpha: bound on the norm of the input tokens.
    """

    bound: torch.Tensor
    lemma8: torch.Tensor
    softmax: torch.Tensor
    values: torch.Tensor
    rounding: torch.Tensor
    alpha: float


def certificate(
    target: Attention | Merged,
    source: Attention | Merged,
    alpha: float,
    *,
    length: int = 64,
) -> Certificate:
    """Bound the output error of a pruned source against its target. Computed in float64 on the CPU.

    Rounding is covered for a module in whatever order it is evaluated in float64, and for merged matrices as evaluated
    by `slth.attention.merged_attention`.

    Args:
        target: an attention that merges, or merged matrices (qk (..., heads, d_in, d_in), vo (..., heads, d_in,
            d_out)).
        source: the same, already pruned. Leading axes broadcast.
        alpha: bound > 0 on the norm of every input token.
        length: bound >= 1 on the number of tokens; only the rounding term depends on it.

    Raises ValueError for an alpha that is not finite and positive, for different shapes or numbers of heads, where only
    one module is causal, and for values that are not finite. Raises TypeError for other kinds of target or source.
    """
    alpha, length = check_alpha(alpha), as_int("length", length, 1)
    check_alike(target, source, ("causal",))
    (qk_t, vo_t), sizes_t = _evaluated("target", target)
    (qk_s, vo_s), sizes_s = _evaluated("source", source)
    for matrix, other in ((qk_s, qk_t), (vo_s, vo_t)):
        if matrix.shape[-3:] != other.shape[-3:]:
            raise ValueError(
                f"source of shapes {tuple(qk_s.shape)} and {tuple(vo_s.shape)}: must end in the target's "
                f"{tuple(qk_t.shape[-3:])} and {tuple(vo_t.shape[-3:])}"
            )
    d_qk, d_vo = qk_s - qk_t, vo_s - vo_t  # D_h, E_h
    m = alpha * (alpha * spectral_norm(d_qk))
    # [D_1 .. D_H] in one row has the norm of the stacked transposes
    together = alpha * (alpha * spectral_norm(stacked(d_qk.mT)))
    pair = [_Values.of(vo.expand(d_vo.shape), alpha) for vo in (vo_s, vo_t)]
    aligned = [_product(m, values.norms) * _aligned(d_qk, values.vo) for values in pair]
    softmax = _softmax_term(m, pair, aligned, together, alpha)
    values = _value_term(d_vo, alpha)
    rounding = _rounding(pair, (sizes_s, sizes_t), alpha, length)
    entries = alpha * (alpha * qk_t.shape[-1] * d_qk.abs().amax((-2, -1)))  # the paper's bound on the logits
    lemma8 = _lemma8(entries, vo_t, d_vo, alpha)
    return Certificate(softmax + values + rounding, lemma8, softmax, values, rounding, alpha)


def logit_certificate(
    moved: torch.Tensor,
    target: torch.Tensor,
    source: torch.Tensor,
    alpha: float,
    *,
    sizes: tuple[Sizes, Sizes],
    length: int,
) -> Certificate:
    """Certify a source whose logits are no bilinear form of the inputs, from bounds on the differences of logits.

    Only the two bounds by total variation apply here: heads added up and heads stacked. All tensors are float64.

    Args:
        moved: (heads,), bounds m_h on the differences of the logits of head h, for inputs of norm <= alpha.
        target: W_VO (heads, d_in, d_out) of the target.
        source: W_VO (heads, d_in, d_out) of the source.
        alpha: bound on the norm of every input token.
        sizes: the norms that rounding is relative to, of target and source.
        length: number of tokens.
    """
    pair = [_Values.of(vo, alpha) for vo in (source, target)]
    softmax = _softmax_term(moved, pair, [], torch.full((), torch.inf, dtype=moved.dtype), alpha)
    values = _value_term(source - target, alpha)
    rounding = _rounding(pair, sizes[::-1], alpha, length)
    lemma8 = _lemma8(moved, target, source - target, alpha)
    return Certificate(softmax + values + rounding, lemma8, softmax, values, rounding, alpha)


def stacked(matrix: torch.Tensor) -> torch.Tensor:
    """Stack the matrices of all heads: (..., heads, rows, columns) -> (..., heads * rows, columns)."""
    return matrix.flatten(-3, -2)


def _evaluated(name: str, given: Attention | Merged) -> tuple[Merged, Sizes]:
    if isinstance(given, tuple | list):
        merged = check_merged(name, given)
        return merged, given.sizes if isinstance(given, Evaluated) else Sizes.of_merged(merged)
    evaluated = evaluate(name, given)
    return evaluated, evaluated.sizes


@torch.no_grad()
def evaluate(name: str, module: Attention) -> Evaluated:
    """Merge a module in float64 and compute the sizes for its rounding; `name` is the argument's name in errors."""
    check_attention(name, module)
    module = double(module)
    check_finite(name, module)
    return Evaluated(check_merged(name, module.merged()), Sizes.of(module))


# ---------------------------------------------------------------- the terms


@dataclass(frozen=True)
class _Values:
    """VO (..., heads, d_in, d_out) of target or source, alpha |VO_h|_2 (..., heads) and alpha |[VO]|_2 (...,)."""

    vo: torch.Tensor
    norms: torch.Tensor
    stack: torch.Tensor

    @staticmethod
    def of(vo: torch.Tensor, alpha: float) -> _Values:
        return _Values(vo, alpha * spectral_norm(vo), alpha * spectral_norm(stacked(vo)))


_GRID = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)  # t, after both matrices are scaled to norm 1


def _softmax_term(
    m: torch.Tensor, pair: list[_Values], aligned: list[torch.Tensor], together: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Bound the first sum of (1), from bounds m (..., heads) on the logits and, if available, the covariance.

    aligned: alpha^3 lambda_max(..) / 2 (..., heads) of target and source; together: alpha^2 |[D_1 .. D_H]|_2 (...,).
    """
    moved = average_moved(m)
    added = [_product(moved, values.norms) for values in pair] + aligned
    first, second = pair
    lesser = (first.norms <= second.norms)[..., None, None]
    mixed = alpha * spectral_norm(stacked(torch.where(lesser, first.vo, second.vo)))
    stack = torch.minimum(torch.minimum(first.stack, second.stack), mixed)
    apart = torch.minimum(torch.linalg.vector_norm(moved, dim=-1), together)
    return torch.minimum(torch.stack(added).amin(0).sum(-1), _product(stack, apart))


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply two bounds, with 0 times infinity = 0."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def _aligned(d_qk: torch.Tensor, vo: torch.Tensor) -> torch.Tensor:
    """Bound max_c |VO^T c| |D c| over unit c from above, with VO and D scaled to norm 1.

    The bound is the least lambda_max(t VO VO^T + D^T D / t) / 2 over a grid of t.
    """
    vo, d = _unit(vo), _unit(d_qk)
    a, b = vo @ vo.mT, d.mT @ d  # norm 1, or 0
    least: torch.Tensor = torch.stack([torch.linalg.eigvalsh(t * a + b / t)[..., -1] for t in _GRID]).amin(0)
    return 0.5 * least


def _unit(matrix: torch.Tensor) -> torch.Tensor:
    """Scale matrices (..., rows, columns) to norm 1, without overflow; zero matrices stay zero."""
    for size in (lambda m: m.abs().amax((-2, -1)), spectral_norm):
        norm = size(matrix)[..., None, None]
        matrix = matrix / torch.where(norm > 0, norm, 1.0)
    return matrix


def _value_term(d_vo: torch.Tensor, alpha: float) -> torch.Tensor:
    heads = d_vo.shape[-3]
    return alpha * torch.minimum(spectral_norm(d_vo).sum(-1), math.sqrt(heads) * spectral_norm(stacked(d_vo)))


def _rounding(pair: list[_Values], sizes: tuple[Sizes, Sizes], alpha: float, length: int) -> torch.Tensor:
    """Bound the rounding errors of target and source together."""
    source, target = (size.rounding(values.norms, alpha, length) for size, values in zip(sizes, pair, strict=True))
    return source + target


def _lemma8(m: torch.Tensor, vo_t: torch.Tensor, d_vo: torch.Tensor, alpha: float) -> torch.Tensor:
    """Sum sqrt(d1) alpha (exp(2m) - 1) |VO_T,h| + d1 sqrt(d2) alpha |E_h|_max over heads; logits differ by <= m."""
    d_in, d_out = d_vo.shape[-2:]
    softmax = math.sqrt(d_in) * alpha * _product(torch.expm1(2.0 * m), spectral_norm(vo_t))
    values = d_in * math.sqrt(d_out) * alpha * d_vo.abs().amax((-2, -1))
    return (softmax + values).sum(-1)
