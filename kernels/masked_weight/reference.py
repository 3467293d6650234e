"""Masked weights in plain torch, the reference for the other implementations."""

from __future__ import annotations

import torch

from ..bits import unpack_mask
from ..cut import Cut, Scored


def kept(mask: torch.Tensor | Scored, columns: int) -> torch.Tensor:
    """Return the mask, bool of the weight's shape, from bits or from scores and their cut."""
    if isinstance(mask, torch.Tensor):
        return unpack_mask(mask, columns)
    scores, cut = mask
    assert isinstance(cut, Cut)
    value, last_tie = cut.tensors(scores.device)
    magnitude = scores.detach().abs()
    index = torch.arange(scores.numel(), device=scores.device).reshape(scores.shape)
    return (magnitude > value) | ((magnitude == value) & (index <= last_tie))


def masked_weight(weight: torch.Tensor, mask: torch.Tensor | Scored, out: torch.Tensor | None) -> torch.Tensor:
    """Compute the weight where the mask keeps it, else exactly 0; without gradient."""
    columns = weight.shape[-1] if weight.dim() else 1
    made = torch.where(kept(mask, columns), weight.detach(), 0)
    return made if out is None else out.copy_(made)


def score_gradient(grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Compute the gradient to the scores from that to the masked weight, as if the mask were |score|."""
    slope = grad.to(scores.dtype) * weight.to(scores.dtype)
    return torch.where(scores < 0, -slope, slope)
