"""Kernels under torch.autocast: inputs are cast to its dtype, as for torch's products, and kernels run without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import torch

from .factors import Factors

P = ParamSpec("P")
R = TypeVar("R")


def as_autocast(kernel: Callable[P, torch.Tensor], but: str = "") -> Callable[P, torch.Tensor]:
    """Wrap a kernel to cast its floating-point tensors, except float64, if autocast is on for their device.

    Tensors in `Factors` are cast as well. Tensors in any other tuple, such as scores, are not cast, and neither is the
    parameter named `but` if it is float32.
    """
    free: Callable[..., torch.Tensor] = kernel
    wide = {but, *(i for i, name in enumerate(signature(kernel).parameters) if name == but)}

    @wraps(kernel)
    def call(*args: P.args, **options: P.kwargs) -> torch.Tensor:
        if not torch._C._is_any_autocast_enabled():
            return kernel(*args, **options)
        given = (*args, *options.values())
        device = next((one.device.type for one in given if isinstance(one, torch.Tensor)), "cpu")
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return kernel(*args, **options)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return free(
                *(_cast(one, dtype, i in wide) for i, one in enumerate(args)),
                **{name: _cast(one, dtype, name in wide) for name, one in options.items()},
            )

    return call


def _cast(given: Any, dtype: torch.dtype, wide: bool) -> Any:
    if isinstance(given, Factors):
        return Factors(*(_cast(one, dtype, wide) for one in given))
    kept = (torch.float64, torch.float32) if wide else (torch.float64,)
    floats = isinstance(given, torch.Tensor) and given.is_floating_point() and given.dtype not in kept
    return given.to(dtype) if floats else given


def without_autocast(backward: Callable[[Any, torch.Tensor], R]) -> Callable[[Any, torch.Tensor], R]:
    """Wrap the backward (ctx, grad) of a torch Function to run without autocast."""

    @wraps(backward)
    def call(ctx: Any, grad: torch.Tensor) -> R:
        with torch.autocast(grad.device.type, enabled=False):
            return backward(ctx, grad)

    return call
