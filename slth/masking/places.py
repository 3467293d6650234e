"""Where the masks of a module are now: its layers may have been moved, replaced or removed since it was wrapped."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from slth.masking.groups import Wrapped
from slth.masking.masked import Masked

_BEFORE = "_slth_before"


@dataclass(frozen=True)
class Place:
    """A weight under its mask: the tensor `name` of `owner`, called `path` in the module that was searched."""

    path: str
    owner: nn.Module
    name: str
    masked: Masked

    @property
    def stack(self) -> ParametrizationList:
        """What stands on the weight, the mask and what the user has put there after wrap."""
        stack = self.owner.parametrizations[self.name]  # type: ignore[index]
        assert isinstance(stack, ParametrizationList)
        return stack

    @property
    def stack_path(self) -> str:
        """The name of the stack in the module that was searched."""
        prefix, dot, name = self.path.rpartition(".")
        return f"{prefix}{dot}parametrizations.{name}"

    @property
    def mask_path(self) -> str:
        """The name of the mask there."""
        return f"{self.stack_path}.{[each is self.masked for each in self.stack].index(True)}"

    @property
    def original(self) -> nn.Parameter:
        """The weight under all that stands on it."""
        original = self.stack.original
        assert isinstance(original, nn.Parameter)
        return original

    @property
    def others(self) -> list[str]:
        """Classes of the parametrizations beside the mask."""
        return [type(each).__name__ for each in self.stack if each is not self.masked]

    @torch.no_grad()
    def value(self) -> torch.Tensor:
        """The masked weight that evaluation sees: what comes before the mask in the stack counts."""
        weight = self.original.detach()
        for each in self.stack:
            if each is self.masked:
                break
            weight = each(weight)
        return self.masked.evaluated(weight)

    def take_off(self, weight: nn.Parameter) -> None:
        """Put a plain weight where the masked one was. What stood on the mask stays on the weight."""
        stack = self.stack
        stack.register_parameter("original", weight)
        while stack[0] is not self.masked:
            del stack[0]
        if len(stack) > 1:
            del stack[0]
            return
        _class_of_its_own(self.owner)
        parametrize.remove_parametrizations(self.owner, self.name, leave_parametrized=False)
        if isinstance(self.owner, nn.RNNBase) and not parametrize.is_parametrized(self.owner):
            self.owner._init_flat_weights()


def _class_of_its_own(owner: nn.Module) -> None:
    """A class that no copy shares: the one that shows masked weights is handed on by deepcopy."""
    shared = type(owner)
    content = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    owner.__class__ = type(shared.__name__, shared.__bases__, content)


def places(module: nn.Module, wrapped: Wrapped | None = None) -> Iterator[Place]:
    """Every place of a module that has a mask, of one wrapped module or of any; a layer with two names has two."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, stack in getattr(owner, "parametrizations", {}).items() if parametrize.is_parametrized(owner) else ():
            for each in stack:
                if isinstance(each, Masked) and wrapped in (None, each.wrapped):
                    yield Place(f"{prefix}.{name}" if prefix else name, owner, name, each)


def place(module: nn.Module, wrapped: Wrapped, path: str) -> Place:
    """Where the weight of that name is. Raises ValueError where it is in the module no more."""
    masked = wrapped.weights[path]
    prefix, _, name = path.rpartition(".")
    with suppress(AttributeError):  # a layer that is there no more
        owner = module.get_submodule(prefix)
        if parametrize.is_parametrized(owner, name) and masked in owner.parametrizations[name]:  # type: ignore[index]
            return Place(path, owner, name, masked)
    moved = next((each for each in places(module, wrapped) if each.masked is masked), None)
    if moved is None:
        raise ValueError(_gone(module, path))
    return moved


def _names(module: nn.Module) -> dict[Masked, list[str]]:
    """The names of each masked weight as the module is now, several where it is tied."""
    found: dict[Masked, list[str]] = {}
    for each in places(module):
        found.setdefault(each.masked, []).append(each.path)
    return found


def _gone(module: nn.Module, path: str, partner: str = "") -> str:
    tied = f" was tied to {partner} and" if partner else ""
    return (
        f"{path}{tied} is no longer in the {type(module).__name__}: its layer was replaced or removed after wrap; "
        "put it back, or take the masks off what is there (slth.unwrap) and wrap again"
    )


def check_there(module: nn.Module, wrapped: Wrapped) -> None:
    """Raise ValueError where a weight is in the module no more, moved or not, or in fewer places than were tied."""
    now = _names(module)
    for path, masked in wrapped.weights.items():
        names, here = wrapped.paths[path], now.get(masked, [])
        if len(here) < len(names):
            raise ValueError(_gone(module, next(name for name in names if name not in here), *here[:1]))


