"""Random cases and their geometry. All numbers come from `slth.weights.inits`, with one stream per name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from slth.weights import inits

Module = TypeVar("Module", bound=nn.Module)


def count(cases: int, share: float) -> int:
    """Return the number of cases to draw, at least 1."""
    return max(1, round(cases * share))


def normal(name: str, *shape: int) -> torch.Tensor:
    """Draw standard normal numbers, float64."""
    return inits.normal(shape, 1.0, seed=0, name=f"proofs_check/{name}").double()


def uniform(name: str, *shape: int) -> torch.Tensor:
    """Draw uniform numbers on (-1, 1), float64."""
    return inits.uniform(shape, 1.0, seed=0, name=f"proofs_check/{name}").double()


def starts(name: str, cases: int, *shape: int) -> torch.Tensor:
    """Draw starting points of searches: normal (cases, *shape) times 1/100 (near ties), 1 or 4 (beyond the bounds).

    The factor depends on the case. For every other three cases it also differs along the next axis, so that there are
    short vectors among long ones.
    """
    factors = torch.tensor([0.01, 1.0, 4.0], dtype=torch.float64)
    i, j = torch.arange(cases)[:, None], torch.arange(shape[0])
    size = factors[(i + j * (i // 3 % 2)) % 3]  # (cases, shape[0])
    return normal(name, cases, *shape) * size.reshape(cases, shape[0], *[1] * (len(shape) - 1))


def all_starts(name: str, cases: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Draw :func:`starts` of each shape, each with its own name."""
    return {role: starts(f"{name}/{role}", cases, *shape) for role, shape in shapes.items()}


def attention_mask(name: str, *shape: int) -> torch.Tensor:
    """Draw a bool mask (*shape), about half True, with a True in each row (last axis)."""
    drawn = uniform(name, *shape)
    mask: torch.Tensor = (drawn > 0) | (drawn == drawn.amax(-1, keepdim=True))
    return mask


def mask_pair(name: str, flip: bool, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an :func:`attention_mask` twice.

    With flip, the first mask has only the second of the first two keys, and the other mask has both.
    """
    before = attention_mask(name, *shape)
    after = before.clone()
    if flip:
        before[..., 0], before[..., 1], after[..., 0], after[..., 1] = False, True, True, True
    return before, after


def ball(raw: torch.Tensor, radius: float) -> torch.Tensor:
    """Map raw to vectors (last axis) of norm <= radius: raw times radius, projected if raw is longer than 1."""
    inside: torch.Tensor = radius * raw / torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min(1.0)
    return inside


def contraction(raw: torch.Tensor) -> torch.Tensor:
    """Scale matrices (last two axes) to spectral norm <= 1 if two bounds on their norms are both above 1.

    The Frobenius norm is exact for rank 1, and sqrt(|A^T A|_inf) for orthogonal matrices; both are much cheaper than an
    SVD.
    """
    frobenius = torch.linalg.matrix_norm(raw, keepdim=True)
    rows = (raw.mT @ raw).abs().sum(-1, keepdim=True).amax(-2, keepdim=True).sqrt()
    return raw / torch.minimum(frobenius, rows).clamp_min(1.0)


def box(raw: torch.Tensor, size: float) -> torch.Tensor:
    """Map raw entries to absolute values <= size, such that the bound can be attained."""
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
