"""Random cases and their geometry. All numbers come from `slth.weights.inits`; every name is a stream of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from slth.weights import inits

Module = TypeVar("Module", bound=nn.Module)


def count(cases: int, share: float) -> int:
    """Cases to draw, at least 1."""
    return max(1, round(cases * share))


def normal(name: str, *shape: int) -> torch.Tensor:
    """Standard normal, float64."""
    return inits.normal(shape, 1.0, seed=0, name=f"proofs_check/{name}").double()


def uniform(name: str, *shape: int) -> torch.Tensor:
    """Uniform on (-1, 1), float64."""
    return inits.uniform(shape, 1.0, seed=0, name=f"proofs_check/{name}").double()


def starts(name: str, cases: int, *shape: int) -> torch.Tensor:
    """Where searches start: normal (cases, *shape) times 1/100 (near ties), 1 or 4 (beyond the bounds of what follows).

    The factor is that of the case, or, for every other three cases, differs along the next axis: a vector near 0 among
    long ones.
    """
    factors = torch.tensor([0.01, 1.0, 4.0], dtype=torch.float64)
    i, j = torch.arange(cases)[:, None], torch.arange(shape[0])
    size = factors[(i + j * (i // 3 % 2)) % 3]  # (cases, shape[0])
    return normal(name, cases, *shape) * size.reshape(cases, shape[0], *[1] * (len(shape) - 1))


def all_starts(name: str, cases: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """:func:`starts` of each shape, under names of their own."""
    return {role: starts(f"{name}/{role}", cases, *shape) for role, shape in shapes.items()}


def attention_mask(name: str, *shape: int) -> torch.Tensor:
    """Bool (*shape), about half True, with a True in each row (last axis)."""
    drawn = uniform(name, *shape)
    mask: torch.Tensor = (drawn > 0) | (drawn == drawn.amax(-1, keepdim=True))
    return mask


def mask_pair(name: str, flip: bool, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An :func:`attention_mask` twice; with flip, the first has the second key but not the first, the other both."""
    before = attention_mask(name, *shape)
    after = before.clone()
    if flip:
        before[..., 0], before[..., 1], after[..., 0], after[..., 1] = False, True, True, True
    return before, after


def ball(raw: torch.Tensor, radius: float) -> torch.Tensor:
    """Vectors (last axis) of norm <= radius: raw times radius, drawn back to the sphere where raw is longer than 1."""
    inside: torch.Tensor = radius * raw / torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min(1.0)
    return inside


def contraction(raw: torch.Tensor) -> torch.Tensor:
    """Matrices (last two axes) of spectral norm <= 1: raw, drawn back where two bounds on its norm are both above 1.

    The Frobenius norm is exact for rank 1, sqrt(|A^T A|_inf) for orthogonal matrices; both are far cheaper than an SVD.
    """
    frobenius = torch.linalg.matrix_norm(raw, keepdim=True)
    rows = (raw.mT @ raw).abs().sum(-1, keepdim=True).amax(-2, keepdim=True).sqrt()
    return raw / torch.minimum(frobenius, rows).clamp_min(1.0)


def box(raw: torch.Tensor, size: float) -> torch.Tensor:
    """Entries of absolute value <= size; the bound is reached, not only approached."""
    return size * torch.sin(raw)


@torch.no_grad()
def prune_largest(weight: torch.Tensor) -> None:
    """Flip one bit of a mask: set the weight of largest magnitude to 0, in place."""
    flat = weight.view(-1)
    flat[flat.abs().argmax()] = 0.0


@torch.no_grad()
def at_norm_one(module: Module) -> Module:
    """Divide every weight of the module, of every head, by its spectral norm, in place: the theorems' assumption."""
    for weight in module.parameters():
        weight.div_(torch.linalg.matrix_norm(weight, ord=2, keepdim=True))
        weight.requires_grad_(False)
    return module
