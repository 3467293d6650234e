"""Hooks by which a module with masked weights saves and loads masks in its state_dict.

A mask at several places (a tied weight) is saved once, under the first. A state_dict that does not fit is refused
before anything is copied into the wrapped module. If that is part of a larger module, torch has already loaded the
parts before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from slth.masking.masked import Masked
from slth.masking.places import Place, places
from slth.weights import recipes


def follow(module: nn.Module) -> None:
    """Add the hooks to a module whose weights are masked."""
    for holder in module.modules():
        if any(True for _ in places(holder)):
            holder.register_state_dict_pre_hook(_note_recipes)
            holder.register_state_dict_post_hook(_drop_repeats)
            holder.register_load_state_dict_pre_hook(_check_state)
            holder.register_load_state_dict_post_hook(_tie_again)


def unfollow(module: nn.Module) -> None:
    """Remove the hooks of :func:`follow` from the module as it is now."""
    for holder in module.modules():
        for hooks in (
            holder._state_dict_pre_hooks,
            holder._state_dict_hooks,
            holder._load_state_dict_pre_hooks,
            holder._load_state_dict_post_hooks,
        ):
            for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) in _HOOKS]:
                del hooks[key]


def by_mask(module: nn.Module) -> dict[Masked, Place]:
    """Return the first place of each mask, in the order of the module."""
    first: dict[Masked, Place] = {}
    for each in places(module):
        first.setdefault(each.masked, each)
    return first


def _ties(module: nn.Module) -> Iterator[tuple[Place, Place]]:
    """Pairs (first, other) of places of one mask."""
    first = by_mask(module)
    return ((first[each.masked], each) for each in places(module) if each.path != first[each.masked].path)


def _shared(keys: Mapping[str, Any], place: Place, prefix: str) -> dict[str, str]:
    """Key -> name of the tensor, for the keys at this place that all places of the mask share."""
    original, mask = f"{prefix}{place.stack_path}.original", f"{prefix}{place.mask_path}."
    names = {key: key.removeprefix(mask) for key in keys if key.startswith(mask)}
    return names | ({original: ""} if original in keys else {})


def _note_recipes(module: nn.Module, *rest: object) -> None:
    """Copy the recipes of the weights to their masks, before entries are written, or if a state_dict has none."""
    for masked, place in by_mask(module).items():
        masked.recipe = recipes.recipe_of(place.owner, place.name) or masked.recipe


def _drop_repeats(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: object) -> None:
    for _, other in _ties(module):
        for key in _shared(state_dict, other, prefix):
            del state_dict[key]


def _check_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: object) -> None:
    """Raise ValueError for a state_dict that does not fit; else copy shared entries to all places."""
    here = list(places(module))
    for each in here:
        each.masked.check(state_dict, f"{prefix}{each.mask_path}.")
    for first, other in _ties(module):
        for key, rest_of_it in _shared(state_dict, first, prefix).items():
            same = f"{other.mask_path}.{rest_of_it}" if rest_of_it else f"{other.stack_path}.original"
            state_dict.setdefault(prefix + same, state_dict[key])
    for each in here:
        name = prefix + each.path
        if name in state_dict and not _shared(state_dict, each, prefix):
            raise ValueError(
                f"state_dict has {name} of a module that is not wrapped: load it before slth.wrap, or slth.unwrap first"
            )
    _note_recipes(module)
    for each in here:  # masked weights under plain names, which are for readers that do not know masks
        state_dict.pop(prefix + each.path, None)


def _tie_again(module: nn.Module, incompatible: object) -> None:
    """Tie parameters again that assign=True has replaced at each place, and restore the recipes."""
    for first, other in _ties(module):
        if other.original is not first.original:
            other.stack.original = first.original
    for masked, place in by_mask(module).items():
        if masked.recipe is None:
            recipes.forget(place.owner, place.name)
        else:
            recipes.remember(place.owner, place.name, masked.recipe)


_HOOKS = (_note_recipes, _drop_repeats, _check_state, _tie_again)
