"""Which parameters of a module are weights to be masked, and how each of them is laid out.

Weights are the matrices and kernels of linear, convolutional, embedding, recurrent and attention layers, those of our
own modules, and any other parameter with two axes longer than one; never biases nor what a normalisation holds, unless
they are named. A fused weight (query, key and value in one tensor) has several equal parts, each a group of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import nn

from slth import inits

Value = TypeVar("Value")

_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
)
_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,
)
_ROLES = ("query", "key", "value")
# names that libraries give to the projections of attention, without "_proj", "_proj_weight" and the like
_ROLE_OF = {
    "q": "query",
    "query": "query",
    "k": "key",
    "key": "key",
    "v": "value",
    "value": "value",
    "output": "output",
}


@dataclass(frozen=True)
class Part:
    """One of `count` equal parts of a weight along axis `dim`; role as in `slth.inits.Fan`, "" where there is none."""

    index: int = 0
    count: int = 1
    dim: int = 0
    role: str = ""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of a tensor of the weight's shape, a view."""
        if self.count == 1:
            return tensor
        size = tensor.shape[self.dim] // self.count
        return tensor.narrow(self.dim, self.index * size, size)


@dataclass
class Target:
    """A weight: every place that holds it (several where it is tied), the first of which names it.

    head: the width of an attention head, where the module that holds the weight or the one around it says so.
    """

    parameter: nn.Parameter
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    parts: tuple[Part, ...] = (Part(),)
    head: int | None = None

    @property
    def path(self) -> str:
        """Its name in the module that is wrapped."""
        return self.paths[0]

    def fan(self, part: Part, keep: float) -> inits.Fan:
        """What an initialisation of the part depends on."""
        owner, _ = self.places[0]
        fan_in, fan_out = _fans(owner, part.of(self.parameter).shape)
        width = self.head or (fan_in if part.role == "output" else fan_out)  # else the side that faces the heads
        return inits.Fan(fan_in, fan_out, width=width, role=part.role, keep=keep)


def find(module: nn.Module, patterns: Sequence[str] | None = None) -> list[Target]:
    """The weights of a module in the order of its parameters, tied ones once.

    patterns: shell patterns (`*`, `?`, `[...]`) of parameter names, None: all weights. A name that is matched is
    taken even where it is a bias or belongs to a normalisation. Raises ValueError for a pattern that matches
    nothing, where nothing is found, and for a parameter that is not a floating-point tensor with values.
    """
    found: dict[int, Target] = {}
    for path, owner, name, parameter in _parameters(module):
        if id(parameter) not in found:
            parts = _parts(path, owner, name, parameter)
            found[id(parameter)] = Target(parameter, parts=parts, head=_head_width(module, path))
        target = found[id(parameter)]
        target.places.append((owner, name))
        target.paths.append(path)
    named = [target for target in found.values() if _wanted(target, patterns)]
    for pattern in patterns or ():
        if not any(fnmatchcase(path, pattern) for target in found.values() for path in target.paths):
            raise ValueError(f"targets={pattern!r}: matches no parameter; there are {_some(found.values())}")
    if not named:
        raise ValueError(f"{type(module).__name__}: nothing to mask; it holds {_some(found.values())}")
    for target in named:
        if target.parameter.is_meta or isinstance(target.parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{target.path}: must have values before it is wrapped")
        if not target.parameter.is_floating_point() or target.parameter.numel() == 0:
            kind = f"{target.parameter.dtype} of shape {tuple(target.parameter.shape)}"
            raise ValueError(f"{target.path} is {kind}: must be floating-point and not empty")
    return named


def first_match(table: Mapping[str, Value], paths: Iterable[str]) -> Value | None:
    """The value of the first pattern of a table that matches one of the names of a weight, None without a match."""
    names = list(paths)
    return next((value for pattern, value in table.items() if any(fnmatchcase(n, pattern) for n in names)), None)


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """(path, owner, name, parameter) at every place, ties several times."""
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            yield (f"{prefix}.{name}" if prefix else name), owner, name, parameter


def _wanted(target: Target, patterns: Sequence[str] | None) -> bool:
    if patterns is not None:
        return any(fnmatchcase(path, pattern) for path in target.paths for pattern in patterns)
    return any(_is_weight(owner, name, target.parameter) for owner, name in target.places)


def _is_weight(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if isinstance(owner, _NORMS) or "norm" in type(owner).__name__.lower():
        return False
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "bias" not in name
    if isinstance(owner, _LAYERS):
        return "weight" in name and parameter.dim() >= 2
    return sum(size > 1 for size in parameter.shape) >= 2 and "bias" not in name


def _parts(path: str, owner: nn.Module, name: str, parameter: nn.Parameter) -> tuple[Part, ...]:
    if isinstance(owner, nn.MultiheadAttention) and name == "in_proj_weight":
        return tuple(Part(i, 3, 0, role) for i, role in enumerate(_ROLES))
    if path.endswith("c_attn.weight") and _is_conv1d(owner):  # GPT-2's, cross-attention without the query
        count = parameter.shape[1] // parameter.shape[0]
        if count in (2, 3) and parameter.shape[1] == count * parameter.shape[0]:
            return tuple(Part(i, count, 1, role) for i, role in enumerate(_ROLES[-count:]))
    words = path.removesuffix(".weight").rpartition(".")[2].split("_")
    return (Part(role=_ROLE_OF.get(words[0], "")),)


def _is_conv1d(owner: nn.Module) -> bool:
    """Hugging Face's transposed linear layer, told by its name so that transformers need not be imported."""
    return type(owner).__name__ == "Conv1D" and hasattr(owner, "nf")


def _fans(owner: nn.Module, shape: torch.Size) -> tuple[int, int]:
    """(inputs, outputs) of one unit, of a weight in the layout of its owner."""
    if len(shape) < 2:
        return max(1, shape.numel()), max(1, shape.numel())
    if _is_conv1d(owner) or getattr(owner, "inputs_first", False):  # (..., in, out)
        return shape[-2], shape[-1]
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):  # (in, out, *kernel)
        return shape[0] * math.prod(shape[2:]), shape[1] * math.prod(shape[2:])
    return math.prod(shape[1:]), shape[0] * math.prod(shape[2:])  # (out, in, *kernel)


def _head_width(module: nn.Module, path: str) -> int | None:
    owner = path.rpartition(".")[0]
    for place in (owner, owner.rpartition(".")[0]):
        for name in ("head_dim", "attention_head_size"):
            width = getattr(module.get_submodule(place), name, None)
            if isinstance(width, int):
                return width
    return None


def _some(targets: Iterable[Target]) -> str:
    names = [target.path for target in targets]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no parameters"
