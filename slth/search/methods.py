"""The searches by name; choose one by text: method("iterand", rate=0.2), method("my_file.py:Momentum")."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from slth import plugins
from slth.fields import require_dataclass
from slth.search import options
from slth.search.base import Search
from slth.search.bernoulli import Bernoulli
from slth.search.biprop import Biprop
from slth.search.edge_popup import EdgePopup
from slth.search.frozen import Frozen
from slth.search.iterand import IteRand

#: name -> class, one line per search.
METHODS: dict[str, type[Search]] = {
    "edge_popup": EdgePopup,
    "iterand": IteRand,
    "biprop": Biprop,
    "frozen": Frozen,
    "bernoulli": Bernoulli,
}


def method(name: str, **given: Any) -> Search:
    """Create a search by its name in METHODS, or by the place of a user's own class, with these options.

    Options may also be part of the text: method("iterand(rate=0.2)"). Raises ValueError for an unknown name, a class
    that is not a search (as `slth.plugins.load` does), an unknown option, and a value that an option does not allow.
    """
    name, in_name = plugins.split(name)
    kind, values = kind_of(name), in_name | given
    allowed = [each.name for each in fields(kind) if each.init]
    for key, value in values.items():
        if key not in allowed:
            raise ValueError(f"method.{key}={value!r}: {name} has no such option, must be one of {', '.join(allowed)}")
    try:
        return kind(**values)
    except ValueError as error:
        by_option = str(error).startswith(tuple(f"{key}=" for key in allowed))
        raise ValueError(f"method.{error}" if by_option else f"method={name}: {error}") from error


def kind_of(name: str) -> type[Search]:
    """Return the class for a name in METHODS or a place. Raises ValueError if there is none."""
    if plugins.is_place(name):
        kind = plugins.load("method", name, Search)
        try:
            require_dataclass(kind)
        except ValueError as error:
            raise ValueError(f"method={name}: {error}") from error
        return kind
    if name not in METHODS:
        raise ValueError(f"method={name}: must be one of {', '.join(METHODS)}, or a class of yours as my_file.py:Name")
    return METHODS[name]


def help_of(name: str) -> dict[str, str]:
    """Return option -> help for a search, given its name or place. Raises ValueError as :func:`kind_of` does."""
    return options.help_of(kind_of(name))


def identity_of(search: Search) -> tuple[str, dict[str, Any]]:
    """Return what identifies a search in a checkpoint, as JSON: its class (bare name for slth's own) and its options.

    Raises ValueError for an option that JSON cannot represent.
    """
    kind = type(search)
    values = asdict(search)
    for key, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            text = "must be numbers, text, lists of them or None, for checkpoints and several processes"
            raise ValueError(f"method.{key} of type {type(value).__name__}: {text}") from error
    return kind.__name__ if kind in METHODS.values() else f"{kind.__module__}.{kind.__qualname__}", values