def settle(masks: Iterable[Masked]) -> None:
    """Wait until it is known whether scores that the masks were cut by hold NaN. Raises ValueError where they do."""
    for group in dict.fromkeys(group for masked in masks for group in masked.groups.values()):
        group.settle()


def check(module: nn.Module, wrapped: Wrapped) -> None:
    """Raise ValueError unless all is where it was wrapped, with nothing on the weights but the masks."""
    check_there(module, wrapped)
    now = _names(module)
    for path, masked in wrapped.weights.items():
        for name in wrapped.paths[path]:
            if name not in now[masked]:
                moved = next(each for each in now[masked] if each not in wrapped.paths[path])
                raise ValueError(
                    f"{name} has become {moved}: a layer was inserted, moved or wrapped by another after wrap; undo "
                    "this, or take the masks off (slth.unwrap) and wrap the module as it is now"
                )
    for each in places(module):
        if wrapped.weights.get(each.masked.path) is not each.masked:
            raise ValueError(
                f"{each.path} has a mask that is not of this wrap, as a copied layer has, or one of another wrapped "
                "module; take all masks off (slth.unwrap) and wrap the module as it is now"
            )
        if each.others:
            raise ValueError(
                f"{each.path}: {', '.join(each.others)} was put on it after wrap, which its mask and seed do not tell; "
                "put it on before slth.wrap, or remove it"
            )


# ---------------------------------------------------------------- what masks change besides the weights


@dataclass(frozen=True)
class Before:
    """What a layer was before wrap: which of its parameters were trained, and whether its gradients were sparse."""

    trainable: dict[str, bool]
    sparse: bool


def freeze(module: nn.Module) -> None:
    """Take requires_grad from all parameters, and sparse gradients from embeddings; :func:`restore` gives them back.

    Each layer remembers its own, wherever it goes.
    """
    for layer in module.modules():
        flags = {name: p.requires_grad for name, p in layer.named_parameters(recurse=False, remove_duplicate=False)}
        if not flags:
            continue
        layer.__dict__[_BEFORE] = Before(flags, sparse=_is_sparse(layer))
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = False
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None


def restore(module: nn.Module) -> None:
    """Undo :func:`freeze`, once the masks are off; parameters come in the order that they had."""
    for layer in module.modules():
        before = layer.__dict__.pop(_BEFORE, None)
        if before is None:
            continue
        for name, trainable in before.trainable.items():
            if layer._parameters.get(name) is not None:
                layer._parameters[name] = layer._parameters.pop(name)  # behind those that came before it
                layer.get_parameter(name).requires_grad_(trainable)
            elif parametrize.is_parametrized(layer, name):
                layer.parametrizations[name].original.requires_grad_(trainable)  # type: ignore[index, union-attr]
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = before.sparse


def unmasked(module: nn.Module) -> list[str]:
    """Names of the parameters with a gradient that no mask stands on, but for scores."""
    masked = {id(p) for each in places(module) for p in (each.original, *each.masked.parameters())}
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in masked]


def _is_sparse(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse


def take_off(module: nn.Module) -> None:
    """Replace every masked weight of the module by its value as evaluation sees it, and :func:`restore` the rest.

    Parameters stay the objects that they were, but where a module outside shares one: that one keeps its values.
    Raises ValueError, with nothing changed, for scores that hold NaN.
    """
    here = list({id(each.stack): each for each in places(module)}.values())
    values = [each.value() for each in here]
    settle(each.masked for each in here)
    shared = _shared(module, here)
    weights: dict[int, nn.Parameter] = {}
    for each, value in zip(here, values, strict=True):
        original = each.original
        weight = weights.get(id(original))
        if weight is None and id(original) in shared:
            original.requires_grad_(each.owner.__dict__[_BEFORE].trainable[each.name])
            weight = nn.Parameter(value)
        elif weight is None:
            original.copy_(value)
            weight = original
        elif not torch.equal(weight, value):  # tied, but not alike under their masks
            weight = nn.Parameter(value)
        weights.setdefault(id(original), weight)
        each.take_off(weight)
    restore(module)


def _shared(module: nn.Module, here: Sequence[Place]) -> set[int]:
    """Ids of the weights that modules outside of this one hold too.

    The garbage collector knows them, but takes long; so it is asked only where a count of references says that
    something holds a weight besides its places.
    """
    originals = list({id(each.original): each.original for each in here}.values())
    control = object()  # is referred to as often as a weight that nothing else holds, but for its places
    counts = {id(each): sys.getrefcount(each) for each in (*originals, control)}
    held = Counter(id(each.original) for each in here)
    suspects = {i for i, count in held.items() if counts[i] - count > counts[id(control)]}
    if not suspects:
        return set()
    inside = {id(each) for each in module.modules()}
    outside = (m for m in gc.get_objects() if issubclass(type(m), nn.Module) and id(m) not in inside)
    return suspects & {id(p) for m in outside for p in m.__dict__.get("_parameters", {}).values()}
