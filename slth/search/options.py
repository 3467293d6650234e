"""The options of a search, declared once: each field of its dataclass has a default, what is allowed, and its help.

rate: float = number(0.1, "(0, 1]", help="the share of the pruned weights that is redrawn")
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import Field, field, fields
from typing import Any

from slth.numbers import as_float, as_int, put


def number(default: float, allowed: str = "(-inf, inf)", *, help: str) -> Any:
    """An option that takes a number within an interval, as "(0, 1]"."""
    return _option(default, lambda name, value: as_float(name, value, allowed, help), help)


def integer(default: int | None, least: int | None = None, *, help: str) -> Any:
    """An option that takes an int, from `least` on; also None where that is the default."""

    def check(name: str, value: Any) -> int | None:
        return None if value is None and default is None else as_int(name, value, least, meaning=help)

    return _option(default, check, help)


def choice(default: str, names: Collection[str], *, help: str) -> Any:
    """An option that takes one of these names."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(names)}")
        return value

    return _option(default, check, help)


def check(instance: Any) -> None:
    """Put checked values into a frozen dataclass of such fields, for its __post_init__. Raises ValueError."""
    for each in fields(instance):
        if "check" in each.metadata:
            put(instance, **{each.name: each.metadata["check"](each.name, getattr(instance, each.name))})


def help_of(kind: type[Any]) -> dict[str, str]:
    """The options of a class of such fields, each with its help and default."""
    return {each.name: _help(each) for each in fields(kind) if each.init}


def _help(each: Field[Any]) -> str:
    return f"{each.metadata.get('help', each.type)} (default {each.default!r})"


def _option(default: Any, check: Callable[[str, Any], Any], help: str) -> Any:
    return field(default=default, metadata={"check": check, "help": help})
