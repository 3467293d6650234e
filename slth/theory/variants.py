"""Attentions with shared heads: Theorem 9 and Lemma 7 of arXiv 2511.04217 for them, and their ranks.

None of this is in that paper. The constructions are those of `slth.construct.variant`.

Sharing. The proof of Theorem 9 adds up, over all entries of all heads, the probabilities that a subset sum fails. It
does not need independent entries, so heads may share the factor with the structural mask, which is the same for all
heads. Each head needs its own other factor.

Chains. A T that keeps its diagonal makes a candidate a product of L factors instead of two. The subset-sum theorem
(Lueker 1998, Corollary 3.3) requires that a part of a candidate's density is uniform on [-1/2, 1/2]. If this part has
mass p, then at least n p / 2 of n candidates come from it, except with probability exp(-n p / 8). So
n = C log(1 / accuracy) candidates suffice, with a C that is proportional to 1 / p.
"""

from __future__ import annotations

import math
import sys

from scipy.special import exp1

from slth.numbers import plainly
from slth.theory.attention import theorem9_hidden
from slth.theory.checks import check_count, check_epsilon, check_layer, check_positive
from slth.theory.constants import Constant, constant_of, least_hidden
from slth.theory.linear import lemma7_hidden

# ---------------------------------------------------------------- densities


@plainly
def product_density(x: float, factors: int) -> float:
    """Compute the density at x of a product of L = factors independent U[-1, 1].

    It is ``(-ln |x|)^(L-1) / (2 (L-1)!)`` on [-1, 1].

    Args:
        x: a number; the density is 0 outside [-1, 1], and infinite at 0 for two factors or more.
        factors: integer >= 1.

    Raises:
        ValueError: factors is out of its range, or x is not a number.

    Derivation: -ln |U| is exponential, so -ln |x| is a sum of L exponentials, which has a Gamma density.

    >>> round(product_density(0.5, 2), 3)
    0.347
    """
    check_count("factors", factors)
    if math.isnan(x):
        raise ValueError(f"x={x}: must be a number")
    if abs(x) > 1:
        return 0.0
    if x == 0:
        return 0.5 if factors == 1 else math.inf
    return (-math.log(abs(x))) ** (factors - 1) / (2 * math.factorial(factors - 1))


@plainly
def uniform_part(factors: int) -> float:
    """Compute the mass of the part of :func:`product_density` that is uniform on [-1/2, 1/2].

    It is the density at 1/2, where it is least: .500, .347, .120, .028 for 1, 2, 3, 4 factors.

    Args:
        factors: integer >= 1.

    Raises:
        ValueError: factors is out of its range.
    """
    return product_density(0.5, factors)


@plainly
def normal_part(std: float) -> float:
    """Compute the same mass for U[-1, 1] times a normal number: ``E1(1 / (8 std^2)) / (2 sqrt(2 pi) std)``.

    A key of explicit attention is a sum of U[-1, 1] weighted by a column of its mixing tensor. With many components it
    is nearly normal, and its standard deviation is the column's norm over sqrt(3). Given the normal number k, the
    product is uniform on [-|k|, |k|], so its density at 1/2 is the mean of 1 / (2 |k|) over |k| >= 1/2.

    Args:
        std: finite and > 0.

    Raises:
        ValueError: std is out of its range.
    """
    check_positive("std", std)
    inverse = 1 / std
    mean = exp1(max(inverse * inverse / 8, sys.float_info.min)) * inverse
    return float(mean) / (2 * math.sqrt(2 * math.pi))


@plainly
def chain_constant(factors: int, constant: Constant) -> float:
    """Compute C for candidates that are products of more factors: C for two, times the ratio of the uniform parts.

    It is 1, 2.9 and 12.5 times C for 2, 3 and 4 factors. This is an upper bound from the uniform part alone; the
    measured C grows far less.

    Args:
        factors: integer >= 2.
        constant: C, finite and > 0, or "measured".

    Raises:
        ValueError: an argument is out of its range.
    """
    check_count("factors", factors)
    if factors < 2:
        raise ValueError(f"factors={factors}: must be an int >= 2")
    return constant_of("constant", constant) * (uniform_part(2) / uniform_part(factors))


