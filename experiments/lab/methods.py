"""The key `method`: a search by name or place, with options of its own: method=iterand method.rate=0.2."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slth import plugins
from slth.experiments.lab.options import Kind, key
from slth.experiments.lab.refusals import BadConfig, Refused

if TYPE_CHECKING:
    from slth.search import Search

NAME = "name"  # of a method with options, as the config holds it: {"name": "iterand", "rate": 0.2}


class BadMethod(BadConfig):
    """A search that cannot be made; the message is the search's own."""

    def __init__(self, method: str, message: str) -> None:
        Refused.__init__(self, message)
        self.key, self.value, self.allowed = "method", method, message


@dataclass(frozen=True)
class Method:
    """A search that was chosen, or another way to a mask that an experiment knows, by name."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def search(self, **others: Any) -> Search:
        """The search, with what the experiment's own keys say of it, or BadConfig where there is none."""
        from slth.search import method

        if twice := [option for option in others if option in self.options]:
            raise BadConfig(f"method.{twice[0]}", self.options[twice[0]], f"left out, {twice[0]} is a key of its own")
        try:
            return method(self.name, **self.options, **others)
        except ValueError as error:
            raise BadMethod(str(self), str(error)) from error

    def require(self, steps: Iterable[int], keeps: Iterable[float], **others: Any) -> Search:
        """The same, or BadConfig for one that would never act in so many steps or cannot end with such a keep."""
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
        """By which runs are told apart: iterand, or iterand(rate=0.2)."""
        return plugins.join(self.name, self.options)


def method(default: str = "edge_popup", *, others: Collection[str] = (), help: str) -> Any:
    """A key that takes a search, and holds a Method; `others`: names of what is no search."""
    return key(default, a_method(default, others), help=help)


def a_method(default: str = "edge_popup", others: Collection[str] = ()) -> Kind[Method]:
    """A name of `slth.search.METHODS` or a class's place; with options in parentheses or as {"name": it, option: ...}.

    Options without a name are those of the default.
    """

    def known() -> list[str]:
        from slth.search import METHODS

        return [*others, *METHODS]

    def allowed() -> str:
        return f"one of {', '.join(known())}, or a class of yours as my_file.py:Name"

    def read(key: str, value: Any) -> Method:
        if isinstance(value, Method):  # of a config that this one is made from
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
            chosen.search()  # refuses what is no search, and its options
        elif chosen.options:
            raise BadConfig(f"{key}.{next(iter(chosen.options))}", next(iter(chosen.options.values())), "left out")
        return chosen

    return Kind(read, allowed, with_options=True)
