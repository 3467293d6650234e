"""The quantile function of the normal distribution, with the same bits on every device.

Wichura 1988, "Algorithm AS 241: The percentage points of the normal distribution" (PPND16), in float64, with only +, -,
*, / and sqrt. IEEE 754 requires these to be correctly rounded, unlike a library's logarithm or inverse error function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

# Coefficients (numerator, denominator), highest power first, for the middle, the shoulders and the tails.
MIDDLE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457, 13731.693765509461125,
     1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867, 5394.1960214247511077,
     687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
SHOULDER = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip

LN2 = math.log(2.0)
ATANH_SERIES = tuple(2.0 / (2 * k + 1) for k in range(12, -1, -1))  # coefficients of 2 artanh(s) / s in s^2


def quantile(p: torch.Tensor) -> torch.Tensor:
    """Compute the quantiles of the standard normal distribution at p in (0, 1), float64. Plain torch on any device."""
    q = p - 0.5
    tail_p = torch.minimum(p, 1.0 - p)
    r = torch.sqrt(-log(tail_p))
    middle = q * _ratio(MIDDLE, 0.180625 - q * q)
    outer = torch.where(r <= 5.0, _ratio(SHOULDER, r - 1.6), _ratio(TAIL, r - 5.0))
    return torch.where(q.abs() <= 0.425, middle, torch.where(q < 0, -outer, outer))


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: torch.Tensor) -> torch.Tensor:
    return _horner(coefficients[0], x) / _horner(coefficients[1], x)


def _horner(coefficients: Sequence[float], x: torch.Tensor) -> torch.Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x
        value = value + coefficient  # two statements, two roundings: never a fused multiply-add
    return value


def log(x: torch.Tensor) -> torch.Tensor:
    """Compute the natural logarithm of positive float64, accurate to about 1e-15, with basic operations only.

    x = m * 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh((m - 1) / (m + 1)).
    """
    mantissa, exponent = torch.frexp(x)  # mantissa in [1/2, 1)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, 2.0 * mantissa, mantissa)
    exponent = exponent.to(x.dtype) - small.to(x.dtype)
    s = (mantissa - 1.0) / (mantissa + 1.0)  # |s| <= 0.172
    series = s * _horner(ATANH_SERIES, s * s)
    return exponent * LN2 + series
