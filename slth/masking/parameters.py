"""Find the weights of a module that are masked, and their layout.

Weights are the matrices and kernels of linear, convolutional, embedding, recurrent and attention layers, those of
slth's own modules, and any other parameter with two axes longer than one. Biases, parameters of a normalisation and
gains (by name, and those of weight_norm) are not weights, and are masked only if they are named. A fused weight (query,
key and value in one tensor) has several equal parts, each with its own group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from slth.masking.layouts import Axes, Seat, is_conv1d
from slth.weights import inits

Value = TypeVar("Value")

_ROLES = ("query", "key", "value")
# names of attention projections in common libraries, without suffixes such as "_proj" and "_proj_weight"
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
    """One of `count` equal parts of a weight along axis `dim`; role as in `slth.weights.inits.Fan`, or ""."""

    index: int = 0
    count: int = 1
    dim: int = 0
    role: str = ""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this part of a tensor with the weight's shape, as a view."""
        if self.count == 1:
            return tensor
        size = tensor.shape[self.dim] // self.count
        return tensor.narrow(self.dim, self.index * size, size)


@dataclass
class MaskedParameter:
    """A parameter to be masked, with all seats that hold it (several if it is tied); it is named after the first.

    head: the width of an attention head, if the layer of the weight or its parent states it, else None.
    """

    tensor: nn.Parameter
    seats: list[Seat] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    parts: tuple[Part, ...] = (Part(),)
    head: int | None = None

    @property
    def path(self) -> str:
        """Its name in the module that is wrapped."""
        return self.paths[0]

    def fan(self, part: Part, keep: float) -> inits.Fan:
        """Return the fan of a part, on which its initialisation depends."""
        fan_in, fan_out = self.seats[0].fans(part.of(self.tensor).shape)
        width = self.head or int(fan_in if part.role == "output" else fan_out)  # else the width of all heads
        return inits.Fan(fan_in, fan_out, width=width, role=part.role, keep=keep)

    @property
    def axes(self) -> Axes:
        """The axes of its output units and inputs."""
        return self.seats[0].axes(self.tensor.dim())

    @property
    def places(self) -> list[tuple[nn.Module, str]]:
        """(module, name in it) for every module that holds the parameter."""
        return [(seat.owner, seat.name) for seat in self.seats]

    @property
    def is_weight(self) -> bool:
        """Whether it is a weight in one of its seats."""
        return any(seat.is_weight(self.tensor) for seat in self.seats)

    @property
    def padding_rows(self) -> tuple[int, ...]:
        """The padding rows of embeddings that hold it."""
        return tuple(sorted({row for seat in self.seats if (row := seat.padding_row()) is not None}))


def find(module: nn.Module, patterns: Sequence[str] | None = None) -> list[MaskedParameter]:
    """Find the weights of a module in the order of its parameters, tied ones once.

    Args:
        module: any module.
        patterns: shell patterns (`*`, `?`, `[...]`) of parameter names; None: all weights. A pattern that matches
            weights selects only these; one that matches none selects the parameters it names ("*.bias",
            "encoder.norm.*").

    Raises:
        ValueError: for a pattern that matches nothing, if no weight is found, and for parameters that cannot be masked:
            those that are not plain floating-point tensors with values, and embeddings with max_norm.
    """
    params = parameters_of(module)
    selected = _selected(params, patterns)
    if not selected:
        raise ValueError(f"{type(module).__name__}: nothing to mask; it holds {some(params)}")
    for param in selected:
        _check(param)
    return selected


def parameters_of(module: nn.Module) -> list[MaskedParameter]:
    """Return all parameters of a module in their order, weights or not, tied ones once."""
    params: dict[int, MaskedParameter] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        seat = Seat.of(module, path)
        if id(parameter) not in params:
            parts, head = _parts(seat, parameter), _head_width(module, seat)
            params[id(parameter)] = MaskedParameter(parameter, parts=parts, head=head)
        params[id(parameter)].seats.append(seat)
        params[id(parameter)].paths.append(path)
    return list(params.values())


