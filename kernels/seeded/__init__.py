"""Weights stored as a seed and one bit per entry, and generated where they are used."""

from __future__ import annotations

import torch

from slth.weights.recipes import Draw

from ..arguments import check_floats, check_linear, placed
from ..autocast import as_autocast
from ..bits import check_bits
from ..dispatch import Kernel
from . import reference
from .reference import SEEDED

_SEEDED_WEIGHT = Kernel(reference.seeded_weight)
_SEEDED_LINEAR = Kernel(reference.seeded_linear)


def seeded_weight(
    shape: tuple[int, int],
    draw: Draw,
    *,
    bits: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    impl: str = "auto",
) -> torch.Tensor:
    """Generate the masked random weight of a draw: float32, the same bits on every device.

    Args:
        shape: (rows, columns).
        draw: its distribution must be "uniform", "uniform16" or "sign".
        bits: mask, uint8 (rows, ceil(columns / 8)); entries whose bit is 0 are 0. None: all entries are kept.
        device: device of the result; "cuda" is the current one.
        impl: "auto", "reference" or "triton".

    Raises ValueError for another distribution, and for bits that do not fit.
    """
    device = placed(device)
    _check_seeded(tuple(shape), draw, bits, device)
    return _SEEDED_WEIGHT.choose(impl, torch.empty(0, device=device))(shape, draw, bits, device)


@as_autocast
def seeded_linear(
    x: torch.Tensor,
    draw: Draw,
    bits: torch.Tensor,
    *,
    columns: int | None = None,
    bias: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Multiply x by a weight that is stored as a seed and one bit per entry, and add a bias.

    Triton generates, masks and uses the weight tile by tile. The result is differentiable in x and the bias. The weight
    is float32, drawn by `slth.weights.inits` in row-major order, and then rounded to x's dtype.

    Args:
        x: (..., in), float.
        draw: its distribution must be "uniform", "uniform16" or "sign".
        bits: the weight's mask, uint8: (out, ceil(in / 8)) for a weight (out, in), as in nn.Linear.
        columns: out, for a weight (in, out), as in transformers' Conv1D and the projections of `slth.attention`; bits
            are then (in, ceil(out / 8)). None: the weight is (out, in).
        bias: (out,), of x's dtype.
        impl: "auto", "reference" or "triton".

    Returns (..., out) in x's dtype. Raises ValueError for another distribution, and for shapes, dtypes or devices that
    do not fit.
    """
    check_floats(x=x, bias=bias)
    if bits.dim() != 2:
        raise ValueError(f"bits of shape {tuple(bits.shape)}: must be (rows, ceil(columns / 8))")
    inputs_first = columns is not None
    shape = (bits.shape[0], x.shape[-1] if columns is None else columns)
    _check_seeded(shape, draw, bits, x.device)
    check_linear(x, shape[::-1] if inputs_first else shape, bias)
    return _SEEDED_LINEAR.choose(impl, x)(x, shape, draw, bits, inputs_first, bias)


def _check_seeded(shape: tuple[int, ...], draw: Draw, bits: torch.Tensor | None, device: torch.device) -> None:
    if draw.distribution not in SEEDED:
        raise ValueError(f"distribution={draw.distribution!r}: must be one of {', '.join(SEEDED)}")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)}: must be (rows, columns), each >= 1")
    if bits is not None:
        check_bits(bits, shape[1])
        if bits.shape[0] != shape[0]:
            raise ValueError(f"bits of {bits.shape[0]} rows: must be of {shape[0]}")
        if bits.device != device:
            raise ValueError(f"bits on {bits.device}: must be on {device}")
