"""Checkpoints of a search: trained parameters, buffers, optimiser state, step and measurements.

A checkpoint is a sealed safetensors file (`slth.resuming`), written atomically. It omits weights that are not trained,
as they follow from their seed. It also stores the settings and a hash of the initial state, so that only the search
that wrote a checkpoint can resume it; the error for any other search lists the differences.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slth import resuming
from slth.masking.kinds import PRUNE
from slth.resuming import Content
from slth.ticket.making import digest_by_name, named_tensors

_KIND, _VERSION = "checkpoint", 1
#: The state of torch's optimisers that has the shape of its parameter.
_LIKE_THEIR_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why."""


@dataclass(frozen=True)
class Identity:
    """Identifies a search: settings (JSON), names of trained parameters, and a digest of the model before step 0."""

    settings: Mapping[str, Any]
    trained: list[str]
    model: str
    sums: Mapping[str, int] = field(default_factory=dict)  # name of a tensor -> CRC-32; tells which tensors differ

    @classmethod
    def of(cls, model: nn.Module, settings: Mapping[str, Any]) -> Identity:
        """Return the identity of a search that is about to begin on this model."""
        tensors = dict(named_tensors(model))
        trained = sorted(name for name, tensor in tensors.items() if tensor.requires_grad)
        sums: dict[str, int] = {}

        def summed(name: str) -> torch.Tensor:  # a tensor is fetched from its device once
            tensor = tensors[name].detach().cpu().contiguous()
            sums[name] = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data)
            return tensor

        return cls(settings, trained, digest_by_name(tensors, summed), sums)

    @property
    def digest(self) -> str:
        """A hash of the identity."""
        text = json.dumps([self.settings, self.trained, self.model], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)

    def differences(self, other: Any) -> list[str]:
        """List how the stored identity of a checkpoint differs from this one; empty if they are equal.

        other: the result of :meth:`to_json`; None for an older checkpoint, which stores only a digest.
        """
        if other is None:
            return ["weights, scores, settings or seed differ, or the model is already trained"]
        there, here = _flat(other["settings"]), _flat(json.loads(json.dumps(self.settings)))
        names = [name for name in here | there if here.get(name) != there.get(name)]
        if "method" in names:
            names = [name for name in names if not name.startswith("method.")]
        lines = [f"{name} {_value(name, there)} != {_value(name, here)}" for name in names]
        if odd := sorted(set(other["trained"]) ^ set(self.trained)):
            lines.append(f"only one of them trains {', '.join(odd[:4])}")
        if other["model"] != self.model:
            lines.append(_differing(other.get("sums", {}), self.sums))
        return lines


def _differing(there: Mapping[str, int], here: Mapping[str, int]) -> str:
    """Say which tensors of the model differ, as far as that is stored."""
    names = [name for name in here if there.get(name) != here[name]] if there else []
    if not names or len(names) == len(here):
        return "the model differs (weights, scores, masks or buffers, or it is already trained)"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    seed = "what torch itself draws, such as biases, needs torch.manual_seed before the model is built"
    return f"the model differs in {', '.join(names[:4])}{more}; is it already trained, or of another seed? {seed}"


def _value(name: str, settings: Mapping[str, Any]) -> Any:
    """The value of a setting, or its default if it is not stored."""
    return settings.get(name, PRUNE if name.startswith("kind of ") else "none")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten settings to one dict, keyed by the names that users know."""
    flat = {name: value for name, value in settings.items() if name not in ("method", "optimiser", "groups", "kinds")}
    if settings.get("method"):
        name, options = settings["method"]
        flat |= {"method": name} | {f"method.{key}": value for key, value in options.items()}
    name, groups = settings["optimiser"]
    flat["optimiser"] = name
    for i, options in enumerate(groups):
        where = f" of group {i}" if len(groups) > 1 else ""
        flat |= {f"{key}{where}": value for key, value in options.items()}
    flat |= {f"kind of {name}": kind for name, kind in settings.get("kinds", {}).items()}
    return flat | {f"keep of {name}": keep for name, keep in settings["groups"]}


def save(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, identity: Identity, manifest: Mapping[str, Any]
) -> None:
    """Write a checkpoint of the search `identity`, with a manifest (JSON) that :func:`restore` returns."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in _moving(model).items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimiser.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    rest = json.dumps(dict(manifest))  # as text, since a manifest's own numbers must be finite
    resuming.save(path, _KIND, _VERSION, identity, tensors, {"numbers": numbers, "rest": rest})


def read(path: Path, identity: Identity) -> Content:
    """Read a checkpoint. Older files, which store only a digest of the identity, are also read.

    Raises CheckpointError if the file is damaged, or if another search wrote it; the message lists the differences.
    """
    try:
        return resuming.read(path, _KIND, _VERSION, identity)
    except resuming.Damaged as error:
        raise CheckpointError(f"checkpoint {error}") from error
    except resuming.Foreign as error:
        differences = "; ".join(error.differences[:8])
        raise CheckpointError(
            f"checkpoint {path}: was written by another search ({differences}); remove it, or begin as it began"
        ) from None


def restore(held: Content, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore model and optimiser from a checkpoint and return its manifest.

    Raises CheckpointError, with the model unchanged, if the file holds other tensors or is incomplete.
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
    """The optimiser's state by index of the parameter. Raises ValueError if it does not fit the parameters."""
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


def _moving(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that training may change, by name: parameters with requires_grad and buffers; shared ones once."""
    return {
        name: tensor
        for name, tensor in named_tensors(model)
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    }
