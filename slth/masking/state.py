"""What a state_dict says of masks: beside their tensors an entry each, so that it holds all that is computed.

The entry is `_extra_state` in torch's sense, JSON in a uint8 tensor, so that `torch.load(weights_only=True)` reads it
and savers that take tensors alone write it. A mask that is read at several places (a tied weight) is saved once. What
does not fit is refused before anything of the module that was wrapped is copied; torch tells a part of a bigger model
of a state_dict only at its turn, so that what comes before it there is loaded by then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from slth import recipes

if TYPE_CHECKING:
    from slth.masking.masked import Masked

KEY = "_extra_state"
PLAIN = "edge-popup"  # the kind of a mask to which no search has added anything
_VERSION = 1
_BLOCK = 1024  # bytes, to whose multiples an entry is padded: loaders that read into tensors need equal sizes
_MARK = ".parametrizations."

# ---------------------------------------------------------------- entries


def encode(entry: Mapping[str, Any]) -> torch.Tensor:
    """An entry (JSON) as uint8, 1-D."""
    data = json.dumps({"version": _VERSION} | dict(entry), default=lambda number: number.item()).encode()
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
        import_module("slth.search")  # where gates are named
    if told["name"] not in _GATES:
        raise ValueError(f"has the gate {told['name']!r}: must be one of {', '.join(_GATES)}")
    gate, numbers = _GATES[told["name"]], {key: value for key, value in told.items() if key != "name"}
    if not isinstance(gate, type):
        return gate
    if numbers.keys() != {f.name for f in fields(gate)} or not all(type(v) in (int, float) for v in numbers.values()):
        raise ValueError(f"has the gate {told['name']!r} with {numbers}: must be its numbers")
    made: Callable[..., Any] = gate(**numbers)
    return made


# ---------------------------------------------------------------- hooks of the modules that hold masks


def follow(module: nn.Module) -> list[Any]:
    """Have a module, once its weights are masked, save and load whole masks. Returns the handles to remove."""
    handles: list[Any] = []
    for holder in module.modules():
        if any(True for _ in places(holder)):
            handles.append(holder.register_state_dict_pre_hook(_note))
            handles.append(holder.register_state_dict_post_hook(_once))
            handles.append(holder.register_load_state_dict_pre_hook(_check))
            handles.append(holder.register_load_state_dict_post_hook(_settle))
    return handles


def places(module: nn.Module) -> Iterator[tuple[str, ParametrizationList, Masked]]:
    """(name of the parametrization, itself, its mask) of each masked parameter, a tied one at each of its places."""
    from slth.masking.masked import Masked

    for path, found in module.named_modules(remove_duplicate=False):
        if isinstance(found, ParametrizationList) and len(found) and isinstance(found[0], Masked):
            yield path, found, found[0]


def plain_name(path: str) -> str:
    """The name that the parameter of a parametrization has in a plain module."""
    before, _, name = f".{path}".rpartition(_MARK)
    return f"{before}.{name}"[1:]


def _ties(module: nn.Module) -> Iterator[tuple[tuple[str, ParametrizationList], tuple[str, ParametrizationList]]]:
    """(first, other): two places of one mask."""
    first: dict[int, tuple[str, ParametrizationList]] = {}
    for path, found, masked in places(module):
        if (place := first.setdefault(id(masked), (path, found)))[0] != path:
            yield place, (path, found)


def _shared(keys: Mapping[str, Any], place: str) -> list[str]:
    """What of the keys belongs to all places of a mask, behind the name of one."""
    return [key.removeprefix(place) for key in keys if key == f"{place}.original" or key.startswith(f"{place}.0.")]


def _owners(module: nn.Module) -> Iterator[tuple[nn.Module, str, Masked]]:
    """(module that remembers how the weight was made, name there, mask) of each masked weight, by its first place."""
    first = {id(masked): (plain_name(path), masked) for path, _, masked in reversed(list(places(module)))}
    for path, masked in first.values():
        prefix, _, name = path.rpartition(".")
        yield module.get_submodule(prefix), name, masked


def _note(module: nn.Module, *rest: object) -> None:
    """How the weights were made, for the entries that are about to be written or, where there is none, to be kept."""
    for owner, name, masked in _owners(module):
        masked.recipe = recipes.recipe_of(owner, name) or masked.recipe


def _once(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: object) -> None:
    for _, (other, _) in _ties(module):
        for name in _shared(state_dict, prefix + other):
            del state_dict[prefix + other + name]


def _check(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: object) -> None:
    """Raise ValueError for a state that does not fit; else complete what was saved once."""
    found = {prefix + plain_name(path): prefix + path for path, _, _ in places(module)}
    for path, _, masked in places(module):
        masked.check(state_dict, f"{prefix}{path}.0.")
    for (first, _), (other, _) in _ties(module):
        for name in _shared(state_dict, prefix + first):
            state_dict.setdefault(prefix + other + name, state_dict[prefix + first + name])
    for name, place in found.items():
        if name in state_dict and not _shared(state_dict, place):
            raise ValueError(
                f"state_dict has {name} of a module that is not wrapped: load it before slth.wrap, or slth.unwrap first"
            )
    _note(module)
    for name in found:  # the masked weight, which is there for readers who know of no masks
        state_dict.pop(name, None)


def _settle(module: nn.Module, incompatible: object) -> None:
    """What assign=True has given each place is one parameter again, and how it was made is known."""
    for (_, first), (_, other) in _ties(module):
        if other.original is not first.original:
            other.original = first.original
    for owner, name, masked in _owners(module):
        if masked.recipe is None:
            recipes.forget(owner, name)
        else:
            recipes.remember(owner, name, masked.recipe)
