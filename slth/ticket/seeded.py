"""A weight that exists as a draw and one bit an entry, in a module that reads it as a plain parameter."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

import slth.kernels as kernels
from slth.weights.recipes import Draw


class SeededWeight(nn.Module):
    """A parametrization, in torch's sense, by which a weight (..., rows, columns) is made whenever it is read.

    Its one tensor is the bits of the mask, uint8 (all rows, ceil(columns / 8)), as `slth.kernels.pack_mask` has them.
    """

    def __init__(self, draw: Draw, mask: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.draw, self.shape, self.dtype = draw, tuple(mask.shape), dtype
        self._first = kernels.pack_mask(mask.reshape(-1, mask.shape[-1]))

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor]:
        """What is stored in place of the weight."""
        bits = self._first
        del self._first
        return (bits,)

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        """The weight, on the device of its bits."""
        weight = kernels.seeded_weight(
            (math.prod(self.shape[:-1]), self.shape[-1]), self.draw, bits=bits, device=bits.device
        )
        return weight.reshape(self.shape).to(self.dtype)


def read_seeded(module: nn.Module, path: str, draw: Draw, mask: torch.Tensor) -> None:
    """Have a module's parameter, by its name, made from a draw and a mask (bool, its shape) whenever it is read."""
    prefix, _, name = path.rpartition(".")
    owner = module.get_submodule(prefix)
    weight = owner.get_parameter(name).detach()
    del owner._parameters[name]
    owner.register_buffer(name, weight)  # so that the bits are a buffer, too
    seeded = SeededWeight(draw, mask.to(weight.device), weight.dtype)
    parametrize.register_parametrization(owner, name, seeded.train(owner.training), unsafe=True)