@plainly
def chain_hidden(d_in: int, d_out: int, epsilon: float, factors: int, constant: Constant) -> int:
    """Compute Lemma 7's hidden dimension for two factors with factors - 2 diagonals between them, all U[-1, 1].

    It is the least n with ``n >= d_in C log(d_in d_out / epsilon)`` and the C of :func:`chain_constant`.

    Args:
        d_in, d_out: integers >= 1.
        epsilon: in (0, 1).
        factors: integer >= 2.
        constant: C for two factors, finite and > 0, or "measured".

    Raises:
        ValueError: an argument is out of its range.
    """
    return lemma7_hidden(d_in, d_out, epsilon, chain_constant(factors, constant))


# ---------------------------------------------------------------- widths


@plainly
def grouped_hidden(d_in: int, d_out: int, heads: int, alpha: float, epsilon: float, constant: Constant) -> int:
    """Compute the hidden dimension per head of grouped- or multi-query attention: the larger of Theorem 9's two.

    It does not depend on the number of key and value heads, which have structural masks.

    Args:
        d_in, d_out, heads: integers >= 1.
        alpha: finite and >= max(sqrt(d_in), sqrt(d_out)).
        epsilon: in (0, 1).
        constant: C, finite and > 0, or "measured".

    Raises:
        ValueError: an argument is out of its range.
    """
    return max(theorem9_hidden(d_in, d_out, heads, alpha, epsilon, constant))


@plainly
def tied_hidden(d_in: int, d_out: int, heads: int, alpha: float, epsilon: float, constant: Constant) -> int:
    """Compute the hidden dimension per head of grouped-tied attention with a tied projection U[-n^(1/4), n^(1/4)].

    Keys are as in Theorem 9. Values are n^(1/4) times as large as there, so their sums need an accuracy that is n^(1/4)
    times finer: the least n that is also ``>= d_in C (log(2 heads alpha d_in sqrt(d_out) / epsilon) + log(n) / 4)``.

    Arguments and errors are those of :func:`grouped_hidden`.
    """
    least = grouped_hidden(d_in, d_out, heads, alpha, epsilon, constant)
    values = math.log(2 * heads) + math.log(alpha) + math.log(d_in) + math.log(d_out) / 2 - math.log(epsilon)
    while (asked := least_hidden(d_in, values + math.log(least) / 4, constant)) > least:  # converges: the steps shrink
        least = asked
    return least


