"""Shared by all bounds: what arguments may be, and exponentials beyond float64."""

from __future__ import annotations

import math
from numbers import Integral, Real


def exp_or_inf(x: float) -> float:
    """exp(x), infinite where that is beyond float64."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def expm1_or_inf(x: float) -> float:
    """exp(x) - 1, infinite where that is beyond float64."""
    try:
        return math.expm1(x)
    except OverflowError:
        return math.inf


def check_layer(d_in: int, d_out: int, heads: int, alpha: float) -> None:
    """Raise ValueError unless these are as Theorem 9 assumes."""
    check_widths(d_in, d_out)
    check_count("heads", heads)
    check_positive("alpha", alpha)
    least = math.sqrt(max(d_in, d_out))
    if alpha < least:
        raise ValueError(f"alpha={alpha}: must be at least max(sqrt(d_in), sqrt(d_out)) = {least}")


def check_widths(d_in: int, d_out: int) -> None:
    """Raise ValueError unless both are ints >= 1."""
    check_count("d_in", d_in)
    check_count("d_out", d_out)


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless value is an int >= 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: must be an int >= 1")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless value is finite and > 0."""
    if not is_positive(value):
        raise ValueError(f"{name}={value!r}: must be a finite number > 0")


def is_positive(value: float | str) -> bool:
    """Whether value is a finite number > 0."""
    return isinstance(value, Real) and 0 < value < math.inf


def check_not_negative(name: str, value: float) -> None:
    """Raise ValueError unless value is finite and >= 0."""
    if not (isinstance(value, Real) and 0 <= value < math.inf):
        raise ValueError(f"{name}={value!r}: must be a finite number >= 0")


def check_epsilon(epsilon: float) -> None:
    """Raise ValueError unless epsilon lies in (0, 1)."""
    if not (isinstance(epsilon, Real) and 0 < epsilon < 1):
        raise ValueError(f"epsilon={epsilon!r}: must lie in (0, 1)")
