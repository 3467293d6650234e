"""Weights that exist as a seed and one bit an entry, made where they are used."""

from __future__ import annotations

import torch

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
    seed: int,
    name: str,
    distribution: str,
    *,
    scale: float,
    stream: int = 0,
    bits: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    impl: str = "auto",
) -> torch.Tensor:
    """The random weight of `slth.weights.inits` under a mask, made where it is used: float32, the same bits everywhere.

    Args:
        shape: (rows, columns).
        seed: as in `slth.weights.inits`, like name and stream.
        name: of the weight's stream.
        distribution: "uniform", "uniform16" or "sign".
        scale: of the distribution.
        stream: of re-draws.
        bits: uint8 (rows, ceil(columns / 8)): 0 where a bit is 0; all are kept without.
        device: of the result, "cuda" being the current one.
        impl: "auto", "reference" or "triton".

    Raises ValueError for another distribution, and for bits that do not fit.
    """
    device = placed(device)
    _check_seeded(tuple(shape), distribution, bits, device)
    choose = _SEEDED_WEIGHT.choose(impl, torch.empty(0, device=device))
    return choose(shape, seed, name, distribution, scale, stream, bits, device)


@as_autocast
def seeded_linear(
    x: torch.Tensor,
    seed: int,
    name: str,
    bits: torch.Tensor,
    distribution: str,
    *,
    scale: float,
    stream: int = 0,
    columns: int | None = None,
    bias: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """X times a weight that exists only as a seed and one bit an entry: made, masked and used tile by tile.

    Differentiable in x and the bias. The weight is float32 as `slth.weights.inits` draws it, row by row of its own
    layout, and rounded to x's dtype.

    Args:
        x: (..., in), float.
        seed: as in `slth.weights.inits`, like name and stream.
        name: of the weight's stream.
        bits: its mask, uint8: (out, ceil(in / 8)) for a weight (out, in) like that of nn.Linear.
        distribution: "uniform", "uniform16" or "sign".
        scale: of the distribution.
        stream: of re-draws.
        columns: given (= out) where the weight is (in, out), like that of Hugging Face's Conv1D and the projections
            of `slth.attention`, and bits (in, ceil(out / 8)).
        bias: (out,), of x's dtype.
        impl: "auto", "reference" or "triton".

    Returns (..., out), of x's dtype. Raises ValueError for another distribution, and for shapes, dtypes or devices that
    do not fit.
    """
    check_floats(x=x, bias=bias)
    if bits.dim() != 2:
        raise ValueError(f"bits of shape {tuple(bits.shape)}: must be (rows, ceil(columns / 8))")
    inputs_first = columns is not None
    shape = (bits.shape[0], x.shape[-1] if columns is None else columns)
    _check_seeded(shape, distribution, bits, x.device)
    check_linear(x, shape[::-1] if inputs_first else shape, bias)
    choose = _SEEDED_LINEAR.choose(impl, x)
    return choose(x, shape, seed, name, bits, distribution, scale, stream, inputs_first, bias)


def _check_seeded(shape: tuple[int, ...], distribution: str, bits: torch.Tensor | None, device: torch.device) -> None:
    if distribution not in SEEDED:
        raise ValueError(f"distribution={distribution!r}: must be one of {', '.join(SEEDED)}")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)}: must be (rows, columns), each >= 1")
    if bits is not None:
        check_bits(bits, shape[1])
        if bits.shape[0] != shape[0]:
            raise ValueError(f"bits of {bits.shape[0]} rows: must be of {shape[0]}")
        if bits.device != device:
            raise ValueError(f"bits on {bits.device}: must be on {device}")
