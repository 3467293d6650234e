"""The universal constant C, its measured value, and the width that an accuracy requires."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from slth.numbers import as_float

#: A number, or "measured".
Constant = float | Literal["measured"]

#: C as measured by `python experiments/constant.py` with its defaults: the least C for which Lemma 7 was shown to hold
#: in every cell of its grid (d_in = d_out in {2, 4, 8, 16}, epsilon in {0.3, 0.1, 0.03}; one 95 % Clopper-Pearson
#: interval per cell), rounded up to two decimals, for target entries uniform in [-1, 1] and for entries of +-1.
#: "measured" stands for the latter, which are harder. This is an estimate, no theorem: log(d_in d_out / epsilon) goes
#: from 2.6 to 9.1 on that grid. The smallest logarithm determines both values: a cell with a larger one needs a smaller
#: C.
MEASURED_CONSTANT: Mapping[str, float] = MappingProxyType({"uniform": 4.64, "unit": 6.18})


def constant_of(name: str, value: Constant) -> float:
    """Return C as a number; "measured" is the value for targets of +-1.

    Raises ValueError, with the argument's name, for anything else.
    """
    if value == "measured":
        return MEASURED_CONSTANT["unit"]
    return float(as_float(name, value, "(0, inf)", "or 'measured'"))


def relu_constant(value: Constant) -> Constant:
    """Return C of a ReLU network: "measured" is twice the C of Lemma 7, see `slth.theory.lemma2_hidden`."""
    return 2 * constant_of("constant", value) if value == "measured" else value


def least_hidden(d_in: int, log_inverse: float, constant: Constant) -> int:
    """Compute the least integer ``>= d_in * constant * log_inverse``; log_inverse = log(1 / accuracy of an entry)."""
    exact = Fraction(constant_of("constant", constant))  # cannot overflow
    return math.ceil(d_in * exact * Fraction(log_inverse))
