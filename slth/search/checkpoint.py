"""What a search needs to go on where it was: trained parameters, buffers, optimiser, step and measurements.

A sealed safetensors file (`slth.files`), written whole or not at all; weights that are not trained are not in it, as
they follow from their seed, but their digest is, so that a checkpoint is never taken up by another network.
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

_KIND, _VERSION = "checkpoint", 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why."""


def save(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, identity: str, manifest: Mapping[str, Any]
) -> None:
    """Write a checkpoint of the search that `identity` names, with a manifest (JSON) that :func:`load` gives back."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in _moving(model).items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimiser.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    content = {"identity": identity, "numbers": numbers, "rest": dict(manifest)}
    files.save(path, _KIND, _VERSION, tensors, content)


def load(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, identity: str) -> dict[str, Any]:
    """Bring model and optimiser to where they were and return the manifest.

    Raises CheckpointError where the file is damaged or belongs to another search; nothing has been changed then.
    """
    try:
        tensors, content = files.read(path, _KIND, [_VERSION])
    except files.FileError as error:
        raise CheckpointError(f"checkpoint {error}") from error
    if content.get("identity") != identity:
        raise CheckpointError(
            f"checkpoint {path}: was written by another search (other weights, settings or seed); remove it, or go on "
            "with what it was made with"
        )
    moving = _moving(model)
    held = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    if {n: t.shape for n, t in held.items()} != {n: t.shape for n, t in moving.items()}:
        raise CheckpointError(f"checkpoint {path}: holds other tensors than the model")
    with torch.no_grad():
        for name, tensor in held.items():
            moving[name].copy_(tensor)
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in content["numbers"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    rest: dict[str, Any] = content["rest"]
    return rest


def identity_of(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """A digest of the settings (JSON) and of all parameters that are not trained: which search this is."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)} {parameter.requires_grad}\n".encode())
        if not parameter.requires_grad:
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _moving(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training may change: parameters with a gradient and persistent buffers, shared ones once, by name."""
    state = model.state_dict(keep_vars=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    return {name: tensor for name, tensor in state.items() if name in trained or name in buffers}
