"""IteRand: draw pruned weights anew during the search (Chijiwa et al. 2021, arXiv 2106.09269)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from slth.masking import Masked
from slth.numbers import as_float, as_int, put
from slth.search.edge_popup import EdgePopup
from slth.weights import inits, recipes
from slth.wrapping import handle, random_weight, root

_MOST = 255  # generations: they are held in a byte a weight


@dataclass(frozen=True, kw_only=True)
class IteRand(EdgePopup):
    """Edge-popup that redraws weights: after every `every` steps, each pruned one with probability `rate`.

    every is an int >= 1, or None: a tenth of the steps, which makes nine redraws. (It was 100 by default, whatever the
    steps: a search of 1000 steps is as before.) No redraw comes in the last tenth of the steps, so that scores can
    settle; a search in which none would come at all is refused. A weight's new value is that of the next
    stream of its own draw, so a ticket needs the number of redraws of the weights it keeps and no more. Weights must
    come from `slth.weights.inits`. Raises ValueError for every < 1 or a rate outside (0, 1].
    """

    every: int | None = None
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        put(
            self,
            every=None if self.every is None else as_int("every", self.every, 1, meaning="steps between redraws"),
            rate=as_float("rate", self.rate, "(0, 1]", "the share of the pruned weights that is redrawn"),
            seed=as_int("seed", self.seed),
        )

    def for_steps(self, steps: int) -> IteRand:
        """This search with its spacing in steps. Raises ValueError where no redraw would come in so many steps."""
        every = self._spacing(steps)
        if not _redraws(every, every, steps):
            most = f"every at most {int(0.9 * steps)}" if steps > 1 else "2 steps or more"
            raise ValueError(f"method=IteRand: every={every} never redraws in {steps} steps, must have {most}")
        return replace(self, every=every)

    def _spacing(self, steps: int) -> int:
        return self.every or max(1, steps // 10)

    def start(self, model: nn.Module) -> None:
        """Prepare. Raises ValueError for a weight that is not known to come from `slth.weights.inits`."""
        for path in handle(model).weights:
            random_weight(model, path)  # refuses one that is gone
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
        if not _redraws(step + 1, self._spacing(steps), steps):
            return
        wrapped = handle(model)
        for path, mask in wrapped.masks().items():
            masked = wrapped.weights[path]
            assert masked.generation is not None
            shape, device = masked.scores.shape, masked.scores.device
            dice = inits.uniform(shape, 0.5, seed=self.seed, name=f"iterand/{path}", stream=step, device=device)
            again = (dice + 0.5 < self.rate) & ~mask & (masked.generation < _MOST)
            masked.generation += again
            _write(model, path, masked)


def _redraws(done: int, every: int, steps: int) -> bool:
    """Whether a redraw comes after so many steps of all: not in the last tenth."""
    return done % every == 0 and done <= 0.9 * steps


@torch.no_grad()
def _write(model: nn.Module, path: str, masked: Masked) -> None:
    assert masked.generation is not None
    weight = random_weight(model, path)
    weight.copy_(recipes.of_generations(recipes.required(root(model), path), masked.generation))
