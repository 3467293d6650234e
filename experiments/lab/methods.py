"""The key `method`: a search by name or place, with its options: method=iterand method.rate=0.2."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slth import plugins
from slth.experiments.lab.options import Kind, key
from slth.experiments.lab.refusals import BadConfig, Refused

if TYPE_CHECKING:
    from slth.search import Search

NAME = "name"  # in the config, a method with options is {"name": "iterand", "rate": 0.2}


class BadMethod(BadConfig):
    """A search that cannot be created; the message is the search's own."""

    def __init__(self, method: str, message: str) -> None:
        Refused.__init__(self, message)
        self.key, self.value, self.allowed = "method", method, message


@dataclass(frozen=True)
class Method:
    """The chosen search, or another way to find masks that an experiment has, by name."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def search(self, **others: Any) -> Search:
        """Create the search, with `others` from the experiment's own keys. Raises BadConfig."""
        from slth.search import method

        if twice := [option for option in others if option in self.options]:
            raise BadConfig(f"method.{twice[0]}", self.options[twice[0]], f"left out, {twice[0]} is a key of its own")
        try:
            return method(self.name, **self.options, **others)
        except ValueError as error:
            raise BadMethod(str(self), str(error)) from error

    def require(self, steps: Iterable[int], keeps: Iterable[float], **others: Any) -> Search:
        """Create the search. Raises BadConfig if it would never act within these steps or cannot end at these keeps."""
        search = self.search(**others)
        try:
            for count in steps:
                search.for_steps(count)
            for keep in keeps:
                search.require_keep(keep)
        except ValueError as error:
            raise BadMethod(str(self), str(error)) from error
        return search

    def __str__(self) -> str:
        """Return the name that distinguishes runs: iterand, or iterand(rate=0.2)."""
        return plugins.join(self.name, self.options)


def method(default: str = "edge_popup", *, others: Collection[str] = (), help: str) -> Any:
    """Declare a key for a search, whose value is a Method; `others`: further allowed names that are no searches."""
    return key(default, a_method(default, others), help=help)


def a_method(default: str = "edge_popup", others: Collection[str] = ()) -> Kind[Method]:
    """Read a name of `slth.search.METHODS` or the place of a class, with options.

    Options are in parentheses, or as {"name": name, option: value}. Options without a name are those of the default.
    """

    def known() -> list[str]:
        from slth.search import METHODS

        return [*others, *METHODS]

    def allowed() -> str:
        return f"one of {', '.join(known())}, or a class of yours as my_file.py:Name"

    def read(key: str, value: Any) -> Method:
        if isinstance(value, Method):  # from a config that this one is made of
            value = {NAME: value.name, **value.options}
        given = {NAME: default, **value} if isinstance(value, Mapping) else {NAME: value}
        try:
            name, options = plugins.split(given.pop(NAME))
        except (ValueError, TypeError, AttributeError) as error:
            raise BadConfig(key, value, allowed()) from error
        if name not in known() and not plugins.is_place(name):
            raise BadConfig(key, name, allowed())
        chosen = Method(name, options | given)
        if name not in others:
            chosen.search()  # raises for an unknown search or option
        elif chosen.options:
            raise BadConfig(f"{key}.{next(iter(chosen.options))}", next(iter(chosen.options.values())), "left out")
        return chosen

    return Kind(read, allowed, with_options=True)
