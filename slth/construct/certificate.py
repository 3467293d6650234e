"""Bounds on the output error of a pruned attention, computed from the errors that its merged matrices have.

Setting: target and source with H heads and merged matrices QK_h (d_in x d_in, scale included) and VO_h (d_in x d_out);
inputs x_1 .. x_T of norm <= alpha, any T, any attention mask with a True in each row. Wanted: a bound on
max_i |Attn_S(x_i) - Attn_T(x_i)|.

Derivation. Fix a query x_i and write, for head h, D_h = QK_S,h - QK_T,h; E_h = VO_S,h - VO_T,h; p_T, p_S the two
rows of attention weights; z_T = sum_k p_T,k x_k and z_S alike; y_h = z_S - z_T. Then

    Attn_S(x_i) - Attn_T(x_i) = sum_h  VO_h^T y_h + E_h^T z_h,    |z_h| <= alpha,                                  (1)

with VO_h = VO_S,h and z_h = z_T, or VO_h = VO_T,h and z_h = z_S; whichever is smaller is taken. The logits of the two
softmaxes differ by e_k = <u_h, x_k>, u_h = D_h^T x_i, so |u_h| <= alpha |D_h|_2 and |e_k| <= m_h = alpha^2 |D_h|_2.

* Total variation. Two softmaxes whose logits differ by at most m differ by at most tanh(m/2) in total variation: for a
  set A of keys with weight a under p_T, the weight under p_S is at most a e^m / (a e^m + (1-a) e^-m); the difference is
  largest at a = 1 / (1 + e^m), where it is tanh(m/2). Two averages of points of norm <= alpha whose weights differ by
  tau in total variation lie within 2 alpha tau. Hence |y_h| <= 2 alpha tanh(m_h/2).
* Covariance. Along the logits z + s e, 0 <= s <= 1, the average moves by d/ds sum_k p_k x_k = Cov_s u_h, Cov_s the
  covariance of the points under the weights at s. Its trace is at most alpha^2, so |y_h| <= alpha^2 |u_h|, and since
  all heads share x_i:  (sum_h |y_h|^2)^(1/2) <= alpha^3 |[D_1 .. D_H]|_2. Moreover VO_h^T Cov u_h is a mixture, of
  total weight alpha^2, of VO_h^T c <c, u_h> over unit vectors c, so that
  |VO_h^T y_h| <= alpha^3 max_c |VO_h^T c| |D_h c| <= alpha^3 min_t lambda_max(t VO_h VO_h^T + D_h^T D_h / t) / 2.
  It beats total variation where the directions that VO_h amplifies are not those in which D_h errs.

With [VO] the heads' matrices stacked on top of each other, the first sum of (1) is at most the least of

    sum_h 2 alpha tanh(m_h/2) |VO_h|_2                                   (heads added up)
    |[VO]|_2 (sum_h (2 alpha tanh(m_h/2))^2)^(1/2)                       (heads stacked)
    |[VO]|_2 alpha^3 |[D_1 .. D_H]|_2                                    (covariance, stacked)
    sum_h min(2 alpha tanh(m_h/2) |VO_h|_2, alpha^3 lambda_max(..)/2)    (covariance, aligned)

and the second at most min(sum_h alpha |E_h|_2, alpha sqrt(H) |[E]|_2). What float64 may add when both attentions are
evaluated in float64, sums over d_in coordinates and up to `length` tokens, is covered by a last term of some
(16 d_in + 2 length) 1e-16 relative to the outputs.

Lemma 8 with its exponential, as Theorem 9 uses it, is kept beside it for comparison: it is infinite or far above the
error wherever logits differ by more than about 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Certificate:
    """Bounds on max_i |Attn_S(x_i) - Attn_T(x_i)|_2 over inputs of norm <= alpha, each (...,) float64.

    bound: the least that is proved here; lemma8: the paper's own form (Lemma 8 inside Theorem 9); softmax and values:
    the two parts of bound.
    """

    bound: torch.Tensor
    lemma8: torch.Tensor
    softmax: torch.Tensor
    values: torch.Tensor
    alpha: float


def certificate(target: Merged, source: Merged, alpha: float, *, length: int = 64) -> Certificate:
    """Certify a source against a target by their merged matrices.

    target, source: (qk (..., heads, d_in, d_in), vo (..., heads, d_in, d_out)), leading axes broadcast; alpha > 0
    bounds the norm of every input token, and length their number as far as rounding goes. In float64. Raises ValueError
    for alpha that is not finite and positive, for other shapes, and for values that are not finite.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha={alpha}: must be a finite number > 0, the largest norm of an input token")
    for label, pair in (("target", target), ("source", source)):
        if pair[0].shape[-3:] != target[0].shape[-3:] or pair[1].shape[-3:] != target[1].shape[-3:]:
            raise ValueError(
                f"{label} of shapes {tuple(pair[0].shape)} and {tuple(pair[1].shape)}: must end in the target's "
                f"{tuple(target[0].shape[-3:])} and {tuple(target[1].shape[-3:])}"
            )
        if not all(torch.isfinite(matrix).all() for matrix in pair):
            raise ValueError(f"{label} holds NaN or infinite values: all must be finite")
    (qk_t, vo_t), (qk_s, vo_s) = ([m.detach().double() for m in pair] for pair in (target, source))
    d_qk, d_vo = qk_s - qk_t, vo_s - vo_t  # D_h, E_h
    qk_s, vo_s, qk_t, vo_t = (
        m.expand(d.shape) for m, d in zip((qk_s, vo_s, qk_t, vo_t), (d_qk, d_vo, d_qk, d_vo), strict=True)
    )
    softmax = torch.minimum(_softmax_term(d_qk, vo_s, alpha), _softmax_term(d_qk, vo_t, alpha))
    values = _value_term(d_vo, alpha)
    rounding = _rounding_term((qk_t, qk_s), (vo_t, vo_s), alpha, length)
    entries = alpha**2 * qk_t.shape[-1] * d_qk.abs().amax((-2, -1))  # by which the paper bounds the logits
    return Certificate(softmax + values + rounding, _lemma8(entries, vo_t, d_vo, alpha), softmax, values, alpha)


