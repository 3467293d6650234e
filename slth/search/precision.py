"""The precision of a model's forward and backward passes; scores and the optimiser stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

Precision = Literal["auto", "float32", "tf32", "bf16"]


def resolve(precision: str, device: torch.device) -> Precision:
    """Resolve "auto" for a model on this device: bf16 on a GPU that supports it, else float32.

    Raises ValueError for a name that is not in `Precision`, and for tf32 without a CUDA device.
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
    """Run the forward passes of the block in this precision.

    bf16 uses torch's autocast, the others :func:`products`. On the CPU, float32 changes nothing.
    """
    if precision == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    else:
        with products(precision, device):
            yield


@contextmanager
def products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Set whether float32 products on a GPU round their factors to TF32 in the block, backward passes included.

    This overrides torch's global setting. With bf16 nothing changes: autocast determines the backward pass in the
    forward pass. On other devices nothing changes either.
    """
    if precision == "bf16" or device.type != "cuda":
        yield
        return
    with _tf32(precision == "tf32"):
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 products and convolutions on a GPU, in the block.

    torch has an older and a newer setting for this; reading the older one raises an error if the two contradict.
    """
    backends: Any = torch.backends
    cudnn = backends.cudnn
    newer = [backends.cuda.matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn]
    older = _readable(torch.get_float32_matmul_precision), _readable(lambda: cudnn.allow_tf32)
    before = [one.fp32_precision for one in newer]
    try:
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        cudnn.allow_tf32 = allowed
        yield
    finally:
        if older[0] is not None:
            torch.set_float32_matmul_precision(older[0])
        if older[1] is not None:
            cudnn.allow_tf32 = older[1]
        for one, value in zip(newer, before, strict=True):
            one.fp32_precision = value


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return None
