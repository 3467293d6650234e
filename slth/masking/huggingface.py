"""Methods of Hugging Face models that ignore masks: on a wrapped model they are made correct or raise an error.

The methods are replaced on the instances only, inner models included, until these are unwrapped. A model is recognised
by these methods, so that transformers need not be imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from slth.masking.saving import by_mask

_REFUSED = ("resize_token_embeddings", "set_input_embeddings", "set_output_embeddings", "init_weights", "post_init")


def guard(module: nn.Module) -> None:
    """Replace the methods of the Hugging Face models in a module whose weights are masked."""
    for model in _models(module):
        for name in filter(partial(hasattr, model), _REFUSED):
            model.__dict__[name] = partial(_refuse, model, name)
        for name, method in _KEPT.items():
            model.__dict__[name] = partial(method, model)


def release(module: nn.Module) -> None:
    """Restore the original methods."""
    for model in _models(module):
        for name in (*_REFUSED, *_KEPT):
            model.__dict__.pop(name, None)


def _models(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if all(hasattr(type(m), name) for name in _KEPT)]


def _refuse(model: nn.Module, name: str, *args: object, **options: object) -> None:
    raise ValueError(f"{name}: {type(model).__name__} is wrapped by slth; slth.unwrap it first, and wrap it again then")


def _tie_weights(model: nn.Module, *args: object, **options: object) -> None:
    """Do nothing if all weights are already tied. Raises ValueError if not."""
    pairs = model.get_expanded_tied_weights_keys(all_submodels=True)  # type: ignore[operator]
    if not all(_parameter(model, tied) is _parameter(model, first) for tied, first in pairs.items()):
        _refuse(model, "tie_weights")


def _parameter(model: nn.Module, path: str) -> object:
    """A parameter or buffer by name; of a masked weight, the tensor under the mask."""
    prefix, _, name = path.rpartition(".")
    owner = model.get_submodule(prefix)
    lists = getattr(owner, "parametrizations", {})
    return lists[name].original if name in lists else getattr(owner, name)


def _save_pretrained(model: nn.Module, *args: Any, **options: Any) -> None:
    """Save scores and weights, and also the masked weights by their plain names, for `from_pretrained`."""
    save: Callable[..., None] = type(model).save_pretrained  # type: ignore[attr-defined]
    bound = inspect.signature(save).bind(model, *args, **options)
    state_dict = bound.arguments.get("state_dict")
    tensors = model.state_dict() if state_dict is None else state_dict
    bound.arguments["state_dict"] = _masked_weights(model) | dict(tensors)
    save(*bound.args, **bound.kwargs)


@torch.no_grad()
def _masked_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The masked weights of eval mode, a tied one by its first name."""
    return {place.path: masked.evaluated(place.original) for masked, place in by_mask(model).items()}


_KEPT: dict[str, Callable[..., None]] = {"tie_weights": _tie_weights, "save_pretrained": _save_pretrained}
