"""Numbers at the border of the package: what a caller hands over becomes a plain int or float, or is refused by name.

Sweeps take their seeds and widths out of numpy and torch (`np.arange`, a generator, a tensor). Such a scalar has the
width of its dtype, is no JSON, and prints in its own way. So it is turned into Python's own number where it comes in,
and everything behind that sees plain numbers alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
T = TypeVar("T")

_IN_WORDS = {"(0, inf)": "a finite number > 0", "[0, inf)": "a finite number >= 0", "(-inf, inf)": "a finite number"}


def plain(value: Any) -> Any:
    """A scalar of numpy or torch, or an array or tensor of one element, as Python's number; anything else as it is.

    A float narrower than float64 becomes the shortest decimal that its dtype rounds to it: float32's 0.35 is 0.35.
    """
    if isinstance(value, int | float | str) and type(value).__module__ == "builtins":
        return value
    if not all(hasattr(value, name) for name in ("item", "dtype", "shape")):
        return value
    try:
        number = value.item()
    except (ValueError, RuntimeError):  # several elements, or none that is known (the meta device)
        return value
    return _shortest(number, value.dtype) if isinstance(number, float) and value.dtype.itemsize < 8 else number


def _shortest(number: float, dtype: Any) -> float:
    """The decimal of fewest digits that a dtype of numpy or torch rounds to a number of its own."""
    decimals = (float(f"{number:.{digits}g}") for digits in range(1, 10))
    return next((decimal for decimal in decimals if _rounded(decimal, dtype) == number), number)  # NaN as it is


def _rounded(number: float, dtype: Any) -> Any:
    if isinstance(dtype, torch.dtype):
        return torch.tensor(number, dtype=dtype, device="cpu").item()
    with np.errstate(over="ignore"):
        return dtype.type(number).item()


def plainly(function: Callable[P, T]) -> Callable[P, T]:
    """A function that takes no tensors as data, but numbers, words and modules: it is given :func:`plain` ones."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        return function(*map(plain, args), **{name: plain(value) for name, value in options.items()})

    return call


def as_int(name: str, value: Any, least: int | None = None, most: int | None = None, meaning: str = "") -> int:
    """The value as an int. Raises ValueError, with name, for bool, a float (2.0 as well), or one outside the bounds."""
    value = plain(value)
    number = _index(value)
    if number is not None and (least is None or number >= least) and (most is None or number <= most):
        return number
    bounds = " and ".join(f"{sign} {end}" for sign, end in ((">=", least), ("<=", most)) if end is not None)
    raise ValueError(f"{name}={value!r}: must be {f'an int {bounds}'.strip()}{_of(meaning)}")


def _index(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # the latter from a tensor that is not known
        return None


def as_float(name: str, value: Any, allowed: str = "(-inf, inf)", meaning: str = "") -> float:
    """The value as a float, an int staying the int it is; `allowed` is an interval, as "(0, 1]".

    Raises ValueError, with name, for bool, what is no int or float, NaN, or a number outside the interval.
    """
    value = plain(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and _inside(value, allowed):
        return value
    raise ValueError(f"{name}={value!r}: must be {_IN_WORDS.get(allowed, f'a number in {allowed}')}{_of(meaning)}")


def put(instance: object, **values: object) -> None:
    """Set fields of a frozen dataclass, for its __post_init__."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def _of(meaning: str) -> str:
    return f", {meaning}" if meaning else ""


def _inside(value: float, interval: str) -> bool:
    low, high = _ends(interval)
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


@lru_cache
def _ends(interval: str) -> tuple[float, float]:
    low, high = map(float, interval[1:-1].split(","))
    return low, high
