"""Bits a weight against error: the information limit, and what a random code in d dimensions comes to."""

from __future__ import annotations

import math

from slth.numbers import plainly
from slth.theory.checks import check_count, check_positive


@plainly
def rate_limit(bits: float) -> float:
    """Least mean squared error that any code of so many bits a weight has on Gaussian weights: ``4^-bits``.

    Relative to the weights' variance: 6.02 dB a bit.

    Args:
        bits: finite and > 0.

    Raises:
        ValueError: bits is out of its range.

    Source: Shannon 1959; Cover and Thomas, Elements of Information Theory, theorem 10.3.2.

    >>> rate_limit(2)
    0.0625
    """
    check_positive("bits", bits)
    return float(4.0**-bits)


@plainly
def above_limit(error: float, bits: float) -> float:
    """Decibels between a mean squared error, relative to the weights' variance, and :func:`rate_limit`.

    Args:
        error: finite and > 0.
        bits: a weight, finite and > 0, with all that a decoder has to be given.

    Raises:
        ValueError: an argument is out of its range.

    >>> above_limit(0.125, 2)
    3.010299956639812
    """
    check_positive("error", error)
    return 10.0 * math.log10(error / rate_limit(bits))


@plainly
def random_code(d: int) -> float:
    """Mean squared error of a random code over :func:`rate_limit`, for Gaussian weights in blocks of d.

    A block takes the nearest of ``2^N`` sums whose distribution is Gaussian with the best variance, ``1 + 2/d`` of the
    weights'. For ``N / d`` bits a weight, N large, that is

        (2/d) Gamma(1 + 2/d) Gamma(1 + d/2)^(2/d) (1 + 2/d)^(1 + d/2),

    16.3 (12.1 dB) for d = 1, 1.53 (1.85 dB) for d = 8, and towards 1.

    Args:
        d: weights of a block, an int >= 1.

    Raises:
        ValueError: d is out of its range.

    >>> round(10 * math.log10(random_code(16)), 2)
    1.07
    """
    check_count("d", d)
    volume = 2.0 / d * math.lgamma(1 + d / 2)
    return 2.0 / d * math.exp(math.lgamma(1 + 2 / d) + volume + (1 + d / 2) * math.log1p(2 / d))


@plainly
def code_variance(d: int) -> float:
    """The sums' variance in a coordinate, over the weights', for which :func:`random_code` holds: ``1 + 2/d``.

    Raises:
        ValueError: d is no int >= 1.
    """
    check_count("d", d)
    return 1 + 2 / d


@plainly
def code_candidates(d: int, error: float) -> int:
    """Candidates that a block of d needs for a mean squared error, relative to the variance, by :func:`random_code`.

    The least N with ``random_code(d) 4^(-N/d) <= error``.

    Args:
        d: weights of a block, an int >= 1.
        error: finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    >>> code_candidates(8, 0.1)
    16
    """
    check_positive("error", error)
    return max(1, math.ceil(d / 2 * math.log2(random_code(d) / error)))
