"""Bits per weight against error: the information limit, and the error of a random code in d dimensions."""

from __future__ import annotations

import math

from slth.numbers import plainly
from slth.theory.checks import check_count, check_positive


@plainly
def rate_limit(bits: float) -> float:
    """Compute the least mean squared error of any code with this many bits per Gaussian weight: ``4^-bits``.

    It is relative to the weights' variance, and falls by 6.02 dB per bit.

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
    """Compute the decibels from :func:`rate_limit` up to a mean squared error.

    Args:
        error: relative to the weights' variance, finite and > 0.
        bits: bits per weight, of all that a decoder needs, finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    >>> above_limit(0.125, 2)
    3.010299956639812
    """
    check_positive("error", error)
    return 10.0 * math.log10(error / rate_limit(bits))


@plainly
def random_code(d: int) -> float:
    """Compute the ratio of a random code's mean squared error to :func:`rate_limit`, for Gaussian weights.

    Each block of d weights is coded by the nearest of ``2^N`` Gaussian sums with the best variance, ``1 + 2/d`` times
    that of the weights. For ``N / d`` bits per weight and large N the ratio is

        (2/d) Gamma(1 + 2/d) Gamma(1 + d/2)^(2/d) (1 + 2/d)^(1 + d/2),

    which is 16.3 (12.1 dB) for d = 1 and 1.53 (1.85 dB) for d = 8, and approaches 1.

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
    """Compute the ratio of the sums' to the weights' variance that :func:`random_code` assumes: ``1 + 2/d``.

    Raises:
        ValueError: d is no int >= 1.
    """
    check_count("d", d)
    return 1 + 2 / d


@plainly
def code_candidates(d: int, error: float) -> int:
    """Compute the candidates that a block needs for a mean squared error, by :func:`random_code`.

    This is the least N with ``random_code(d) 4^(-N/d) <= error``.

    Args:
        d: weights of a block, an int >= 1.
        error: relative to the weights' variance, finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    >>> code_candidates(8, 0.1)
    16
    """
    check_positive("error", error)
    return max(1, math.ceil(d / 2 * math.log2(random_code(d) / error)))
