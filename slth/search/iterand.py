"""IteRand: draw pruned weights anew during the search (Chijiwa et al. 2021, arXiv 2106.09269)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from slth import inits, recipes
from slth.masking import Masked
from slth.search.edge_popup import EdgePopup
from slth.wrapping import handle, random_weight, root

_MOST = 255  # generations: they are held in a byte a weight


@dataclass(frozen=True, kw_only=True)
class IteRand(EdgePopup):
    """Edge-popup that redraws weights: after every `every` steps, each pruned one with probability `rate`.

    No redraw comes in the last tenth of the steps, so that scores can settle. A weight's new value is that of the next
    stream of its own draw, so a ticket needs the number of redraws of the weights it keeps and no more. Weights must
    come from `slth.inits`. Raises ValueError for every < 1 or a rate outside (0, 1].
    """

    every: int = 100
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every={self.every!r}: must be an int >= 1, steps between redraws")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate}: must be in (0, 1], the share of the pruned weights that is redrawn")

    def start(self, model: nn.Module) -> None:
        """Prepare. Raises ValueError for a weight that is not known to come from `slth.inits`."""
        for path in handle(model).weights:
            recipes.required(root(model), path)
        super().start(model)
        for masked in handle(model).weights.values():
            if masked.generation is None:
                masked.generation = torch.zeros(masked.scores.shape, dtype=torch.uint8, device=masked.scores.device)

    def restore(self, model: nn.Module) -> None:
        """Weights from the generations that the checkpoint holds."""
        for path, masked in handle(model).weights.items():
            _write(model, path, masked)

    @torch.no_grad()
    def after(self, model: nn.Module, step: int, steps: int) -> None:
        """Redraw, where the step is one for it."""
        if (step + 1) % self.every or step + 1 > 0.9 * steps:
            return
        wrapped = handle(model)
        wrapped.refresh()
        for path, masked in wrapped.weights.items():
            assert masked.generation is not None
            shape, device = masked.scores.shape, masked.scores.device
            dice = inits.uniform(shape, 0.5, seed=self.seed, name=f"iterand/{path}", stream=step, device=device)
            again = (dice + 0.5 < self.rate) & ~masked.mask() & (masked.generation < _MOST)
            masked.generation += again
            _write(model, path, masked)


@torch.no_grad()
def _write(model: nn.Module, path: str, masked: Masked) -> None:
    assert masked.generation is not None
    weight = random_weight(model, path)
    weight.copy_(recipes.of_generations(recipes.required(root(model), path), masked.generation))
