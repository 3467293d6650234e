"""Convert numbers that a caller passes to plain int or float, or raise an error that names the argument.

Sweeps take seeds and widths from numpy and torch (`np.arange`, a generator, a tensor). Such scalars overflow at the
width of their dtype, are not JSON and print differently. They are converted at the package's public functions, so that
all code behind these sees plain numbers.
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
    """Convert a scalar, or an array or tensor of one element, of numpy or torch to a Python number.

    A float narrower than float64 becomes the shortest decimal that rounds to it in its dtype: float32's 0.35 gives
    0.35. Any other value is returned unchanged.
    """
    if isinstance(value, int | float | str) and type(value).__module__ == "builtins":
        return value
    if not all(hasattr(value, name) for name in ("item", "dtype", "shape")):
        return value
    try:
        number = value.item()
    except (ValueError, RuntimeError):  # several elements, or no data (the meta device)
        return value
    return _shortest(number, value.dtype) if isinstance(number, float) and value.dtype.itemsize < 8 else number


def _shortest(number: float, dtype: Any) -> float:
    """The decimal with the fewest digits that rounds to `number` in a dtype of numpy or torch."""
    decimals = (float(f"{number:.{digits}g}") for digits in range(1, 10))
    return next((decimal for decimal in decimals if _rounded(decimal, dtype) == number), number)  # NaN: unchanged


def _rounded(number: float, dtype: Any) -> Any:
    if isinstance(dtype, torch.dtype):
        return torch.tensor(number, dtype=dtype, device="cpu").item()
    with np.errstate(over="ignore"):
        return dtype.type(number).item()


def plainly(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that all its arguments pass through :func:`plain`; it must take no tensors as data."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        return function(*map(plain, args), **{name: plain(value) for name, value in options.items()})

    return call


def as_int(name: str, value: Any, least: int | None = None, most: int | None = None, meaning: str = "") -> int:
    """Convert a value to an int in [least, most].

    Raises ValueError, with `name`, for a bool, a float (even 2.0) or an int outside the bounds.
    """
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
    except (TypeError, RuntimeError):  # RuntimeError: a tensor without data
        return None


def as_float(name: str, value: Any, allowed: str = "(-inf, inf)", meaning: str = "") -> float:
    """Convert a value to a float in the interval `allowed`, such as "(0, 1]"; an int is returned as an int.

    Raises ValueError, with `name`, for a bool, a value that is no number, NaN, or a number outside the interval.
    """
    value = plain(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and _inside(value, allowed):
        return value
    raise ValueError(f"{name}={value!r}: must be {_IN_WORDS.get(allowed, f'a number in {allowed}')}{_of(meaning)}")


def put(instance: object, **values: object) -> None:
    """Set fields of a frozen dataclass, in its __post_init__."""
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
