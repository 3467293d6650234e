"""The paper's bounds as plain functions of its quantities.

Paper: Otsuka et al., "The Strong Lottery Ticket Hypothesis for Multi-Head Attention Mechanisms", arXiv 2511.04217.
Statements go by their numbers there; its appendix proves Lemmas 4, 5 and Theorem 3 as Lemmas 7, 8 and Theorem 9.

All arguments are scalars without units; logarithms are natural. What the letters of the paper are called here:

===========  ==========  ================================================================================
paper        here        meaning
===========  ==========  ================================================================================
d1, d2       d_in,       input and output width of the layer
             d_out
H            heads       number of heads
n_K, n_V     hidden_qk,  key and value dimension per head of the random source
             hidden_vo
alpha        alpha       bound on the norm of each input x_i (length d_in)
epsilon      epsilon     bound on the error, max_i ||.||_2, and on the failure probability at the same time
C            constant    the universal constant of the subset-sum theorem; its value is not known
===========  ==========  ================================================================================

The length T of the sequence appears in none of the bounds.

The order is the paper's: linear layers, softmax, attention. The place of feed-forward layers (Theorem 10), blocks (11)
and transformers (14) is after attention.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import NamedTuple

# ---------------------------------------------------------------------------------------------------------------------
# Linear layers: Lemma 4 = 7
# ---------------------------------------------------------------------------------------------------------------------


def lemma7_accuracy(d_in: int, d_out: int, epsilon: float) -> float:
    """Largest error of an entry that Lemma 7 promises: ``epsilon / (d_in d_out)``.

    The target is a (d_out, d_in) matrix with entries in [-1, 1], approximated by the product of two masked U[-1, 1]
    factors. Each of its d_in * d_out entries is a subset sum of its own, solved to this accuracy and with this failure
    probability; the union bound over the entries makes the latter epsilon.

    Args:
        d_in, d_out: integers >= 1.
        epsilon: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 7.

    >>> lemma7_accuracy(2, 5, 0.1)
    0.01
    """
    _check_widths(d_in, d_out)
    _check_epsilon(epsilon)
    return epsilon / (d_in * d_out)


def lemma7_hidden(d_in: int, d_out: int, epsilon: float, constant: float) -> int:
    """Hidden dimension that Lemma 7 asks for: the least integer ``n >= d_in C log(d_in d_out / epsilon)``.

    With it, and with probability at least 1 - epsilon, masks exist that bring every entry of the product of the
    random (n, d_in) and (d_out, n) factors to within :func:`lemma7_accuracy` of the target's.

    Args:
        d_in, d_out: integers >= 1.
        epsilon: in (0, 1).
        constant: C, finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 7 (Lemma 4 is the same for targets of spectral norm at most 1).
    """
    _check_widths(d_in, d_out)
    _check_epsilon(epsilon)
    return _least_hidden(d_in, math.log(d_in) + math.log(d_out) - math.log(epsilon), constant)


# ---------------------------------------------------------------------------------------------------------------------
# Softmax: Lemma 5 = 8, and two tighter forms
# ---------------------------------------------------------------------------------------------------------------------


def lemma8_softmax(m: float, d_in: int, alpha: float) -> float:
    """Lemma 8: ``sqrt(d_in) alpha (exp(2m) - 1)``.

    Bounds ``||softmax(z; a) X - softmax(z + e; a) X||_2`` for logits z and their change e of shape (T,) with
    ``|e_k| <= m``, inputs X of shape (T, d_in) with rows of norm at most alpha, and any attention mask a that keeps
    at least one of the T. It does not depend on T.

    Args:
        m: largest change of a logit, finite and >= 0.
        d_in: integer >= 1.
        alpha: finite and > 0.

    Returns:
        The bound; ``inf`` where exp(2m) is beyond float64 (m above about 354).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 8.
    """
    _check_count("d_in", d_in)
    return math.sqrt(d_in) * exp_softmax(m, alpha)


def lemma5_softmax(m: float, d_in: int, alpha: float) -> float:
    """Lemma 5: ``4 sqrt(d_in) alpha m``, the linear form of :func:`lemma8_softmax` for small m.

    Args:
        m: largest change of a logit, in [0, 1/2].
        d_in: integer >= 1.
        alpha: finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 5.
    """
    _check_logits(m)
    if m > 0.5:
        raise ValueError(f"m={m}: must lie in [0, 1/2] for Lemma 5")
    _check_count("d_in", d_in)
    _check_positive("alpha", alpha)
    return 4 * math.sqrt(d_in) * alpha * m


def exp_softmax(m: float, alpha: float) -> float:
    """Lemma 8 without its slack: ``alpha (exp(2m) - 1)``.

    With p the weights before the change and p' those after it, the paper shows |p'_k - p_k| <= p_k (exp(2m) - 1).
    The weights p sum to 1 and each row of X has norm at most alpha, so the triangle inequality over the rows gives
    this bound at once; the factor sqrt(d_in) of Lemma 8 comes only from going through single coordinates.

    Args:
        m: largest change of a logit, finite and >= 0.
        alpha: finite and > 0.

    Returns:
        The bound; ``inf`` where exp(2m) is beyond float64.

    Raises:
        ValueError: an argument is out of its range.

    Source: the proof of Lemma 8, arXiv 2511.04217.
    """
    _check_logits(m)
    _check_positive("alpha", alpha)
    try:
        return alpha * math.expm1(2 * m)
    except OverflowError:
        return math.inf


def tanh_softmax(m: float, alpha: float) -> float:
    """The best bound of its kind: ``2 alpha tanh(m / 2)``, never above 2 alpha.

    It bounds the same distance as :func:`lemma8_softmax`, for every m. Derivation: let p and p' be the softmax of z
    and of z + e, with |e_k| <= m. For a set A of positions the odds change by

        odds p'(A) / odds p(A) = (sum_A p_k exp(e_k) / sum_A p_k) / (sum_notA p_k exp(e_k) / sum_notA p_k),

    a ratio of two averages of numbers in [exp(-m), exp(m)], so it lies in [exp(-2m), exp(2m)]. With s the logistic
    function this says p(A) = s(t), p'(A) = s(t') and |t - t'| <= 2m. The slope of s is even and falls away from 0, so
    the difference is largest for t, t' = -m, m:

        |p'(A) - p(A)| <= s(m) - s(-m) = tanh(m / 2).

    The largest such difference over all A is the total variation of p and p', half of sum_k |p'_k - p_k|. Hence

        ||sum_k (p'_k - p_k) x_k|| <= alpha sum_k |p'_k - p_k| <= 2 alpha tanh(m / 2).

    Equality: X = (x, -x) with ||x|| = alpha, z = (-m/2, m/2), e = (m, -m). A constant added to e changes nothing, so m
    may be taken as half the range of e over the kept positions.

    Args:
        m: largest change of a logit, finite and >= 0.
        alpha: finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    Source: derived here; a sharper form of Lemma 8 of arXiv 2511.04217.
    """
    _check_logits(m)
    _check_positive("alpha", alpha)
    return 2 * alpha * math.tanh(m / 2)


# ---------------------------------------------------------------------------------------------------------------------
# Multi-head attention: Theorem 3 = 9
# ---------------------------------------------------------------------------------------------------------------------


class Theorem9Hidden(NamedTuple):
    """Hidden dimensions per head that Theorem 9 asks for."""

    hidden_qk: int
    hidden_vo: int


@dataclass(frozen=True)
class Theorem9Budget:
    """How the proof of Theorem 9 shares out epsilon. All are upper bounds.

    ``heads * (softmax_term + vo_term)`` is epsilon.

    Attributes:
        qk_max_norm: largest error of an entry of the merged W_QK (d_in, d_in) of a head.
        logits: largest error of a logit that follows from it, times alpha^2 d_in.
        softmax_term: share of a head in the output error by its softmax, from ``logits`` by Lemma 5.
        vo_max_norm: largest error of an entry of the merged W_VO (d_in, d_out) of a head.
        vo_term: share of a head in the output error by its W_VO, times alpha d_in sqrt(d_out).
        failure: probability that some entry of some head misses its accuracy.
    """

    qk_max_norm: float
    logits: float
    softmax_term: float
    vo_max_norm: float
    vo_term: float
    failure: float


def theorem9_hidden(d_in: int, d_out: int, heads: int, alpha: float, epsilon: float, constant: float) -> Theorem9Hidden:
    """Hidden dimensions that Theorem 9 asks for, the least integers with

    - ``n_K >= d_in C log(8 heads alpha^3 d_in^(3/2) / epsilon)``,
    - ``n_V >= d_in C log(2 heads alpha d_in sqrt(d_out) / epsilon)``.

    With them, and with probability at least 1 - epsilon, a random attention layer with that many hidden dimensions
    per head can be masked so that ``max_i ||Attn_S(x_i) - Attn_T(x_i)||_2 <= epsilon`` for all inputs of norm at most
    alpha and every attention mask. Source: query and key entries U[-n_K^(1/4), n_K^(1/4)], value and output entries
    U[-1, 1]. Target: each of the four factors of each head has spectral norm at most 1.

    Args:
        d_in, d_out, heads: integers >= 1.
        alpha: finite and >= max(sqrt(d_in), sqrt(d_out)).
        epsilon: in (0, 1).
        constant: C, finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Theorem 9 (Theorem 3 in the main text).
    """
    _check_layer(d_in, d_out, heads, alpha, epsilon)
    # sums of logarithms: the products themselves may overflow
    qk = math.log(8 * heads) + 3 * math.log(alpha) + 1.5 * math.log(d_in) - math.log(epsilon)
    vo = math.log(2 * heads) + math.log(alpha) + math.log(d_in) + math.log(d_out) / 2 - math.log(epsilon)
    return Theorem9Hidden(_least_hidden(d_in, qk, constant), _least_hidden(d_in, vo, constant))


def theorem9_budget(d_in: int, d_out: int, heads: int, alpha: float, epsilon: float) -> Theorem9Budget:
    """The error budget in the proof of Theorem 9.

    Args:
        d_in, d_out, heads: integers >= 1.
        alpha: finite and >= max(sqrt(d_in), sqrt(d_out)).
        epsilon: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, proof of Theorem 9; failure as in :func:`theorem9_failure`.
    """
    failure = theorem9_failure(d_in, d_out, heads, alpha, epsilon)
    logits = epsilon / (8 * heads * alpha * math.sqrt(d_in))
    vo_term = epsilon / (2 * heads)
    return Theorem9Budget(
        qk_max_norm=logits / alpha / alpha / d_in,
        logits=logits,
        softmax_term=lemma5_softmax(logits, d_in, alpha),
        vo_max_norm=vo_term / (alpha * d_in * math.sqrt(d_out)),
        vo_term=vo_term,
        failure=failure,
    )


def theorem9_failure(d_in: int, d_out: int, heads: int, alpha: float, epsilon: float) -> float:
    """Failure probability of Theorem 9: ``sqrt(d_in) epsilon / (8 alpha^3) + sqrt(d_out) epsilon / (2 alpha)``.

    Lemma 7 at the accuracies of :func:`theorem9_budget` fails with probability at most
    ``sqrt(d_in) epsilon / (8 heads alpha^3)`` for W_QK and ``sqrt(d_out) epsilon / (2 heads alpha)`` for W_VO of one
    head. The last line of the paper's proof keeps these; all heads have to succeed, so here they are multiplied by
    heads, which then cancels. With ``alpha >= max(sqrt(d_in), sqrt(d_out))`` the sum is at most 5/8 epsilon, so the
    theorem stands as printed.

    Args:
        d_in, d_out, heads: integers >= 1.
        alpha: finite and >= max(sqrt(d_in), sqrt(d_out)).
        epsilon: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, proof of Theorem 9, corrected.
    """
    _check_layer(d_in, d_out, heads, alpha, epsilon)
    return epsilon * (math.sqrt(d_in) / alpha / alpha / alpha / 8 + math.sqrt(d_out) / alpha / 2)


# ---------------------------------------------------------------------------------------------------------------------
# Shared by all: the step from an accuracy to a width, and the checks
# ---------------------------------------------------------------------------------------------------------------------


def _least_hidden(d_in: int, log_inverse: float, constant: float) -> int:
    """The least integer ``>= d_in * constant * log_inverse``, with log_inverse = log(1 / accuracy of an entry)."""
    _check_positive("constant", constant)
    return math.ceil(d_in * Fraction(float(constant)) * Fraction(log_inverse))  # exact, whatever the constant


def _check_layer(d_in: int, d_out: int, heads: int, alpha: float, epsilon: float) -> None:
    _check_widths(d_in, d_out)
    _check_count("heads", heads)
    _check_positive("alpha", alpha)
    least = math.sqrt(max(d_in, d_out))
    if alpha < least:
        raise ValueError(f"alpha={alpha}: must be at least max(sqrt(d_in), sqrt(d_out)) = {least}")
    _check_epsilon(epsilon)


def _check_widths(d_in: int, d_out: int) -> None:
    _check_count("d_in", d_in)
    _check_count("d_out", d_out)


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: must be an int >= 1")


def _check_positive(name: str, value: float) -> None:
    if not (isinstance(value, Real) and 0 < value < math.inf):
        raise ValueError(f"{name}={value!r}: must be a finite number > 0")


def _check_epsilon(epsilon: float) -> None:
    if not (isinstance(epsilon, Real) and 0 < epsilon < 1):
        raise ValueError(f"epsilon={epsilon!r}: must lie in (0, 1)")


def _check_logits(m: float) -> None:
    if not (isinstance(m, Real) and 0 <= m < math.inf):
        raise ValueError(f"m={m!r}: must be a finite number >= 0")
