"""Multi-head attention: Theorem 3 = 9, its inverse and its budget."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import NamedTuple

from slth.numbers import plainly
from slth.theory.checks import check_count, check_epsilon, check_layer, check_widths
from slth.theory.constants import Constant, constant_of, least_hidden
from slth.theory.softmax import lemma5_softmax


class Theorem9Hidden(NamedTuple):
    """Hidden dimensions per head that Theorem 9 requires."""

    hidden_qk: int
    hidden_vo: int


@dataclass(frozen=True)
class Theorem9Budget:
    """How the proof of Theorem 9 divides epsilon. All values are upper bounds.

    ``heads * (softmax_term + vo_term)`` equals epsilon.

    Attributes:
        qk_max_norm: largest error of an entry of the merged W_QK (d_in, d_in) of a head.
        logits: largest error of a logit, ``qk_max_norm * alpha^2 d_in``.
        softmax_term: output error due to the softmax of one head, from ``logits`` by Lemma 5.
        vo_max_norm: largest error of an entry of the merged W_VO (d_in, d_out) of a head.
        vo_term: output error due to the W_VO of one head, ``vo_max_norm * alpha d_in sqrt(d_out)``.
        failure: probability that some entry of some head exceeds its error.
    """

    qk_max_norm: float
    logits: float
    softmax_term: float
    vo_max_norm: float
    vo_term: float
    failure: float


@plainly
def theorem9_hidden(
    d_in: int, d_out: int, heads: int, alpha: float, epsilon: float, constant: Constant
) -> Theorem9Hidden:
    """Compute the hidden dimensions that Theorem 9 requires, the least integers with

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
        constant: C, finite and > 0, or "measured".

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Theorem 9 (Theorem 3 in the main text).
    """
    check_layer(d_in, d_out, heads, alpha)
    check_epsilon(epsilon)
    qk, vo = (log - math.log(epsilon) for log in _theorem9_logs(d_in, d_out, heads, alpha))
    return Theorem9Hidden(least_hidden(d_in, qk, constant), least_hidden(d_in, vo, constant))


def _theorem9_logs(d_in: int, d_out: int, heads: int, alpha: float) -> tuple[float, float]:
    """Compute the logarithms of Theorem 9 at epsilon = 1, for n_K and n_V, as sums, since the products may overflow."""
    qk = math.log(8 * heads) + 3 * math.log(alpha) + 1.5 * math.log(d_in)
    vo = math.log(2 * heads) + math.log(alpha) + math.log(d_in) + math.log(d_out) / 2
    return qk, vo


@plainly
def theorem9_budget(d_in: int, d_out: int, heads: int, alpha: float, epsilon: float) -> Theorem9Budget:
    """Compute the error budget in the proof of Theorem 9.

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


@plainly
def theorem9_failure(d_in: int, d_out: int, heads: int, alpha: float, epsilon: float) -> float:
    """Compute the failure probability of Theorem 9.

    It is ``sqrt(d_in) epsilon / (8 alpha^3) + sqrt(d_out) epsilon / (2 alpha)``. Lemma 7 at the accuracies of
    :func:`theorem9_budget` fails with probability at most ``sqrt(d_in) epsilon / (8 heads alpha^3)`` for W_QK and
    ``sqrt(d_out) epsilon / (2 heads alpha)`` for W_VO of one head. The last line of the paper's proof uses these. But
    all heads have to succeed, so here they are multiplied by heads, which cancels. With
    ``alpha >= max(sqrt(d_in), sqrt(d_out))`` the sum is at most 5/8 epsilon, so the theorem holds as printed.

    Args:
        d_in, d_out, heads: integers >= 1.
        alpha: finite and >= max(sqrt(d_in), sqrt(d_out)).
        epsilon: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, proof of Theorem 9, corrected.
    """
    check_layer(d_in, d_out, heads, alpha)
    check_epsilon(epsilon)
    return epsilon * (math.sqrt(d_in) / alpha / alpha / alpha / 8 + math.sqrt(d_out) / alpha / 2)


@plainly
def required_hidden(
    d_in: int,
    d_out: int,
    epsilon: float,
    *,
    heads: int = 1,
    alpha: float | None = None,
    C: Constant = "measured",
) -> int:
    """Compute a hidden dimension per head that suffices by Theorem 9: the larger of its n_K and n_V.

    Args:
        d_in, d_out, heads: integers >= 1.
        epsilon: in (0, 1).
        alpha: finite and >= max(sqrt(d_in), sqrt(d_out)). None: this maximum.
        C: finite and > 0, or "measured": :data:`MEASURED_CONSTANT` for targets of +-1.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Theorem 9, by :func:`theorem9_hidden`.

    >>> required_hidden(2, 1, 0.1, C=1.0)
    13
    """
    check_widths(d_in, d_out)
    constant = constant_of("C", C)
    return max(theorem9_hidden(d_in, d_out, heads, _alpha(d_in, d_out, alpha), epsilon, constant))


@plainly
def reachable_epsilon(
    hidden: int,
    d_in: int,
    d_out: int,
    *,
    heads: int = 1,
    alpha: float | None = None,
    C: Constant = "measured",
) -> float | None:
    """Compute the least epsilon that Theorem 9 guarantees at a hidden dimension per head.

    It inverts :func:`required_hidden`: ``required_hidden(..., epsilon) <= hidden`` holds for the returned epsilon,
    which is the least one up to a relative 1e-11, and not below the least normal float64.

    Args:
        hidden: integer >= 1.
        d_in, d_out, heads, alpha, C: as for :func:`required_hidden`.

    Returns:
        epsilon in (0, 1), or None if the theorem guarantees none at that width.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Theorem 9, solved for epsilon.
    """
    check_count("hidden", hidden)
    check_widths(d_in, d_out)
    constant, alpha = constant_of("C", C), _alpha(d_in, d_out, alpha)
    check_layer(d_in, d_out, heads, alpha)
    log = max(_theorem9_logs(d_in, d_out, heads, alpha)) - hidden / (d_in * constant)
    epsilon = max(math.exp(min(log, 0.0)) * (1 + 1e-11), sys.float_info.min)
    return epsilon if epsilon < 1 else None


def _alpha(d_in: int, d_out: int, alpha: float | None) -> float:
    return math.sqrt(max(d_in, d_out)) if alpha is None else alpha
