"""Argument checks that several kernels share."""

from __future__ import annotations

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ALLOWED = (*FLOATS, torch.float64)


def check_floats(**tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless all have one dtype of float32, float16, bfloat16 and float64, and are on one device."""
    given = {name: t for name, t in tensors.items() if t is not None}
    (first, base), *rest = given.items()
    dtype, device = base.dtype, base.device
    if dtype in _ALLOWED and all(t.dtype == dtype and t.device == device for _, t in rest):
        return
    if base.dtype not in _ALLOWED:
        allowed = ", ".join(str(d) for d in FLOATS)
        raise ValueError(f"{first} of dtype {base.dtype}: must be one of {allowed} (float64: the reference alone)")
    for name, t in rest:
        if t.dtype != base.dtype:
            raise ValueError(f"{name} of dtype {t.dtype}: must be {base.dtype} as {first} is")
        check_device(**{first: base, name: t})


def placed(device: torch.device | str) -> torch.device:
    """Return the device that tensors on it report, for comparisons: "cuda" gets the index of the current device."""
    return torch.empty(0, device=device).device


def check_device(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all are on one device."""
    (first, base), *rest = tensors.items()
    for name, t in rest:
        if t.device != base.device:
            raise ValueError(f"{name} on {t.device}: must be on {base.device} as {first} is")


def check_linear(x: torch.Tensor, shape: tuple[int, ...], bias: torch.Tensor | None) -> None:
    """Raise ValueError unless x (..., in), a weight (out, in) of that shape and a bias (out,) fit."""
    if len(shape) != 2 or x.dim() < 1 or x.shape[-1] != shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(shape)}: must be (..., in) and (out, in)")
    if bias is not None and bias.shape != shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)}: must be ({shape[0]},)")
