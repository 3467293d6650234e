"""Cases of the masked weight, by bits and by scores, for matrices and stacks of them, with its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from slth import kernels

from .. import offline
from ..bits import pack_mask
from ..cases import Case, Tensors, normal
from ..cut import Cut


def mask_of(name: str, *shape: int, device: torch.device) -> torch.Tensor:
    """Make a bool mask with a third True."""
    return normal(f"{name} mask", *shape, device=device) > 0.43


def scored(name: str, *shape: int, device: torch.device) -> Tensors:
    """Make scores of few magnitudes, as integers (which no dtype rounds), and a threshold among their ties."""
    scores = normal(f"{name} scores", *shape, device=device).mul(2).round().int()
    ties = (scores.abs().flatten() == 1).nonzero().flatten()
    last_tie = ties[ties.numel() // 2] if ties.numel() else torch.tensor(-1, device=device)
    return {"scores": scores, "last_tie": last_tie}


def cut_of(t: Tensors) -> Cut:
    """Return a cut among the ties of magnitude 1."""
    return Cut(torch.ones((), device=t["last_tie"].device), t["last_tie"])


def _weights(t: Tensors, impl: str) -> Tensors:
    """Compute the masked weight by bits and by scores, and its gradient for rounded random numbers."""
    scores = t["scores"].float().requires_grad_()
    by_scores = kernels.masked_weight(t["weight"], (scores, cut_of(t)), impl=impl)
    (slope,) = torch.autograd.grad(by_scores, scores, t["grad"])
    transposed = t["weight"].mT.contiguous().mT
    return {
        "by_scores": by_scores.detach(),
        "by_bits": kernels.masked_weight(t["weight"], t["bits"], impl=impl),
        "transposed": kernels.masked_weight(transposed, t["bits"], impl=impl),
        "grad_scores": slope,
    }


def _weights_case(name: str, *shape: int, large: bool = False) -> Case:
    def inputs(device: torch.device) -> Tensors:
        bits = pack_mask(mask_of(name, *shape, device=device))
        weight, grad = (normal(f"{name} {which}", *shape, device=device) for which in ("weight", "grad"))
        return {"weight": weight, "grad": grad, "bits": bits} | scored(name, *shape, device=device)

    return Case(name, "masked_weight", inputs, _weights, large=large, exact=True)


CASES = [
    _weights_case("weights", 37, 70),
    _weights_case("weights of one column", 5, 1),
    _weights_case("weights of heads", 3, 19, 64),
    _weights_case("weights of heads in groups", 2, 2, 9, 33),
    _weights_case("weights of GPT-2 small", 768, 3072, large=True),
    _weights_case("weights of wide heads", 12, 64, 1024, large=True),
]

# ---------------------------------------------------------------- compiled without a GPU


def offline_cases() -> list[offline.Case]:
    """Return the kernels as they are launched for contiguous tensors whose sizes are multiples of 16."""
    from . import triton

    found = []
    for dtype in ("bf16", "fp32"):
        pointers = dict.fromkeys(("weight_ptr", "grad_ptr", "out_ptr"), f"*{dtype}")
        block = triton._block(128)
        for mask, types, constants in offline_masks(pointers):
            if dtype == "fp32" or mask == "scores":
                name = f"masked_weight {mask} {dtype}"
                found.append(offline_case(name, triton._mask_weight, types, constants | {"out_column": 1} | block))
        ones = dict.fromkeys(("grad_column", "weight_column", "scores_column", "out_column"), 1)
        types = pointers | {"out_ptr": "*fp32"}
        found.append(offline_case(f"masked_weight dS {dtype}", triton._slope, types, ones | block))
    return found


_POINTERS = {"value_ptr": "*fp32", "last_tie_ptr": "*i64", "scores_ptr": "*fp32"}


def offline_case(
    name: str,
    kernel: Any,
    types: Mapping[str, str],
    constants: dict[str, Any],
    warps: int = 4,
    stages: int = 3,
    spills: int = 0,
    products: bool = False,
) -> offline.Case:
    """Make a case; arguments without a type or constant are 32-bit sizes."""
    free = [key for key in kernel.arg_names if key not in constants]
    types = {key: types.get(key, _POINTERS.get(key, "i32")) for key in free}
    odd = {"parts", "value_ptr", "last_tie_ptr"} | ({"mask_row"} if types.get("mask_ptr") == "*i32" else set())
    aligned = tuple(key for key in free if key not in odd)  # a row of 768 has 24 words
    return offline.Case(name, kernel, types, constants, warps, stages, spills, aligned, products)


def offline_masks(pointers: dict[str, str]) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """Yield (name, types, constants) of each kind of mask; 8-bit words are for rows that are no whole 32-bit words."""
    contiguous = {"weight_column": 1, "mask_column": 1}
    none = {"value_ptr": None, "last_tie_ptr": None}
    yield "bits", pointers | {"mask_ptr": "*i32"}, contiguous | none | {"WORD": 32}
    yield "bytes", pointers | {"mask_ptr": "*u8"}, contiguous | none | {"WORD": 8}
    yield "scores", pointers | {"mask_ptr": "*fp32"}, contiguous | {"WORD": 0}