def logit_certificate(
    moved: torch.Tensor,
    target: torch.Tensor,
    source: torch.Tensor,
    alpha: float,
    *,
    logits: torch.Tensor,
    outputs: torch.Tensor,
    steps: float,
) -> Certificate:
    """Certify a source whose logits are no bilinear form of the inputs, from how far they may move.

    moved (heads,): bounds m_h on the differences of the two logits of head h, for inputs of norm <= alpha; of the
    bounds above only the two by total variation stand, heads added up and heads stacked. target, source
    (heads, d_in, d_out): W_VO. logits, outputs (heads,): bounds on the sizes of what is rounded in each, in `steps`
    roundings. All float64.
    """
    reach = 2.0 * alpha * torch.tanh(0.5 * moved)  # (heads,): |y_h|
    softmax = torch.minimum(_total_variation(reach, target), _total_variation(reach, source))
    values = _value_term(source - target, alpha)
    bound = softmax + values + _rounding(steps, outputs, logits)
    return Certificate(bound, _lemma8(moved, target, source - target, alpha), softmax, values, alpha)


#: (W_QK (..., heads, d_in, d_in), the scale included, W_VO (..., heads, d_in, d_out))
Merged = tuple[torch.Tensor, torch.Tensor]

_GRID = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)  # t, after both matrices are scaled to norm 1
_TINY = torch.finfo(torch.float64).tiny


def spectral_norm(matrix: torch.Tensor) -> torch.Tensor:
    """|.|_2 of the last two axes."""
    norm: torch.Tensor = torch.linalg.matrix_norm(matrix, ord=2)
    return norm


