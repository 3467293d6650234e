"""A weight stored as a draw and one bit per entry, which its module reads like a plain parameter."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

import slth.kernels as kernels
from slth.weights.recipes import Draw


class SeededWeight(nn.Module):
    """A torch parametrization that draws a weight (..., rows, columns) whenever it is read.

    Its only tensor is the packed mask, uint8 (all rows, ceil(columns / 8)), in the format of `slth.kernels.pack_mask`.
    """

    def __init__(self, draw: Draw, mask: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.draw, self.shape, self.dtype = draw, tuple(mask.shape), dtype
        self._first = kernels.pack_mask(mask.reshape(-1, mask.shape[-1]))

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the packed mask, which is stored instead of the weight."""
        bits = self._first
        del self._first
        return (bits,)

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        """Draw the weight on the device of its packed mask."""
        weight = kernels.seeded_weight(
            (math.prod(self.shape[:-1]), self.shape[-1]), self.draw, bits=bits, device=bits.device
        )
        return weight.reshape(self.shape).to(self.dtype)


def read_seeded(module: nn.Module, path: str, draw: Draw, mask: torch.Tensor) -> None:
    """Replace a module's parameter by a :class:`SeededWeight` with this draw and mask (bool, the parameter's shape)."""
    prefix, _, name = path.rpartition(".")
    owner = module.get_submodule(prefix)
    weight = owner.get_parameter(name).detach()
    del owner._parameters[name]
    owner.register_buffer(name, weight)  # so that the packed mask is also a buffer
    seeded = SeededWeight(draw, mask.to(weight.device), weight.dtype)
    parametrize.register_parametrization(owner, name, seeded.train(owner.training), unsafe=True)
