"""What a search needs to go on where it was: trained parameters, buffers, optimiser, step and measurements.

A sealed safetensors file (`slth.files`), written whole or not at all; weights that are not trained are not in it, as
they follow from their seed. An identity is, made of the settings and of all that the search began with, so that a
checkpoint is never taken up by another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slth import files
from slth.ticket.making import digest_of, named_tensors

_KIND, _VERSION = "checkpoint", 1
#: What torch's optimisers hold in the shape of a parameter.
_LIKE_THEIR_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")

#: (tensors, manifest) of a file.
Content = tuple[dict[str, torch.Tensor], dict[str, Any]]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why."""


def save(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, identity: str, manifest: Mapping[str, Any]
) -> None:
    """Write a checkpoint of the search that `identity` names, with a manifest (JSON) for :func:`restore`."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in _moving(model).items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimiser.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    rest = json.dumps(dict(manifest))  # text, in which numbers need not be finite
    content = {"identity": identity, "numbers": numbers, "rest": rest}
    files.save(path, _KIND, _VERSION, tensors, content)


def read(path: Path, identity: str) -> Content:
    """What the file holds. Raises CheckpointError where it is damaged or belongs to another search."""
    try:
        tensors, content = files.read(path, _KIND, [_VERSION])
    except files.FileError as error:
        raise CheckpointError(f"checkpoint {error}") from error
    if content.get("identity") != identity:
        raise CheckpointError(
            f"checkpoint {path}: was written by another search (other weights, scores, settings or seed, or a model "
            "already trained); remove it, or begin as it began"
        )
    return tensors, content


def restore(held: Content, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Bring model and optimiser to where they were and return the manifest.

    Raises CheckpointError where the file holds other tensors or lacks something; the model is as it was then.
    """
    tensors, content = held
    moving = _moving(model)
    saved = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    if {n: (t.shape, t.dtype) for n, t in saved.items()} != {n: (t.shape, t.dtype) for n, t in moving.items()}:
        raise CheckpointError(f"checkpoint: holds {', '.join(saved)}, must hold {', '.join(moving)}, as they are")
    try:
        state, rest = _state_of(tensors, content, optimiser), dict(json.loads(content["rest"]))
        step, rows = rest["step"], rest["rows"]
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint: does not fit ({type(error).__name__}: {error})") from error
    if type(step) is not int or step < 0 or not isinstance(rows, list):
        raise CheckpointError(
            f"checkpoint: step={step!r} and rows of type {type(rows).__name__}: must be a count, a list"
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            moving[name].copy_(tensor)
    return rest


def _state_of(
    tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any], optimiser: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    """The optimiser's state by the number of its parameter. Raises ValueError where it is that of others."""
    shapes = [p.shape for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in content["numbers"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            if key in _LIKE_THEIR_PARAMETER and tensor.shape != dict(enumerate(shapes))[int(index)]:
                raise ValueError(f"{name} of shape {tuple(tensor.shape)}")
            state.setdefault(int(index), {})[key] = tensor
    if not set(state) <= set(range(len(shapes))):
        raise ValueError(f"an optimiser of parameters {sorted(state)}, must be of {len(shapes)}")
    return state


def identity_of(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """A digest of the settings (JSON) and of the model as it is before its first step: which search this is."""
    tensors = dict(named_tensors(model))
    trained = sorted(name for name, tensor in tensors.items() if tensor.requires_grad)
    text = json.dumps([settings, trained, digest_of(tensors)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _moving(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training may change: parameters with a gradient and persistent buffers, shared ones once, by name."""
    return {
        name: tensor
        for name, tensor in named_tensors(model)
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    }
