"""Copies of modules with new tensors, faster than a deep copy: everything but tensors is shared with the original."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def double(module: Module) -> Module:
    """Copy a module to float64 on the CPU; tied parameters stay tied."""
    return copied(module, _double)


def copied(module: Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Module:
    """Copy a module with change(tensor) in place of each parameter and buffer; tied parameters stay tied.

    change must return a plain tensor that shares no memory with its argument.
    """
    twin: Module = _copied(module, change, {})
    return twin


def _double(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True)


def _copied(original: Any, change: Callable[[torch.Tensor], torch.Tensor], copies: dict[int, Any]) -> Any:
    """Copy a module, parameter or buffer, each only once."""
    if original is None or id(original) in copies:
        return original if original is None else copies[id(original)]
    twin: Any
    if isinstance(original, nn.Module):
        twin = copy.copy(original)
        twin.__dict__ = dict(original.__dict__)
        for kind in ("_modules", "_buffers", "_parameters"):
            tensors = original.__dict__[kind]
            twin.__dict__[kind] = {name: _copied(held, change, copies) for name, held in tensors.items()}
    else:
        twin = change(original)
        if isinstance(original, nn.Parameter):
            twin = nn.Parameter(twin, original.requires_grad)
    copies[id(original)] = twin
    return twin
