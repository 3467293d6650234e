"""Linear layers: Lemma 4 = 7."""

from __future__ import annotations

import math

from slth.numbers import plainly
from slth.theory.checks import check_epsilon, check_widths
from slth.theory.constants import Constant, least_hidden


@plainly
def lemma7_accuracy(d_in: int, d_out: int, epsilon: float) -> float:
    """Compute Lemma 7's bound on the error of an entry: ``epsilon / (d_in d_out)``.

    The target is a (d_out, d_in) matrix with entries in [-1, 1], approximated by the product of two masked U[-1, 1]
    factors. Each of its d_in * d_out entries is its own subset sum, solved to this accuracy and with this failure
    probability; by the union bound over the entries the latter add up to epsilon.

    Args:
        d_in, d_out: integers >= 1.
        epsilon: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 7.

    >>> lemma7_accuracy(2, 5, 0.1)
    0.01
    """
    check_widths(d_in, d_out)
    check_epsilon(epsilon)
    return epsilon / (d_in * d_out)


@plainly
def lemma7_hidden(d_in: int, d_out: int, epsilon: float, constant: Constant) -> int:
    """Compute the hidden dimension of Lemma 7: the least integer ``n >= d_in C log(d_in d_out / epsilon)``.

    With it, and with probability at least 1 - epsilon, masks exist that bring every entry of the product of the
    random (n, d_in) and (d_out, n) factors to within :func:`lemma7_accuracy` of the target's.

    Args:
        d_in, d_out: integers >= 1.
        epsilon: in (0, 1).
        constant: C, finite and > 0, or "measured".

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 7 (Lemma 4 is the same for targets of spectral norm at most 1).
    """
    check_widths(d_in, d_out)
    check_epsilon(epsilon)
    return least_hidden(d_in, math.log(d_in) + math.log(d_out) - math.log(epsilon), constant)
