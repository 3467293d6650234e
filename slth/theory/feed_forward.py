"""Feed-forward networks: Lemma 2, Theorem 10."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from slth.numbers import plain, plainly
from slth.theory.checks import check_count, check_epsilon, check_positive, check_widths, expm1_or_inf
from slth.theory.constants import Constant, least_hidden, relu_constant


@plainly
def lemma2_accuracy(d_in: int, d_out: int, epsilon: float) -> float:
    """Compute the largest error of an entry in the proof of Lemma 2: ``epsilon / (2 d_in d_out)``.

    A ReLU passes on the positive or the negative values of an input, so each entry of the target W is approximated
    twice: by ``P`` for ``x > 0`` and by ``-N`` for ``x < 0``, together ``x+ P + x- N`` for ``x W``. These are
    2 d_in d_out subset sums, each solved to this accuracy and with this failure probability; by the union bound the
    latter add up to epsilon. The output error for an input of norm 1 is then at most ``sqrt(d_in d_out)`` times the
    accuracy, hence at most ``epsilon / 2``: half of what the lemma states.

    Args:
        d_in, d_out: integers >= 1.
        epsilon: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 2.

    >>> lemma2_accuracy(2, 5, 0.1)
    0.005
    """
    check_widths(d_in, d_out)
    check_epsilon(epsilon)
    return epsilon / (2 * d_in * d_out)


@plainly
def lemma2_hidden(d_in: int, d_out: int, epsilon: float, constant: Constant) -> int:
    """Compute the hidden dimension of Lemma 2: the least integer ``n >= d_in C log(2 d_in d_out / epsilon)``.

    With it, and with probability at least 1 - epsilon, masks exist for which the random network
    ``ReLU(x first) second``, entries U[-1, 1], is within epsilon of ``x W`` for every input of norm at most 1. The
    target W (d_in, d_out) has spectral norm at most 1.

    C is not that of Lemma 7. Each of the 2 d_in halves of the inputs gets n / (2 d_in) hidden units, half of what an
    input gets in Lemma 7, for the same kind of subset sum: if Lemma 7 holds with c, this needs C = 2c. (For d_in = 1
    slightly more, since the units with a positive weight, however many, all serve the positive half.)

    Args:
        d_in, d_out: integers >= 1.
        epsilon: in (0, 1).
        constant: C, finite and > 0, or "measured": twice the one measured for Lemma 7.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 2 (after Pensia et al. 2020).
    """
    check_widths(d_in, d_out)
    check_epsilon(epsilon)
    return least_hidden(
        d_in, math.log(2) + math.log(d_in) + math.log(d_out) - math.log(epsilon), relu_constant(constant)
    )


@plainly
def theorem10_accuracy(d_in: int, d_out: int, layers: int, epsilon: float) -> float:
    """Compute the largest error of an entry of a layer in Theorem 10's proof: ``epsilon / (4 layers d_in d_out)``.

    That is Lemma 2 at ``epsilon / (2 layers)``. The probability that any layer fails is at most ``epsilon / 2``.

    Args:
        d_in, d_out: widths of this layer's input and output, integers >= 1.
        layers: L of the target, integer >= 1.
        epsilon: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Theorem 10.
    """
    check_count("layers", layers)
    check_epsilon(epsilon)
    return lemma2_accuracy(d_in, d_out, epsilon / (2 * layers))


@plainly
def theorem10_hidden(widths: Sequence[int], epsilon: float, constant: Constant) -> tuple[int, ...]:
    """Compute Theorem 10's hidden dimensions: the least integers ``n_l >= d_l C log(4 L d_l d_(l+1) / epsilon)``.

    Let the target have L layers of spectral norm at most 1 with ReLU between them. With probability at least
    1 - epsilon, a masked random network with entries U[-1, 1], of 2L layers with ReLU between them and widths d_1, n_1,
    d_2, n_2, ..., d_(L+1), approximates it to within :func:`theorem10_error`. C is that of :func:`lemma2_hidden`.

    Args:
        widths: d_1 .. d_(L+1) of the target, two or more integers >= 1.
        epsilon: in (0, 1).
        constant: C, finite and > 0, or "measured": twice the one measured for Lemma 7.

    Returns:
        n_1 .. n_L.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Theorem 10.
    """
    widths = [plain(width) for width in widths]
    layers = _layers_of(widths)
    check_epsilon(epsilon)
    return tuple(lemma2_hidden(d_in, d_out, epsilon / (2 * layers), constant) for d_in, d_out in pairwise(widths))


@plainly
def theorem10_error(alpha: float, epsilon: float) -> float:
    """Compute the error bound of Theorem 10 for inputs of norm at most alpha: ``exp(alpha epsilon / 2) - 1``.

    Derivation: the error of a layer with the accuracy of :func:`theorem10_accuracy` is at most ``epsilon / (2L)`` times
    the norm of its input, which is at most ``1 + epsilon / (2L)`` times that of the layer before. So the error of the
    network is at most ``alpha ((1 + epsilon / (2L))^L - 1) <= alpha (exp(epsilon / 2) - 1)``, which is at most the
    bound for ``alpha >= 1`` by convexity. With the full accuracies (Lemma 2 uses half of its epsilon) it is
    ``alpha (exp(epsilon / 4) - 1)``.

    Args:
        alpha: finite and >= 1.
        epsilon: in (0, 1).

    Returns:
        The bound; ``inf`` where the exponential overflows.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Theorem 10.
    """
    check_positive("alpha", alpha)
    if alpha < 1:
        raise ValueError(f"alpha={alpha}: must be at least 1")
    check_epsilon(epsilon)
    return expm1_or_inf(alpha * epsilon / 2)


def _layers_of(widths: Sequence[int]) -> int:
    if len(widths) < 2:
        raise ValueError(f"widths={widths!r}: must be two or more ints >= 1, those of one layer or more")
    for width in widths:
        check_count("widths", width)
    return len(widths) - 1
