"""Attentions whose heads share: what becomes of Theorem 9 and Lemma 7 of arXiv 2511.04217, and of ranks.

None of this is in that paper. Sources of the constructions are `slth.construct.variant` and its files.

Sharing. The proof of Theorem 9 adds up, over all entries of all heads, the probabilities that a subset sum fails. It
never asks that entries be independent, so heads may share whichever factor is pruned by structure: its structure is the
same for all. The other factor has to be each head's own.

Chains. A T that keeps its diagonal makes a candidate a product of L factors instead of two. What the subset-sum
theorem asks of a candidate's density (Lueker 1998, Corollary 3.3) is a part that is uniform on [-1/2, 1/2]. If the part
has mass p, then of n candidates at least n p / 2 come from it but for a probability of exp(-n p / 8); so
n = C log(1 / accuracy) candidates are enough for a C that is proportional to 1 / p.
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
    """Density at x of the product of independent U[-1, 1]: ``(-ln |x|)^(L-1) / (2 (L-1)!)`` on [-1, 1], L = factors.

    Args:
        x: a number; the density is 0 beyond [-1, 1], and infinite at 0 for two factors or more.
        factors: integer >= 1.

    Raises:
        ValueError: factors is out of its range, or x is not a number.

    Source: -ln |U| is exponential, so -ln |x| is the sum of L of them, of Gamma density.

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
    """Mass of the part of :func:`product_density` that is uniform on [-1/2, 1/2]: its height at 1/2, where it is least.

    .500, .347, .120, .028 for 1, 2, 3, 4 factors.

    Args:
        factors: integer >= 1.

    Raises:
        ValueError: factors is out of its range.
    """
    return product_density(0.5, factors)


@plainly
def normal_part(std: float) -> float:
    """The same of U[-1, 1] times a normal number: ``E1(1 / (8 std^2)) / (2 sqrt(2 pi) std)``.

    A key of explicit attention is a sum of U[-1, 1] weighted by a column of its mixing tensor; of many components it
    is near to normal, std being the column's norm over sqrt(3). Given the number k, the product is uniform on
    [-|k|, |k|], so its density at 1/2 is the mean of 1 / (2 |k|) where |k| >= 1/2.

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
    """C for candidates that are products of so many factors: C for two, times the uniform part of two over theirs.

    1, 2.9 and 12.5 times C for 2, 3 and 4 factors. As good as the argument by the uniform part; what is measured grows
    by far less.

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
    """Lemma 7 for a product of two factors and factors - 2 diagonals between them, all U[-1, 1]: the same at another C.

    ``n >= d_in C log(d_in d_out / epsilon)`` with :func:`chain_constant`.

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
    """Hidden dimension per head of grouped- or multi-query attention: Theorem 9's own, the larger of its two.

    However many key and value heads there are: they are pruned by structure.

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
    """Hidden dimension per head of grouped-tied attention whose tied projection is U[-n^(1/4), n^(1/4)].

    Keys as in Theorem 9. Values are n^(1/4) times too large, so what is asked of them is asked n^(1/4) times finer:
    the least n that is also ``>= d_in C (log(2 heads alpha d_in sqrt(d_out) / epsilon) + log(n) / 4)``.

    Args, Raises: as for :func:`grouped_hidden`.
    """
    least = grouped_hidden(d_in, d_out, heads, alpha, epsilon, constant)
    values = math.log(2 * heads) + math.log(alpha) + math.log(d_in) + math.log(d_out) / 2 - math.log(epsilon)
    while (asked := least_hidden(d_in, values + math.log(least) / 4, constant)) > least:  # grows by ever less
        least = asked
    return least


@plainly
def knocking_hidden(
    d_in: int, d_out: int, heads: int, alpha: float, epsilon: float, constant: Constant, *, mix: str = "qkv"
) -> int:
    """Hidden dimension per head of linear knocking heads whose T are U[-1, 1]: Theorem 9's at other constants.

    A product for W_Q W_K^T has 2 factors and one for each of "q" and "k" in mix, one for W_V W_O a third with "v".

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
    """Hidden dimension per head of explicit attention without its norm, of many components: Theorem 9's at another C.

    norm: of each column of the mixing tensors, finite and > 0, and some 1/50 at least; it makes C
    uniform_part(2) / normal_part(norm / sqrt(3)) times as large, 1.3 at norm 1. Others and errors as for
    :func:`grouped_hidden`.
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
    """Shared width of knocking heads at which queries and keys are met by themselves, with RoPE or without.

    The least n with ``n >= hidden C log(8 heads d_in max(3 alpha^3, hidden) / epsilon)``. Then, with probability at
    least 1 - epsilon / 4, masks exist under which every entry of every W_Q and W_K errs by at most
    ``epsilon / (8 heads d_in max(3 alpha^3, hidden))``, and with them every logit, at any two positions, by at most
    ``epsilon / (8 heads alpha sqrt(d_in))``, which is what Theorem 9 allows the logits. Source: projections (d_in, n)
    and T (n, hidden), both U[-1, 1]. Target: W_Q and W_K of every head of spectral norm at most 1.

    Nothing is said of W_V W_O: its sums run through the output projection, whose few weights of a head all candidates
    of an entry share, so the probability of a failure does not fall with n unless hidden / d_out grows as well.

    Proof. Let r = sqrt(d_in hidden) times the accuracy, at least |dW_Q|_2 and |dW_K|_2, and at most 1. Positions turn
    and keep norms, so logits err by at most alpha^2 (r (1 + r) + r) / sqrt(hidden) <= 3 alpha^2 r / sqrt(hidden).

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
    """Largest error of an entry of W_Q and W_K that :func:`projection_width` promises, and each entry's failure.

    Args, Raises: as there.
    """
    check_layer(d_in, d_out, heads, alpha)
    check_count("hidden", hidden)
    check_epsilon(epsilon)
    try:
        return epsilon / (8 * heads * d_in * max(3 * alpha**3, hidden))
    except OverflowError:  # alpha**3, or an int, beyond float64
        return math.exp(-_projection_log(d_in, heads, hidden, alpha, epsilon))


def _projection_log(d_in: int, heads: int, hidden: int, alpha: float, epsilon: float) -> float:
    """The negative logarithm of :func:`projection_accuracy`, for what is beyond float64."""
    return math.log(8 * heads * d_in) + max(math.log(3) + 3 * math.log(alpha), math.log(hidden)) - math.log(epsilon)


# ---------------------------------------------------------------- ranks


@plainly
def explicit_rank(d_in: int, hidden: int) -> int:
    """Largest rank of a head's W_QK in explicit attention: ``min(d_in, hidden)``, however many components it mixes.

    It is W_Q (sum_a t_a W_K,a)^T: mixing heads of keys re-parameterises one factor. The same holds for W_VO.

    Args:
        d_in, hidden: integers >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    return talking_rank(d_in, 1, hidden)


@plainly
def talking_rank(d_in: int, heads: int, hidden: int) -> int:
    """Largest rank of a head's W_QK in talking-heads attention: ``min(d_in, heads hidden)``.

    It is sum_k t_k W_Q,k W_K,k^T: mixing heads of logits adds up widths.

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
