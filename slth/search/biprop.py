"""Biprop: find binary weights (Diffenderfer & Kailkhura 2021, arXiv 2103.09377)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from slth.masking import Masked, state, straight_through
from slth.search.edge_popup import EdgePopup
from slth.wrapping import handle


@dataclass(frozen=True, kw_only=True)
class Biprop(EdgePopup):
    """Edge-popup on binary weights: each part is alpha * sign(weight) where kept, alpha the kept ones' mean |weight|.

    alpha is exact for the present mask (the paper's code divides by a count that the mask does not keep) and treated
    as a constant; the score's gradient is g * alpha * sign(weight) * sign(score), the straight-through gradient of what
    the network sees, where the paper's code has g * |weight|.
    """

    def start(self, model: nn.Module) -> None:
        """Prepare a wrapped model."""
        for masked in handle(model).weights.values():
            masked.gate = binary


@state.named("biprop")
def binary(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """The gate of biprop."""
    return straight_through(masked, _levels(masked, weight.detach()))


@torch.no_grad()
def _levels(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """Alpha * sign(weight), alpha by parts."""
    kept = masked.pruned(weight)
    levels = weight.sign()
    for part in masked.parts:
        values = part.of(kept)
        part.of(levels).mul_(values.abs().sum() / values.count_nonzero().clamp(min=1))
    return levels
