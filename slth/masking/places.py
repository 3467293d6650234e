"""Find the masks in a module, whose layers may have been moved, replaced or removed since it was wrapped."""

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
        """All parametrizations of the weight: the mask, and those that the user added."""
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
        """The weight under all parametrizations."""
        original = self.stack.original
        assert isinstance(original, nn.Parameter)
        return original

    @property
    def others(self) -> list[str]:
        """The class names of the parametrizations other than the mask."""
        return [type(each).__name__ for each in self.stack if each is not self.masked]

    @torch.no_grad()
    def value(self) -> torch.Tensor:
        """Return the masked weight of eval mode, with parametrizations before the mask applied."""
        weight = self.original.detach()
        for each in self.stack:
            if each is self.masked:
                break
            weight = each(weight)
        return self.masked.evaluated(weight)

    def take_off(self, weight: nn.Parameter) -> None:
        """Replace the masked weight by a plain one; parametrizations after the mask remain."""
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
    """Give a module a class of its own, as a deepcopy shares the parametrized class with its original."""
    shared = type(owner)
    content = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    owner.__class__ = type(shared.__name__, shared.__bases__, content)


def places(module: nn.Module, wrapped: Wrapped | None = None) -> Iterator[Place]:
    """Yield every masked place in a module, of one wrapped module or (None) of any; a layer with two names has two."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, stack in getattr(owner, "parametrizations", {}).items() if parametrize.is_parametrized(owner) else ():
            for each in stack:
                if isinstance(each, Masked) and wrapped in (None, each.wrapped):
                    yield Place(f"{prefix}.{name}" if prefix else name, owner, name, each)


def place(module: nn.Module, wrapped: Wrapped, path: str) -> Place:
    """Return the place of a weight, by its name at wrap. Raises ValueError if it is no longer in the module."""
    masked = wrapped.weights[path]
    prefix, _, name = path.rpartition(".")
    with suppress(AttributeError):  # the layer was removed
        owner = module.get_submodule(prefix)
        if parametrize.is_parametrized(owner, name) and masked in owner.parametrizations[name]:  # type: ignore[index]
            return Place(path, owner, name, masked)
    moved = next((each for each in places(module, wrapped) if each.masked is masked), None)
    if moved is None:
        raise ValueError(_gone(module, path))
    return moved


def _names(module: nn.Module) -> dict[Masked, list[str]]:
    """The present names of each masked weight, several if it is tied."""
    names: dict[Masked, list[str]] = {}
    for each in places(module):
        names.setdefault(each.masked, []).append(each.path)
    return names


def _gone(module: nn.Module, path: str, partner: str = "") -> str:
    tied = f" was tied to {partner} and" if partner else ""
    return (
        f"{path}{tied} is no longer in the {type(module).__name__}: its layer was replaced or removed after wrap; "
        "put it back, or take the masks off what is there (slth.unwrap) and wrap again"
    )


def check_there(module: nn.Module, wrapped: Wrapped) -> None:
    """Raise ValueError if a weight is no longer in the module (it may be moved), or in fewer places than were tied."""
    now = _names(module)
    for path, masked in wrapped.weights.items():
        names, here = wrapped.paths[path], now.get(masked, [])
        if len(here) < len(names):
            raise ValueError(_gone(module, next(name for name in names if name not in here), *here[:1]))


def settle(masks: Iterable[Masked]) -> None:
    """Wait for the check of the masks' scores for NaN. Raises ValueError if they hold NaN."""
    for group in dict.fromkeys(group for masked in masks for group in masked.groups.values()):
        group.settle()


def check(module: nn.Module, wrapped: Wrapped) -> None:
    """Raise ValueError unless all weights are where they were wrapped, with no other parametrization than the mask."""
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


# ---------------------------------------------------------------- changes to other parameters


@dataclass(frozen=True)
class Before:
    """The state of a layer before wrap: its parameters' requires_grad, and whether its gradients were sparse."""

    trainable: dict[str, bool]
    sparse: bool


def freeze(module: nn.Module) -> None:
    """Set requires_grad of all parameters, and sparse of embeddings, to False; :func:`restore` undoes it.

    Each layer stores its own former state, so that it can be moved.
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
    """Undo :func:`freeze` after the masks are removed, and restore the order of parameters."""
    for layer in module.modules():
        before = layer.__dict__.pop(_BEFORE, None)
        if before is None:
            continue
        for name, trainable in before.trainable.items():
            if layer._parameters.get(name) is not None:
                layer._parameters[name] = layer._parameters.pop(name)  # restores the order
                layer.get_parameter(name).requires_grad_(trainable)
            elif parametrize.is_parametrized(layer, name):
                layer.parametrizations[name].original.requires_grad_(trainable)  # type: ignore[index, union-attr]
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = before.sparse


def unmasked(module: nn.Module) -> list[str]:
    """Return the names of parameters with requires_grad that are neither masked nor scores."""
    masked = {id(p) for each in places(module) for p in (each.original, *each.masked.parameters())}
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in masked]


def _is_sparse(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse


def take_off(module: nn.Module) -> None:
    """Replace every masked weight of the module by its value in eval mode, and :func:`restore` the rest.

    Parameters remain the same objects, except those that a module outside shares, which keep their values there.
    Raises ValueError, with nothing changed, if scores hold NaN.
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
        elif not torch.equal(weight, value):  # tied, but with different masks
            weight = nn.Parameter(value)
        weights.setdefault(id(original), weight)
        each.take_off(weight)
    restore(module)


def _shared(module: nn.Module, here: Sequence[Place]) -> set[int]:
    """Ids of the weights that modules outside of this one also hold.

    Finding these modules by the garbage collector is slow, so it is done only if the reference count of a weight is
    larger than its places explain.
    """
    originals = list({id(each.original): each.original for each in here}.values())
    control = object()  # has the reference count of a weight without any place
    counts = {id(each): sys.getrefcount(each) for each in (*originals, control)}
    held = Counter(id(each.original) for each in here)
    suspects = {i for i, count in held.items() if counts[i] - count > counts[id(control)]}
    if not suspects:
        return set()
    inside = {id(each) for each in module.modules()}
    outside = (m for m in gc.get_objects() if issubclass(type(m), nn.Module) and id(m) not in inside)
    return suspects & {id(p) for m in outside for p in m.__dict__.get("_parameters", {}).values()}