def stacked(matrix: torch.Tensor) -> torch.Tensor:
    """(..., heads, rows, columns) -> (..., heads * rows, columns)."""
    return matrix.flatten(-3, -2)


def _softmax_term(d_qk: torch.Tensor, vo: torch.Tensor, alpha: float) -> torch.Tensor:
    moved = 2.0 * alpha * torch.tanh(0.5 * alpha**2 * spectral_norm(d_qk))  # (..., heads): |y_h| by total variation
    added = moved * spectral_norm(vo)
    aligned = torch.minimum(added, alpha**3 * _aligned(d_qk, vo))
    vo_stacked = spectral_norm(stacked(vo))
    # [D_1 .. D_H] side by side has the norm of the transposes stacked
    together = alpha**3 * spectral_norm(stacked(d_qk.mT))
    return torch.stack(
        (aligned.sum(-1), vo_stacked * torch.linalg.vector_norm(moved, dim=-1), vo_stacked * together)
    ).amin(0)


def _total_variation(moved: torch.Tensor, vo: torch.Tensor) -> torch.Tensor:
    """The lesser of heads added up and heads stacked, for averages that moved by so much (..., heads)."""
    added = (moved * spectral_norm(vo)).sum(-1)
    return torch.minimum(added, spectral_norm(stacked(vo)) * torch.linalg.vector_norm(moved, dim=-1))


def _aligned(d_qk: torch.Tensor, vo: torch.Tensor) -> torch.Tensor:
    """At least max_c |VO^T c| |D c| over unit c: the least lambda_max(t VO VO^T + D^T D / t) / 2 of a grid of t."""
    norm_vo, norm_d = spectral_norm(vo), spectral_norm(d_qk)
    vo, d = (m / norm.clamp_min(_TINY)[..., None, None] for m, norm in ((vo, norm_vo), (d_qk, norm_d)))
    a, b = vo @ vo.mT, d.mT @ d  # norm 1, or 0
    least = torch.stack([torch.linalg.eigvalsh(t * a + b / t)[..., -1] for t in _GRID]).amin(0)
    return 0.5 * least * norm_vo * norm_d


def _value_term(d_vo: torch.Tensor, alpha: float) -> torch.Tensor:
    heads = d_vo.shape[-3]
    return alpha * torch.minimum(spectral_norm(d_vo).sum(-1), math.sqrt(heads) * spectral_norm(stacked(d_vo)))


def _rounding_term(
    qk: tuple[torch.Tensor, torch.Tensor], vo: tuple[torch.Tensor, torch.Tensor], alpha: float, length: int
) -> torch.Tensor:
    d_in = qk[0].shape[-1]
    logits, outputs = (
        alpha**2 * (spectral_norm(qk[0]) + spectral_norm(qk[1])),
        alpha * (spectral_norm(vo[0]) + spectral_norm(vo[1])),
    )
    return _rounding(16.0 * d_in + 2.0 * length, outputs, logits)


def _rounding(steps: float, outputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return steps * torch.finfo(torch.float64).eps * (outputs * (1.0 + logits)).sum(-1)


def _lemma8(m: torch.Tensor, vo_t: torch.Tensor, d_vo: torch.Tensor, alpha: float) -> torch.Tensor:
    """Sum of sqrt(d1) alpha (exp(2m) - 1) |VO_T,h| + d1 sqrt(d2) alpha |E_h|_max, where logits differ by <= m."""
    d_in, d_out = d_vo.shape[-2:]
    norm = spectral_norm(vo_t)
    softmax = math.sqrt(d_in) * alpha * torch.where(norm > 0, torch.expm1(2.0 * m) * norm, 0.0)  # not inf * 0
    values = d_in * math.sqrt(d_out) * alpha * d_vo.abs().amax((-2, -1))
    return (softmax + values).sum(-1)
