"""The linear maps of any module, each as one matrix (inputs, outputs), and its other tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from slth.masking.layouts import Seat
from slth.masking.parameters import MaskedParameter, Part, parameters_of
from slth.modules import check_module
from slth.ticket.making import named_tensors
from slth.wrapping import check_plain

#: The dtypes that merged weights can be rounded to.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8)


@dataclass(frozen=True)
class LinearMap:
    """One linear map of a module: a parameter, or one of the equal parts of a fused parameter.

    name: the parameter's name, followed by the part's role or number; parameter: the parameter's name in the module.
    """

    name: str
    parameter: str
    part: Part
    seat: Seat
    shape: torch.Size
    dtype: torch.dtype

    def matrix(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return the map (inputs, outputs) in a tensor of the parameter's shape, as a view or a copy."""
        return self.seat.matrix(self.part.of(parameter))

    def put(self, parameter: torch.Tensor, matrix: torch.Tensor) -> None:
        """Write the map into a tensor of the parameter's shape, in place."""
        places = self.matrix(torch.arange(parameter.numel()).reshape(parameter.shape))
        flat = parameter.detach().flatten()
        flat[places.flatten().to(flat.device)] = matrix.flatten().to(flat)
        parameter.detach().copy_(flat.reshape(parameter.shape))

    @property
    def sizes(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        rows, columns = self.matrix(torch.empty(self.shape, device="meta")).shape
        return rows, columns


def linear_maps(net: nn.Module, *, tables: bool = False) -> list[LinearMap]:
    """List the linear maps of a module that is not wrapped, in the order of its parameters; tied and shared ones once.

    These are its weights (`slth.masking.parameters`). Embeddings, matrices tied to them and position tables are only
    included with `tables`. Raises ValueError for an argument that is no module or is wrapped, if there is no linear
    map, and for one that is on the device meta, has a dtype not in DTYPES, or is not finite.
    """
    check_module(net, "net")
    check_plain(net)
    maps = [each for param in parameters_of(net) if _is_map(param, tables) for each in _maps_of(param)]
    if not maps:
        raise ValueError(f"net={type(net).__name__}: must have a linear map, a matrix or kernel that it multiplies by")
    for each in maps:
        _check(net.get_parameter(each.parameter), each)
    return maps


def recorded(net: nn.Module, maps: list[LinearMap]) -> dict[str, torch.Tensor]:
    """Return a module's tensors other than these maps: other parameters, tied ones once, and persistent buffers."""
    hidden = {each.parameter for each in maps}
    return {path: tensor.detach() for path, tensor in named_tensors(net) if path not in hidden}


def _is_map(param: MaskedParameter, tables: bool) -> bool:
    if not param.is_weight or param.tensor.numel() == 0:
        return False
    return tables or not any(seat.is_table() for seat in param.seats)


def _maps_of(param: MaskedParameter) -> list[LinearMap]:
    def of(part: Part) -> LinearMap:
        suffix = f".{part.role or part.index}" if part.count > 1 else ""
        tensor = param.tensor
        return LinearMap(f"{param.path}{suffix}", param.path, part, param.seats[0], tensor.shape, tensor.dtype)

    return [of(part) for part in param.parts]


def _check(parameter: nn.Parameter, each: LinearMap) -> None:
    if parameter.is_meta:
        raise ValueError(f"net {each.parameter!r} is on the device meta: must hold values")
    if parameter.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"net {each.parameter!r} of dtype {parameter.dtype}: must be one of {allowed}")
    if not torch.isfinite(parameter).all():
        raise ValueError(f"net {each.parameter!r} holds NaN or infinite values: all must be finite")
