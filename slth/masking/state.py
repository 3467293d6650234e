"""The entry of a mask in a state_dict: everything besides its tensors that determines the masked weight.

The entry is torch's `_extra_state`: JSON in a uint8 tensor, so that `torch.load(weights_only=True)` can read it, and
formats that support only tensors can store it.
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
PLAIN = "edge-popup"  # the kind of a mask without additions by a search
_VERSION = 1
_BLOCK = 1024  # bytes; entries are padded to multiples, as loaders that read into existing tensors need equal sizes

# ---------------------------------------------------------------- entries


def encode(entry: Mapping[str, Any]) -> torch.Tensor:
    """Encode an entry (JSON) as a uint8 tensor (bytes,)."""
    data = json.dumps({"version": _VERSION} | dict(entry), default=plain).encode()
    return torch.frombuffer(bytearray(data.ljust(-(-len(data) // _BLOCK) * _BLOCK)), dtype=torch.uint8)


def decode(encoded: object) -> dict[str, Any]:
    """Decode a tensor of :func:`encode`. Raises ValueError for anything else, and for another version."""
    if not isinstance(encoded, torch.Tensor) or encoded.dtype != torch.uint8:
        raise ValueError(f"{KEY} is {type(encoded).__name__}: must be a uint8 tensor")
    try:
        entry: dict[str, Any] = json.loads(encoded.cpu().numpy().tobytes())
        version = entry["version"]
    except (UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{KEY} is damaged ({type(error).__name__}: {error})") from error
    if version != _VERSION:
        raise ValueError(f"{KEY} has version {version}: must be {_VERSION}; it is another slth's")
    return entry


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Prefix errors with the weight's name; errors caused by a malformed entry become ValueError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = str(error) if isinstance(error, ValueError) else f"{KEY} is damaged ({type(error).__name__}: {error})"
        raise ValueError(f"state_dict of {path}: {why}") from error


def roles(parts: Sequence[Sequence[Any]]) -> str:
    """Describe the parts in an entry, for errors."""
    return ", ".join(str(role or index) for index, _, _, role in parts) + f" along axis {parts[0][2]}"


def policies(groups: Sequence[Sequence[Any]]) -> str:
    """Describe the groups in an entry, for errors."""
    return " and ".join(f"in {name!r} from index {offset}" if name else "alone" for name, offset in groups)


# ---------------------------------------------------------------- gates by name

G = TypeVar("G", bound=Callable[..., Any])
_GATES: dict[str, Callable[..., Any]] = {}  # name -> the first gate, or dataclass of gates, with it
_NAMES: dict[Callable[..., Any], str] = {}


def named(name: str) -> Callable[[G], G]:
    """Register a gate, or a dataclass of gates, under its name in state_dicts; equal functions may share a name."""

    def register(gate: G) -> G:
        _GATES.setdefault(name, gate)
        _NAMES[gate] = name
        return gate

    return register


def describe(gate: Callable[..., Any]) -> dict[str, Any]:
    """Convert a gate to JSON: its `name` and numbers, or, if it has no name, its module and qualified name as `own`."""
    if is_dataclass(gate) and not isinstance(gate, type) and type(gate) in _NAMES:
        return {"name": _NAMES[type(gate)], **asdict(gate)}
    if gate in _NAMES:
        return {"name": _NAMES[gate]}
    place = gate if hasattr(gate, "__qualname__") else type(gate)
    return {"own": f"{place.__module__}.{place.__qualname__}"}


def revive(stored: Mapping[str, Any], present: Callable[..., Any]) -> Callable[..., Any]:
    """Return the gate that :func:`describe` stored; the present one itself if it is the same.

    Raises ValueError for an unknown gate.
    """
    if stored == describe(present):
        return present
    if "own" in stored:
        raise ValueError(f"has the gate {stored['own']}, which is not slth's: give it to this mask before loading")
    if stored["name"] not in _GATES:
        import_defining()
    if stored["name"] not in _GATES:
        raise ValueError(f"has the gate {stored['name']!r}: must be one of {', '.join(_GATES)}")
    gate, numbers = _GATES[stored["name"]], {key: value for key, value in stored.items() if key != "name"}
    if not isinstance(gate, type):
        return gate
    if numbers.keys() != {f.name for f in fields(gate)} or not all(type(v) in (int, float) for v in numbers.values()):
        raise ValueError(f"has the gate {stored['name']!r} with {numbers}: must be its numbers")
    revived: Callable[..., Any] = gate(**numbers)
    return revived
