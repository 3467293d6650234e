"""Configs as frozen dataclasses: each field declares its default, its allowed values and a line of help.

    @dataclass(frozen=True)
    class Config(Options):
        widths: list[int] = integers([64], least=1, help="of the source's heads")
        target: str | None = choice(None, ("trained", "random"), help="None: trained")
        seed: int = seed()

        def check(self) -> None:
            if ...:
                raise BadConfig("target", self.target, "...")

This defines Sacred's flat keys and their defaults, the error for a bad value (one line with key, value and allowed
values), and the help. A config is checked when it is created, by Config(seed=3) or Config.of(values), both of which
raise BadConfig; so every config object is valid. None is allowed if it is the default or the key is `nullable`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Self, TypeVar

from slth.experiments.lab.refusals import BadConfig
from slth.fields import require_dataclass

T = TypeVar("T")
Names = Collection[str] | Callable[[], Collection[str]]
"""Names to choose from, or a function that returns them when a value is checked."""

MOST_SEED = 2**32 - 1  # Sacred also seeds numpy's global generator, which allows no larger seed


@dataclass(frozen=True)
class Kind(Generic[T]):
    """The kind of values of a key.

    read(key, value): converts a value for the config, or raises BadConfig. allowed(): the allowed values in words.
    with_options: whether the key may also have key.option=value; together they are {"name": value, option: ...}.
    """

    read: Callable[[str, Any], T]
    allowed: Callable[[], str]
    with_options: bool = False


@dataclass(frozen=True)
class Options:
    """Base of all configs; see the module's docstring."""

    def __post_init__(self) -> None:
        require_dataclass(type(self))
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        object.__setattr__(self, "_given", given)
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _read(field, given[field.name]))
        self.check()

    def check(self) -> None:
        """Raise BadConfig for values that do not fit together. It is called after each value was checked by itself."""

    def require_defaults(self, keys: Iterable[str], where: str) -> None:
        """Raise BadConfig for keys that have no effect but are not at their defaults; `where` says in which case."""
        values, defaults = self.values(), self.defaults()
        for key in keys:
            if values[key] != defaults[key]:
                raise BadConfig(key, values[key], f"left out, or {defaults[key]!r}, {where}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Create the checked config of these values, ignoring other keys. Raises BadConfig."""
        return cls(**{key: values[key] for key in cls.kinds() if key in values})

    def values(self) -> dict[str, Any]:
        """Return every key with its value as it was given, as plain JSON values."""
        return dict(self._given)  # type: ignore[attr-defined]  # no field: set when the values are read

    @classmethod
    def kinds(cls) -> dict[str, Kind[Any]]:
        """Return every key with its kind, in order."""
        return {field.name: field.metadata["kind"] for field in dataclasses.fields(cls)}

    @classmethod
    def free_keys(cls) -> list[str]:
        """Return the keys that are declared :func:`free`."""
        return [field.name for field in dataclasses.fields(cls) if field.metadata.get("free")]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return every key with its default."""
        return {field.name: _default(field) for field in dataclasses.fields(cls)}

    @classmethod
    def help(cls) -> dict[str, str]:
        """Return every key with its line of help."""
        return {field.name: field.metadata["help"] for field in dataclasses.fields(cls)}


# ---------------------------------------------------------------- declaring a key


def key(default: Any, kind: Kind[Any], *, help: str) -> Any:
    """Declare a key of any kind."""
    metadata = {"kind": kind, "help": help}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def free(key: Any) -> Any:
    """Declare a key as one that changes results only by rounding, such as the number of processes or the device.

    Plots do not distinguish runs by it.
    """
    key.metadata = MappingProxyType({**key.metadata, "free": True})
    return key


def nullable(key: Any) -> Any:
    """Declare a key as one that also takes None, though its default is something else."""
    key.metadata = MappingProxyType({**key.metadata, "nullable": True})
    return key


def integer(default: int | None, *, least: int = 0, most: float = math.inf, help: str) -> Any:
    """Declare a key for an int (no bool, no float) from least to most."""
    return key(default, an_integer(least, most), help=help)


def integers(default: int | Sequence[int] | None, *, least: int = 0, most: float = math.inf, help: str) -> Any:
    """Declare a key for one int or a list of them, not empty, none twice; its value is a list."""
    return key(default, several(an_integer(least, most)), help=help)


def number(
    default: float | None,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    help: str,
) -> Any:
    """Declare a key for a finite number (no bool) > above, >= least and <= most; its value is a float."""
    return key(default, a_number(above, least, most), help=help)


def numbers(
    default: float | Sequence[float] | None,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    help: str,
) -> Any:
    """Declare a key for one such number or a list of them, not empty, none twice; its value is a list of floats."""
    return key(default, each(a_number(above, least, most)), help=help)


def choice(default: str | None, names: Names, *, help: str) -> Any:
    """Declare a key for one of these names."""
    return key(default, one_of(names), help=help)


def choices(default: str | Sequence[str] | None, names: Names, *, help: str) -> Any:
    """Declare a key for one of these names or a list of them, not empty, none twice; its value is a list."""
    return key(default, some_of(names), help=help)


def flag(default: bool, *, help: str) -> Any:
    """Declare a key for True or False."""
    return key(default, where(lambda value: isinstance(value, bool), "True or False"), help=help)


def text(default: str | None, allowed: str, *, help: str) -> Any:
    """Declare a key for text, not empty; `allowed` describes it in errors, such as "a folder"."""
    return key(default, where(lambda value: isinstance(value, str) and value != "", allowed), help=help)


def anything(default: Any, *, allowed: str, help: str) -> Any:
    """Declare a key whose value is only checked by the config's own `check`."""
    return key(default, where(lambda value: True, allowed), help=help)


def seed() -> Any:
    """Declare the key `seed`."""
    return integer(0, least=0, most=MOST_SEED, help="seed of all random numbers")


def seeds(default: int, *, help: str) -> Any:
    """Declare the key `seeds`, the number of seeds from `seed` on, for :func:`seeds_from`."""
    return integer(default, least=1, most=MOST_SEED + 1, help=f"number of seeds, counted from the key seed; {help}")


def seeds_from(seed: int, seeds: int) -> range:
    """Return `seeds` seeds from `seed` on. Raises BadConfig if they exceed the largest seed."""
    if seed + seeds > MOST_SEED + 1:
        raise BadConfig("seeds", seeds, f"an int >= 1 and <= {MOST_SEED + 1 - seed}")
    return range(seed, seed + seeds)


# ---------------------------------------------------------------- kinds


def where(holds: Callable[[Any], bool], allowed: str) -> Kind[Any]:
    """Take values for which `holds` is true, unchanged."""

    def read(key: str, value: Any) -> Any:
        if not holds(value):
            raise BadConfig(key, value, allowed)
        return value

    return Kind(read, lambda: allowed)


def an_integer(least: int, most: float = math.inf) -> Kind[int]:
    """Take an int (no bool, no float) from least to most."""

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return where(holds, f"an int {_bounds(least, most)}")


def a_number(above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> Kind[float]:
    """Take a finite number (no bool) > above, >= least and <= most, and return it as a float."""

    def holds(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        finite = abs(value) <= sys.float_info.max  # of an int that no float holds, isfinite would raise
        return finite and value > above and least <= value <= most

    bounds = ([f"> {above}"] if above > -math.inf else []) + [_bounds(least, most)]
    kind = where(holds, " ".join(["a finite number", " and ".join(filter(None, bounds))]).strip())
    return Kind(lambda key, value: float(kind.read(key, value)), kind.allowed)


def one_of(names: Names) -> Kind[str]:
    """Take one of these names."""

    def read(key: str, value: Any) -> str:
        if not isinstance(value, str) or value not in _known(names):
            raise BadConfig(key, value, allowed())
        return value

    def allowed() -> str:
        return f"one of {', '.join(_known(names))}"

    return Kind(read, allowed)


def some_of(names: Names) -> Kind[list[str]]:
    """Take one of these names or a list of them, not empty, none twice, and return a list."""

    def read(key: str, value: Any) -> list[str]:
        values = as_list(value)
        if not all(isinstance(one, str) and one in _known(names) for one in values) or not _distinct(values):
            raise BadConfig(key, value, allowed())
        return values

    def allowed() -> str:
        return f"one or several of {', '.join(_known(names))}, none twice"

    return Kind(read, allowed)


def several(kind: Kind[T]) -> Kind[list[T]]:
    """Take one value of a kind or a list of them, not empty, none twice, and return a list."""

    def read(key: str, value: Any) -> list[T]:
        try:
            values = [kind.read(key, one) for one in as_list(value)]
        except BadConfig as error:
            raise BadConfig(key, value, allowed()) from error
        if not _distinct(values):
            raise BadConfig(key, value, allowed())
        return values

    def allowed() -> str:
        return f"{kind.allowed()} or a list of them, not empty, none twice"

    return Kind(read, allowed)


def each(kind: Kind[T]) -> Kind[list[T]]:
    """Take the same values as `several`, with errors that name the single bad value."""

    def read(key: str, value: Any) -> list[T]:
        values = [kind.read(key, one) for one in as_list(value)]
        if not _distinct(values):
            raise BadConfig(key, value, "one value or a list of them, not empty, none twice")
        return values

    return Kind(read, lambda: f"{kind.allowed()} or a list of them, not empty, none twice")


def as_given(kind: Kind[Any]) -> Kind[Any]:
    """Take the same values unchanged, for a key that distinguishes one value from a list of one."""

    def read(key: str, value: Any) -> Any:
        kind.read(key, value)
        return value

    return Kind(read, kind.allowed)


def as_list(value: Any) -> list[Any]:
    """Return one value or several as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _distinct(values: Sequence[object]) -> bool:
    """Tell whether values are not empty and all different; they need not be hashable."""
    return bool(values) and all(value not in values[:i] for i, value in enumerate(values))


def _known(names: Names) -> Collection[str]:
    return names() if callable(names) else names


def _bounds(least: float, most: float) -> str:
    return " and ".join(f"{sign} {bound}" for sign, bound in ((">=", least), ("<=", most)) if math.isfinite(bound))


# ---------------------------------------------------------------- fields


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _read(field: dataclasses.Field[Any], value: Any) -> Any:
    if value is None and (_default(field) is None or field.metadata.get("nullable")):
        return None
    try:
        return field.metadata["kind"].read(field.name, value)
    except BadConfig as error:
        if field.metadata.get("nullable"):
            raise BadConfig(error.key, error.value, f"{error.allowed}, or None") from error
        raise