@plainly
def knocking_hidden(
    d_in: int, d_out: int, heads: int, alpha: float, epsilon: float, constant: Constant, *, mix: str = "qkv"
) -> int:
    """Compute the hidden dimension per head of linear knocking heads with T of U[-1, 1]: Theorem 9 with other C.

    A candidate of W_Q W_K^T has 2 factors, and one more for each of "q" and "k" in mix. A candidate of W_V W_O has 2
    factors, and one more for "v" in mix.

    Args:
        mix: letters of "qkv".
        others: as for :func:`grouped_hidden`.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not set(mix) <= set("qkv"):
        raise ValueError(f"mix={mix!r}: must be made of q, k, v")
    qk, vo = (chain_constant(2 + len(set(mix) & set(letters)), constant) for letters in ("qk", "v"))
    layer = (d_in, d_out, heads, alpha, epsilon)
    return max(theorem9_hidden(*layer, qk).hidden_qk, theorem9_hidden(*layer, vo).hidden_vo)


@plainly
def explicit_hidden(
    d_in: int, d_out: int, heads: int, alpha: float, epsilon: float, constant: Constant, *, norm: float = 1.0
) -> int:
    """Compute the hidden dimension per head of explicit attention, without its norm: Theorem 9 with another C.

    It assumes many components. norm is the norm of each column of the mixing tensors, finite and at least about 1/50;
    C is multiplied by uniform_part(2) / normal_part(norm / sqrt(3)), which is 1.3 at norm 1. Other arguments and errors
    are those of :func:`grouped_hidden`.
    """
    check_positive("norm", norm)
    part = normal_part(norm / math.sqrt(3))
    if part < sys.float_info.min:
        raise ValueError(f"norm={norm}: must not be so small that no key is as large as 1/2")
    factor = uniform_part(2) / part
    return grouped_hidden(d_in, d_out, heads, alpha, epsilon, constant_of("constant", constant) * factor)


@plainly
def projection_width(
    d_in: int, d_out: int, heads: int, hidden: int, alpha: float, epsilon: float, constant: Constant
) -> int:
    """Compute the shared width of knocking heads for approximating each W_Q and W_K, with RoPE or without.

    It is the least n with ``n >= hidden C log(8 heads d_in max(3 alpha^3, hidden) / epsilon)``. Then, with probability
    at least 1 - epsilon / 4, masks exist with which the error of every entry of every W_Q and W_K is at most
    ``epsilon / (8 heads d_in max(3 alpha^3, hidden))``, and that of every logit, at any two positions, at most
    ``epsilon / (8 heads alpha sqrt(d_in))``, the error that Theorem 9 allows for logits. Source: projections (d_in, n)
    and T (n, hidden), both U[-1, 1]. Target: W_Q and W_K of every head have spectral norm at most 1.

    This does not cover W_V W_O. Its candidates contain the few weights of a head's output projection, which all
    candidates of an entry share, so its failure probability does not fall with n unless hidden / d_out grows as well.

    Proof. Let r = sqrt(d_in hidden) times the accuracy; it is at least |dW_Q|_2 and |dW_K|_2, and at most 1. Rotations
    keep norms, so the error of logits is at most alpha^2 (r (1 + r) + r) / sqrt(hidden) <= 3 alpha^2 r / sqrt(hidden).

    Args:
        d_in, d_out, heads, hidden: integers >= 1.
        alpha: finite and >= max(sqrt(d_in), sqrt(d_out)).
        epsilon: in (0, 1).
        constant: C, finite and > 0, or "measured".

    Raises:
        ValueError: an argument is out of its range.
    """
    accuracy = projection_accuracy(d_in, d_out, heads, hidden, alpha, epsilon)
    if accuracy < sys.float_info.min:
        return least_hidden(hidden, _projection_log(d_in, heads, hidden, alpha, epsilon), constant)
    return least_hidden(hidden, -math.log(accuracy), constant)


@plainly
def projection_accuracy(d_in: int, d_out: int, heads: int, hidden: int, alpha: float, epsilon: float) -> float:
    """Compute the bound of :func:`projection_width` on an entry's error in W_Q and W_K, and on its failure probability.

    Arguments and errors are those of :func:`projection_width`.
    """
    check_layer(d_in, d_out, heads, alpha)
    check_count("hidden", hidden)
    check_epsilon(epsilon)
    try:
        return epsilon / (8 * heads * d_in * max(3 * alpha**3, hidden))
    except OverflowError:  # alpha**3, or an int, beyond float64
        return math.exp(-_projection_log(d_in, heads, hidden, alpha, epsilon))


def _projection_log(d_in: int, heads: int, hidden: int, alpha: float, epsilon: float) -> float:
    """Compute the negative logarithm of :func:`projection_accuracy`, which may itself underflow."""
    return math.log(8 * heads * d_in) + max(math.log(3) + 3 * math.log(alpha), math.log(hidden)) - math.log(epsilon)


# ---------------------------------------------------------------- ranks


@plainly
def explicit_rank(d_in: int, hidden: int) -> int:
    """Compute the largest rank of a head's W_QK in explicit attention: ``min(d_in, hidden)``.

    It does not depend on the number of components: W_QK is W_Q (sum_a t_a W_K,a)^T, so mixing keys only
    re-parameterises one factor. The same holds for W_VO.

    Args:
        d_in, hidden: integers >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    return talking_rank(d_in, 1, hidden)


@plainly
def talking_rank(d_in: int, heads: int, hidden: int) -> int:
    """Compute the largest rank of a head's W_QK in talking-heads attention: ``min(d_in, heads hidden)``.

    W_QK is sum_k t_k W_Q,k W_K,k^T: mixing the logits of heads adds up their ranks.

    Args:
        d_in: integer >= 1.
        heads: logit heads (value heads for W_VO), integer >= 1.
        hidden: integer >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    for name, value in (("d_in", d_in), ("heads", heads), ("hidden", hidden)):
        check_count(name, value)
    return min(d_in, heads * hidden)
