"""Declare the options of a search: each field of its dataclass has a default, the allowed values, and a help text.

rate: float = number(0.1, "(0, 1]", help="the share of the pruned weights that is redrawn")
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import Field, field, fields
from typing import Any

from slth.numbers import as_float, as_int, put


def number(default: float, allowed: str = "(-inf, inf)", *, help: str) -> Any:
    """Declare an option that takes a number in an interval, such as "(0, 1]"."""
    return _option(default, lambda name, value: as_float(name, value, allowed, help), help)


def integer(default: int | None, least: int | None = None, *, help: str) -> Any:
    """Declare an option that takes an int >= `least`; also None if that is the default."""

    def check(name: str, value: Any) -> int | None:
        return None if value is None and default is None else as_int(name, value, least, meaning=help)

    return _option(default, check, help)


def choice(default: str, names: Collection[str], *, help: str) -> Any:
    """Declare an option that takes one of these names."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(names)}")
        return value

    return _option(default, check, help)


def check(instance: Any) -> None:
    """Check the options of a frozen dataclass, in its __post_init__; numpy and torch scalars become plain numbers.

    Raises ValueError for a value that an option does not allow.
    """
    for each in fields(instance):
        if "check" in each.metadata:
            put(instance, **{each.name: each.metadata["check"](each.name, getattr(instance, each.name))})


def help_of(kind: type[Any]) -> dict[str, str]:
    """Return option -> help and default, for a class with such fields."""
    return {each.name: _help(each) for each in fields(kind) if each.init}


def _help(each: Field[Any]) -> str:
    return f"{each.metadata.get('help', each.type)} (default {each.default!r})"


def _option(default: Any, check: Callable[[str, Any], Any], help: str) -> Any:
    return field(default=default, metadata={"check": check, "help": help})
