"""What a state_dict says of masks: beside their tensors an entry each, so that it holds all that is computed.

The entry is `_extra_state` in torch's sense, JSON in a uint8 tensor, so that `torch.load(weights_only=True)` reads it
and savers that take tensors alone write it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar

import torch

from slth.numbers import plain
from slth.plugins import import_defining

KEY = "_extra_state"
PLAIN = "edge-popup"  # the kind of a mask to which no search has added anything
_VERSION = 1
_BLOCK = 1024  # bytes, to whose multiples an entry is padded: loaders that read into tensors need equal sizes

# ---------------------------------------------------------------- entries


def encode(entry: Mapping[str, Any]) -> torch.Tensor:
    """An entry (JSON) as uint8, 1-D."""
    data = json.dumps({"version": _VERSION} | dict(entry), default=plain).encode()
    return torch.frombuffer(bytearray(data.ljust(-(-len(data) // _BLOCK) * _BLOCK)), dtype=torch.uint8)


def decode(told: object) -> dict[str, Any]:
    """The entry in a tensor of :func:`encode`. Raises ValueError for anything else, and for a later version's."""
    if not isinstance(told, torch.Tensor) or told.dtype != torch.uint8:
        raise ValueError(f"{KEY} is {type(told).__name__}: must be a uint8 tensor")
    try:
        entry: dict[str, Any] = json.loads(told.cpu().numpy().tobytes())
        version = entry["version"]
    except (UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{KEY} is damaged ({type(error).__name__}: {error})") from error
    if version != _VERSION:
        raise ValueError(f"{KEY} has version {version}: must be {_VERSION}; it is another slth's")
    return entry


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Errors name the weight; those of an entry that lacks something or is no entry become ValueError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = str(error) if isinstance(error, ValueError) else f"{KEY} is damaged ({type(error).__name__}: {error})"
        raise ValueError(f"state_dict of {path}: {why}") from error


def roles(parts: Sequence[Sequence[Any]]) -> str:
    """Parts, as an entry has them, in words."""
    return ", ".join(str(role or index) for index, _, _, role in parts) + f" along axis {parts[0][2]}"


def policies(groups: Sequence[Sequence[Any]]) -> str:
    """Groups, as an entry has them, in words."""
    return " and ".join(f"in {name!r} from index {offset}" if name else "alone" for name, offset in groups)


# ---------------------------------------------------------------- gates by name

G = TypeVar("G", bound=Callable[..., Any])
_GATES: dict[str, Callable[..., Any]] = {}  # a gate, or a dataclass of gates, the first of its name
_NAMES: dict[Callable[..., Any], str] = {}


def named(name: str) -> Callable[[G], G]:
    """Give a gate, or a dataclass of gates, the name by which a state_dict tells of it; equal functions share one."""

    def note(gate: G) -> G:
        _GATES.setdefault(name, gate)
        _NAMES[gate] = name
        return gate

    return note


def describe(gate: Callable[..., Any]) -> dict[str, Any]:
    """A gate as JSON: its `name` and numbers; one without a name by its place in the code, as `own`."""
    if is_dataclass(gate) and not isinstance(gate, type) and type(gate) in _NAMES:
        return {"name": _NAMES[type(gate)], **asdict(gate)}
    if gate in _NAMES:
        return {"name": _NAMES[gate]}
    place = gate if hasattr(gate, "__qualname__") else type(gate)
    return {"own": f"{place.__module__}.{place.__qualname__}"}


def revive(told: Mapping[str, Any], present: Callable[..., Any]) -> Callable[..., Any]:
    """The gate that :func:`describe` told of, the present one where that is it.

    Raises ValueError for one that is not known.
    """
    if told == describe(present):
        return present
    if "own" in told:
        raise ValueError(f"has the gate {told['own']}, which is not slth's: give it to this mask before loading")
    if told["name"] not in _GATES:
        import_defining()
    if told["name"] not in _GATES:
        raise ValueError(f"has the gate {told['name']!r}: must be one of {', '.join(_GATES)}")
    gate, numbers = _GATES[told["name"]], {key: value for key, value in told.items() if key != "name"}
    if not isinstance(gate, type):
        return gate
    if numbers.keys() != {f.name for f in fields(gate)} or not all(type(v) in (int, float) for v in numbers.values()):
        raise ValueError(f"has the gate {told['name']!r} with {numbers}: must be its numbers")
    made: Callable[..., Any] = gate(**numbers)
    return made
