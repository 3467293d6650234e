"""The universal constant C, its measured value, and the step from an accuracy to a width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from slth.numbers import as_float

#: A number, or "measured".
Constant = float | Literal["measured"]

#: C as `python experiments/constant.py` measured it on its defaults: the least C for which Lemma 7 was shown to hold in
#: every cell of its grid (d_in = d_out in {2, 4, 8, 16}, epsilon in {0.3, 0.1, 0.03}; 95 % Clopper-Pearson intervals,
#: each cell by itself), rounded up to two decimals, for target entries uniform in [-1, 1] and for entries of +-1. The
#: argument "measured" takes the latter, the harder ones. An estimate and no theorem: log(d_in d_out / epsilon) goes
#: from 2.6 to 9.1 on that grid. The smallest of these rules both numbers; the C that a cell needs falls as it grows.
MEASURED_CONSTANT: Mapping[str, float] = MappingProxyType({"uniform": 4.64, "unit": 6.18})


def constant_of(name: str, value: Constant) -> float:
    """C as a number; "measured" is the one for targets of +-1. Raises ValueError, with name, for anything else."""
    if value == "measured":
        return MEASURED_CONSTANT["unit"]
    return float(as_float(name, value, "(0, inf)", "or 'measured'"))


def relu_constant(value: Constant) -> Constant:
    """C of a ReLU network: as given, but "measured" is twice that of Lemma 7, see `slth.theory.lemma2_hidden`."""
    return 2 * constant_of("constant", value) if value == "measured" else value


def least_hidden(d_in: int, log_inverse: float, constant: Constant) -> int:
    """The least integer ``>= d_in * constant * log_inverse``, with log_inverse = log(1 / accuracy of an entry)."""
    exact = Fraction(constant_of("constant", constant))  # whatever the constant, nothing overflows
    return math.ceil(d_in * exact * Fraction(log_inverse))
