"""Checks of the arguments of `slth.construct`: one rule, and one error message, for each kind of argument.

A target or source must be an instance of a class that the function names. Its weights must be its own: neither wrapped
nor parametrized, real, finite, and not on the device meta. Constructions compute with a float64 copy on the CPU,
whatever the dtype and device.
"""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from slth.attention import Attention
from slth.construct.rounding import Merged
from slth.construct.subset_sum import FloatArray
from slth.numbers import as_float, as_int

ATTENTION = "an attention of slth.attention"

# ---------------------------------------------------------------- numbers and arrays


def check_alpha(alpha: Any) -> float:
    """Return alpha as a float. Raises ValueError unless it is a finite number > 0.

    A float narrower than float64 becomes the larger of its exact value and of the decimal that it prints as, so that
    both are bounded.
    """
    value = as_float("alpha", alpha, "(0, inf)", "the largest norm of an input token")
    value = max(value, alpha.item() if hasattr(alpha, "item") else alpha)
    return float(as_float("alpha", value, f"(0, {sys.float_info.max}]"))  # an int may be larger


def check_threads(threads: Any) -> int | None:
    """Return threads as an int >= 1, or None for all cores. Raises ValueError for anything else."""
    return None if threads is None else as_int("threads", threads, 1)


def array(name: str, value: Any, *, axes: int = 2) -> FloatArray:
    """Convert an array, or a tensor on any device, to float64 numpy. Raises ValueError for fewer axes or not real."""
    if isinstance(value, torch.Tensor):
        _check_real(name, value)
        value = value.detach().to("cpu", torch.float64).numpy()
    try:
        values = np.asarray(value)
    except ValueError:  # rows of different lengths
        values = np.asarray(None)
    if values.dtype.kind not in "buif":
        raise ValueError(f"{name} of type {type(value).__name__}: must be an array of real numbers")
    if values.ndim < axes:
        raise ValueError(f"{name} of shape {values.shape}: must have {axes} axes or more")
    return values.astype(np.float64)


def _check_real(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_complex():
        raise ValueError(f"{name} of dtype {tensor.dtype}: must be real")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the device meta: must hold values")


# ---------------------------------------------------------------- modules


def check_kind(name: str, module: object, kinds: type | tuple[type, ...], allowed: str) -> None:
    """Raise TypeError unless module is an instance of kinds, and ValueError unless its weights are its own.

    allowed: kinds in words, for the error message.
    """
    if isinstance(module, type):
        raise TypeError(f"{name}={module!r}: must be an instance, not the class: {allowed}")
    if not isinstance(module, kinds):
        hint = "; copy its weights into one, biases have no place there"
        given = textwrap.shorten(repr(module), 80)  # one line
        raise TypeError(f"{name}={given}: must be {allowed}{hint * isinstance(module, nn.MultiheadAttention)}")
    assert isinstance(module, nn.Module)
    for inner, part in module.named_modules():
        if parametrize.is_parametrized(part):
            where = f"{name}.{inner}" if inner else name
            raise ValueError(
                f"{where} is wrapped or has parametrizations: take them off first, by slth.unwrap or "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
    for weight, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        _check_real(f"{name} weight {weight!r}", tensor)


def check_attention(name: str, module: object) -> None:
    """Raise as :func:`check_kind` does unless module is an attention of slth.attention with weights of its own."""
    check_kind(name, module, Attention, ATTENTION)


def check_finite(name: str, module: nn.Module) -> None:
    """Raise ValueError unless all weights and recorded scales are finite, and no scale is 0."""
    for kind, tensors in (("weight", module.named_parameters()), ("buffer", module.named_buffers())):
        for where, tensor in tensors:
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} {kind} {where!r} holds NaN or infinite values: all must be finite")


def check_scales(name: str, module: nn.Module) -> None:
    """Raise ValueError for a recorded scale of 0, by which a source cannot be divided."""
    for buffer, tensor in module.named_buffers():
        if buffer.rpartition(".")[2] in ("scale", "scales", "scale_qk", "scale_vo") and not tensor.all():
            raise ValueError(f"{name} buffer {buffer!r} holds 0: a recorded scale must not be 0")


def check_apart(target: nn.Module, source: nn.Module) -> None:
    """Raise ValueError if target and source share a parameter, since pruning source would change target."""
    mine = {id(parameter): name for name, parameter in target.named_parameters()}
    for name, parameter in source.named_parameters():
        if id(parameter) in mine:
            raise ValueError(
                f"source weight {name!r} is the target's {mine[id(parameter)]!r}: must be its own, pruning it would "
                "change the target (copy.deepcopy makes a copy)"
            )


def check_alike(target: object, source: object, names: Sequence[str]) -> None:
    """Raise ValueError if two modules differ in one of these options; an option that a module lacks counts as False."""
    if isinstance(target, nn.Module) and isinstance(source, nn.Module):
        for name in names:
            check_equal(name, getattr(target, name, False), getattr(source, name, False))


def check_equal(name: str, target: object, source: object) -> None:
    """Raise ValueError unless target and source are equal."""
    if target != source:
        raise ValueError(f"{name}: target has {target}, source {source}; they must be equal")


def check_merged(name: str, merged: Any) -> Merged:
    """Convert merged matrices, with any leading axes, to float64 on the CPU.

    Raises ValueError for shapes that do not fit together, NaN and infinities, and TypeError for other than two tensors.
    """
    if len(merged) != 2 or not all(isinstance(matrix, torch.Tensor) for matrix in merged):
        raise TypeError(f"{name} of type {type(merged).__name__}: must be an attention or two tensors, W_QK and W_VO")
    for matrix in merged:
        _check_real(name, matrix)
    qk, vo = (matrix.detach().to("cpu", torch.float64) for matrix in merged)
    shapes = f"{name} of shapes {tuple(qk.shape)} and {tuple(vo.shape)}"
    if min(qk.dim(), vo.dim()) < 3 or 0 in (*qk.shape, *vo.shape):
        raise ValueError(f"{shapes}: must be (..., heads, d_in, d_in) and (..., heads, d_in, d_out), none of them 0")
    if qk.shape[-1] != qk.shape[-2] or qk.shape[-3:-1] != vo.shape[-3:-1]:
        raise ValueError(
            f"{shapes}: must be (..., heads, d_in, d_in) and (..., heads, d_in, d_out), heads and d_in alike"
        )
    for which, matrix in (("W_QK", qk), ("W_VO", vo)):
        if not torch.isfinite(matrix).all():
            raise ValueError(f"{name} holds NaN or infinite values in {which}: all must be finite")
    return qk, vo
