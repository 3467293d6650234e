"""Test cases of the kernels, for Triton's interpreter (the tests) and for a GPU (experiments/speed.py).

A case runs twice: by Triton in a dtype on a device, and by the reference in float64 (float32 if a kernel supports
nothing wider) on the same inputs, rounded to that dtype first. Outputs and gradients are compared by their largest
difference relative to the reference's largest entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from slth.weights import inits

from .listing import modules

#: Largest difference due to rounding, relative to the largest entry, for sums of some hundred products.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A call of one kernel.

    inputs: device -> float32 tensors by name, which are then rounded to the dtype under test.
    call: (tensors of the dtype, impl) -> outputs and gradients to compare, by name.
    """

    name: str
    kernel: str
    inputs: Callable[[torch.device], Tensors]
    call: Callable[[Tensors, str], Tensors]
    large: bool = False  # only for a GPU
    exact: bool = False  # must be equal bit for bit
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)


def normal(name: str, *shape: int, device: torch.device, scale: float = 1.0) -> torch.Tensor:
    """Draw standard normal numbers times scale, the same on every device."""
    return inits.normal(shape, scale, seed=0, name=f"cases/{name}").to(device)


def with_gradients(
    tensors: Mapping[str, torch.Tensor], wanted: tuple[str, ...], call: Callable[[Tensors], torch.Tensor]
) -> Tensors:
    """Return a call's output, and the gradients to the wanted tensors for a fixed random output gradient."""
    leaves = {name: t.detach().clone().requires_grad_(name in wanted) for name, t in tensors.items()}
    out = call(leaves)
    weights = normal("gradient", *out.shape, device=out.device).to(out.dtype)
    grads = torch.autograd.grad((out * weights).sum(), [leaves[name] for name in wanted])
    return {"out": out.detach()} | {f"grad_{name}": g for name, g in zip(wanted, grads, strict=True)}


def differences(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Return Triton's difference from the reference for each output: 0 if equal bit for bit, inf if not finite."""
    rounded = {name: t.to(dtype) if t.is_floating_point() else t for name, t in case.inputs(device).items()}
    found = case.call(rounded, "triton")
    widest = torch.float32 if case.exact else torch.float64
    wide = {name: t.to(widest) if t.is_floating_point() else t for name, t in rounded.items()}
    wanted = case.call(wide, "reference")
    assert found.keys() == wanted.keys()
    return {name: _difference(found[name], wanted[name]) for name in found}


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    largest = wanted.double().abs().max().clamp_min(1e-30)
    return float((found.double() - wanted.double()).abs().max() / largest)


def all_cases() -> list[Case]:
    """Return the cases of all kernels."""
    return [case for module in modules("cases") for case in module.CASES]
