"""The arithmetic that a model's forward and backward pass run in; scores and the optimiser stay in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

Precision = Literal["auto", "float32", "tf32", "bf16"]


def resolve(precision: str, device: torch.device) -> Precision:
    """The precision that a model on this device trains in: bf16 for "auto" on a GPU that computes in it, else float32.

    Raises ValueError for a name that is none of `Precision`, and for tf32 without a CUDA device.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}: must be one of {', '.join(get_args(Precision))}")
    on_gpu = device.type == "cuda"
    if precision == "tf32" and not on_gpu:
        raise ValueError(f"precision='tf32': needs a CUDA device, the model is on {device}")
    if precision == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    chosen: Precision = precision  # type: ignore[assignment]
    return chosen


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within it operations on the device run in this precision.

    bf16 is torch's autocast; tf32 is allowed for matrix products, and float32 on a GPU forbids it, whatever torch is
    set to outside. float32 on the CPU changes nothing.
    """
    if precision == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif device.type == "cuda":
        with _tf32(precision == "tf32"):
            yield
    else:
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Within it float32 products and convolutions on a GPU may, or may not, round their factors to TF32."""
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
