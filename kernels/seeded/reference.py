"""Weights from a seed in plain torch, the reference for Triton's."""

from __future__ import annotations

import torch

from slth.weights.recipes import Draw

from ..bits import unpack_mask
from ..precision import wide

#: Distributions that kernels support: those whose values are exact in any arithmetic.
SEEDED = ("uniform", "uniform16", "sign")


def seeded_weight(shape: tuple[int, int], draw: Draw, bits: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Generate the random weight of a draw, float32, 0 where a bit is 0."""
    weight = draw.tensor(shape, device)
    return weight if bits is None else torch.where(unpack_mask(bits, shape[-1]), weight, 0)


def seeded_linear(
    x: torch.Tensor,
    shape: tuple[int, int],
    draw: Draw,
    bits: torch.Tensor,
    inputs_first: bool,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Multiply x (..., in) by the random weight, (in, out) if inputs_first, else (out, in)."""
    weight = seeded_weight(shape, draw, bits, x.device)
    weight = wide(weight.to(x.dtype))
    y = wide(x) @ (weight if inputs_first else weight.mT)
    return (y if bias is None else y + wide(bias)).to(x.dtype)