def _selected(params: Sequence[MaskedParameter], patterns: Sequence[str] | None) -> list[MaskedParameter]:
    """The parameters that the patterns select, in the order of the module."""
    if patterns is None:
        return [param for param in params if param.is_weight]
    selected: set[int] = set()
    for pattern in patterns:
        matched = [param for param in params if any(fnmatchcase(path, pattern) for path in param.paths)]
        if not matched:
            raise ValueError(f"parameters={pattern!r}: matches no parameter; there are {some(params)}")
        selected.update(id(param) for param in [p for p in matched if p.is_weight] or matched)
    return [param for param in params if id(param) in selected]


def _check(param: MaskedParameter) -> None:
    """Raise ValueError if a parameter cannot be masked."""
    parameter = param.tensor
    if parameter.is_meta or isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ValueError(f"{param.path}: must have values before it is wrapped")
    if is_traceable_wrapper_subclass(parameter):
        raise ValueError(
            f"{param.path} is a {type(parameter).__name__}: must be a plain tensor, masks need all of a weight; wrap "
            "before it is quantised, and share work by DistributedDataParallel, not by sharding (fully_shard)"
        )
    if parameter.layout != torch.strided:
        raise ValueError(f"{param.path} is {parameter.layout}: must be a dense tensor (parameter.to_dense())")
    if parameter.is_floating_point() and parameter.itemsize < 2:
        raise ValueError(f"{param.path} is {parameter.dtype}: must have 16 bits or more (parameter.bfloat16())")
    if not parameter.is_floating_point() or parameter.numel() == 0:
        kind = f"{parameter.dtype} of shape {tuple(parameter.shape)}"
        raise ValueError(f"{param.path} is {kind}: must be floating-point and not empty")
    if any(stride == 0 and size > 1 for stride, size in zip(parameter.stride(), parameter.shape, strict=True)):
        raise ValueError(f"{param.path} is an expanded view, whose entries share memory: must be its clone()")
    if parameter.is_inference():
        raise ValueError(f"{param.path} was made in torch.inference_mode, must be made outside of it to be changed")
    for path, seat in zip(param.paths, param.seats, strict=True):
        if obstacle := seat.obstacle():
            raise ValueError(f"{path}: {obstacle}")


def first_match(table: Mapping[str, Value], paths: Iterable[str]) -> Value | None:
    """Return the value of the first pattern that matches one of the names of a weight; None without a match."""
    names = list(paths)
    return next((value for pattern, value in table.items() if any(fnmatchcase(n, pattern) for n in names)), None)


def _parts(seat: Seat, parameter: nn.Parameter) -> tuple[Part, ...]:
    if isinstance(seat.layer, nn.MultiheadAttention) and seat.role == "in_proj_weight":
        return tuple(Part(i, 3, 0, role) for i, role in enumerate(_ROLES))
    name = seat.layer_name if seat.role == "weight" else seat.role
    if name == "c_attn" and is_conv1d(seat.layer):  # GPT-2's, cross-attention without the query
        count = parameter.shape[1] // parameter.shape[0]
        if count in (2, 3) and parameter.shape[1] == count * parameter.shape[0]:
            return tuple(Part(i, count, 1, role) for i, role in enumerate(_ROLES[-count:]))
    return (Part(role=_ROLE_OF.get(name.split("_")[0], "")),)


def _head_width(module: nn.Module, seat: Seat) -> int | None:
    for place in (seat.layer_path, seat.layer_path.rpartition(".")[0]):
        for name in ("head_dim", "attention_head_size"):
            width = getattr(module.get_submodule(place), name, None)
            if isinstance(width, int):
                return width
    return None


def some(params: Iterable[MaskedParameter]) -> str:
    """Return the names of the first few parameters, for errors."""
    names = [param.path for param in params]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no parameters"
