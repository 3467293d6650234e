"""Checks of the arguments of all bounds, and exponentials that do not overflow."""

from __future__ import annotations

import math
from fractions import Fraction

from slth.numbers import as_float, as_int


def exp_or_inf(x: float) -> float:
    """Compute exp(x), infinite where float64 overflows."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def expm1_or_inf(x: float) -> float:
    """Compute exp(x) - 1, infinite where float64 overflows."""
    try:
        return math.expm1(x)
    except OverflowError:
        return math.inf


def check_layer(d_in: int, d_out: int, heads: int, alpha: float) -> None:
    """Raise ValueError unless these satisfy the assumptions of Theorem 9."""
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
    as_int(name, value, 1)


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless value is finite and > 0."""
    as_float(name, _real(value), "(0, inf)")


def check_not_negative(name: str, value: float) -> None:
    """Raise ValueError unless value is finite and >= 0."""
    as_float(name, _real(value), "[0, inf)")


def check_epsilon(epsilon: float) -> None:
    """Raise ValueError unless epsilon lies in (0, 1)."""
    as_float("epsilon", _real(epsilon), "(0, 1)")


def _real(value: object) -> object:
    """Convert a fraction to a float; return anything else unchanged."""
    return float(value) if isinstance(value, Fraction) else value
