"""Weights from a seed in plain torch: what they mean, and what Triton's are held against."""

from __future__ import annotations

import torch

from slth.weights import inits

from ..bits import unpack_mask
from ..precision import wide

#: Distributions that a kernel can draw from: all whose values are exact in any arithmetic.
SEEDED = {"uniform": inits.uniform, "uniform16": inits.uniform16, "sign": inits.sign}


def seeded_weight(
    shape: tuple[int, int],
    seed: int,
    name: str,
    distribution: str,
    scale: float,
    stream: int,
    bits: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """The random weight of `slth.weights.inits`, float32, 0 where bits say so."""
    weight = SEEDED[distribution](shape, scale, seed=seed, name=name, stream=stream, device=device)
    return weight if bits is None else torch.where(unpack_mask(bits, shape[-1]), weight, 0)


def seeded_linear(
    x: torch.Tensor,
    shape: tuple[int, int],
    seed: int,
    name: str,
    bits: torch.Tensor,
    distribution: str,
    scale: float,
    stream: int,
    inputs_first: bool,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """X (..., in) times the random weight, (in, out) where inputs_first, else (out, in)."""
    weight = seeded_weight(shape, seed, name, distribution, scale, stream, bits, x.device)
    weight = wide(weight.to(x.dtype))
    y = wide(x) @ (weight if inputs_first else weight.mT)
    return (y if bias is None else y + wide(bias)).to(x.dtype)
