"""Softmax: Lemma 5 = 8, and two tighter forms."""

from __future__ import annotations

import math

from slth.numbers import plainly
from slth.theory.checks import check_count, check_not_negative, check_positive, expm1_or_inf


@plainly
def lemma8_softmax(m: float, d_in: int, alpha: float) -> float:
    """Compute the bound of Lemma 8: ``sqrt(d_in) alpha (exp(2m) - 1)``.

    It bounds ``||softmax(z; a) X - softmax(z + e; a) X||_2`` for logits z and their change e of shape (T,) with
    ``|e_k| <= m``, inputs X of shape (T, d_in) with rows of norm at most alpha, and any attention mask a that keeps
    at least one of the T positions. It does not depend on T.

    Args:
        m: largest change of a logit, finite and >= 0.
        d_in: integer >= 1.
        alpha: finite and > 0.

    Returns:
        The bound; ``inf`` where exp(2m) overflows (m above about 354).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 8.
    """
    check_count("d_in", d_in)
    return math.sqrt(d_in) * exp_softmax(m, alpha)


@plainly
def lemma5_softmax(m: float, d_in: int, alpha: float) -> float:
    """Compute the bound of Lemma 5: ``4 sqrt(d_in) alpha m``, the linear form of :func:`lemma8_softmax` for small m.

    Args:
        m: largest change of a logit, in [0, 1/2].
        d_in: integer >= 1.
        alpha: finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 5.
    """
    check_not_negative("m", m)
    if m > 0.5:
        raise ValueError(f"m={m}: must lie in [0, 1/2] for Lemma 5")
    check_count("d_in", d_in)
    check_positive("alpha", alpha)
    return 4 * math.sqrt(d_in) * alpha * m


@plainly
def exp_softmax(m: float, alpha: float) -> float:
    """Compute the bound of Lemma 8 without its factor sqrt(d_in): ``alpha (exp(2m) - 1)``.

    With p the weights before the change and p' those after it, the paper shows |p'_k - p_k| <= p_k (exp(2m) - 1).
    The weights p sum to 1 and each row of X has norm at most alpha, so the triangle inequality over the rows gives
    this bound; the factor sqrt(d_in) of Lemma 8 is only due to bounding single coordinates.

    Args:
        m: largest change of a logit, finite and >= 0.
        alpha: finite and > 0.

    Returns:
        The bound; ``inf`` where exp(2m) overflows.

    Raises:
        ValueError: an argument is out of its range.

    Source: the proof of Lemma 8, arXiv 2511.04217.
    """
    check_not_negative("m", m)
    check_positive("alpha", alpha)
    return alpha * expm1_or_inf(2 * m)


@plainly
def tanh_softmax(m: float, alpha: float) -> float:
    """Compute the sharp form of Lemma 8: ``2 alpha tanh(m / 2)``, never above 2 alpha.

    It bounds the same distance as :func:`lemma8_softmax`, for every m. Derivation: let p and p' be the softmax of z
    and of z + e, with |e_k| <= m. For a set A of positions the odds change by the factor

        odds p'(A) / odds p(A) = (sum_A p_k exp(e_k) / sum_A p_k) / (sum_notA p_k exp(e_k) / sum_notA p_k),

    a ratio of two averages of numbers in [exp(-m), exp(m)], so it lies in [exp(-2m), exp(2m)]. With s the logistic
    function this means p(A) = s(t), p'(A) = s(t') and |t - t'| <= 2m. The slope of s is even and decreases away from 0,
    so the difference is largest for t, t' = -m, m:

        |p'(A) - p(A)| <= s(m) - s(-m) = tanh(m / 2).

    The largest such difference over all A is the total variation of p and p', half of sum_k |p'_k - p_k|. Hence

        ||sum_k (p'_k - p_k) x_k|| <= alpha sum_k |p'_k - p_k| <= 2 alpha tanh(m / 2).

    Equality holds for X = (x, -x) with ||x|| = alpha, z = (-m/2, m/2), e = (m, -m). Adding a constant to e changes
    nothing, so m may be half the range of e over the kept positions.

    Args:
        m: largest change of a logit, finite and >= 0.
        alpha: finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    Source: derived here; a sharper form of Lemma 8 of arXiv 2511.04217.
    """
    check_not_negative("m", m)
    check_positive("alpha", alpha)
    return 2 * alpha * math.tanh(m / 2)
