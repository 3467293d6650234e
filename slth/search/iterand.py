"""IteRand: redraw pruned weights during the search (Chijiwa et al. 2021, arXiv 2106.09269)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn

from slth.masking import Masked
from slth.masking.traits import Trait
from slth.search import options
from slth.search.base import Search
from slth.weights import inits, recipes
from slth.wrapping import handle, random_weight, root

_COUNTS = "generation"  # the name of the buffer
_MOST = 255  # redraws of a weight: the count is a uint8


@dataclass(frozen=True, kw_only=True)
class IteRand(Search):
    """Edge-popup that redraws weights: after every `every` steps, each pruned one with probability `rate`.

    every is an int >= 1, or None for a tenth of the steps, which gives nine redraws. (The default was once 100 for any
    number of steps: a search of 1000 steps gives the same result.) There is no redraw in the last tenth of the steps,
    so that scores can settle. A redrawn weight comes from the next stream of its own draw, so a ticket needs only the
    number of redraws of the kept weights. Weights must come from `slth.weights.inits`. Raises ValueError for every < 1,
    a rate outside (0, 1], and a search in which no redraw would occur.
    """

    every: int | None = options.integer(None, 1, help="steps between redraws")
    rate: float = options.number(0.1, "(0, 1]", help="the share of the pruned weights that is redrawn")
    seed: int = options.integer(0, help="seed of the choice of weights that are redrawn")
    redraws: ClassVar[bool] = True

    def for_steps(self, steps: int) -> Self:
        """Return this search with `every` set. Raises ValueError if no redraw would occur in this number of steps."""
        every = self._spacing(steps)
        if not _redraws(every, every, steps):
            most = f"every at most {int(0.9 * steps)}" if steps > 1 else "2 steps or more"
            raise ValueError(f"method=IteRand: every={every} never redraws in {steps} steps, must have {most}")
        return replace(self, every=every)

    def _spacing(self, steps: int) -> int:
        return self.every or max(1, steps // 10)

    def prepare(self, model: nn.Module) -> None:
        """Add the counts of redraws. Raises ValueError for a weight not known to come from `slth.weights.inits`."""
        for path in handle(model).weights:
            random_weight(model, path)  # raises if it was removed
            recipes.required(root(model), path)
        super().prepare(model)
        for masked in handle(model).weights.values():
            if masked.buffer(_COUNTS) is None:
                masked.put(_COUNTS, torch.zeros(masked.form.shape, dtype=torch.uint8, device=masked.scores.device))

    def restore(self, model: nn.Module, step: int) -> None:
        """Draw the weights with the numbers of redraws that the checkpoint holds."""
        for path, masked in handle(model).weights.items():
            _write(model, path, masked)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, steps: int, optimiser: torch.optim.Optimizer) -> None:
        """Redraw pruned weights if a redraw is due."""
        if not _redraws(step + 1, self._spacing(steps), steps):
            return
        wrapped = handle(model)
        for path, mask in wrapped.masks().items():
            masked, generation = wrapped.weights[path], _generation(wrapped.weights[path])
            shape, device = mask.shape, masked.scores.device
            draws = inits.uniform(shape, 0.5, seed=self.seed, name=f"iterand/{path}", stream=step, device=device)
            generation += (draws + 0.5 < self.rate) & ~mask & (generation < _MOST)
            _write(model, path, masked)


def _redraws(done: int, every: int, steps: int) -> bool:
    """Whether a redraw is due after `done` steps: every `every` steps, but not in the last tenth."""
    return done % every == 0 and done <= 0.9 * steps


def _generation(masked: Masked) -> torch.Tensor:
    """The number of redraws of each entry: uint8, the weight's shape."""
    generation = masked.buffer(_COUNTS)
    assert generation is not None
    return generation


@torch.no_grad()
def _write(model: nn.Module, path: str, masked: Masked) -> None:
    weight = random_weight(model, path)
    weight.copy_(recipes.of_generations(recipes.required(root(model), path), _generation(masked)))


@dataclass(frozen=True)
class Redrawn(Trait):
    """Each entry comes from the stream of its draw whose index is its number of redraws."""

    key: ClassVar[str] = "redrawn"
    buffer: ClassVar[str] = _COUNTS
    kind: ClassVar[str] = "iterand"
    tensor: ClassVar[str] = "generations"
    altered: ClassVar[str] = "redrawn"

    @classmethod
    def of(cls, masked: Masked, mask: torch.Tensor) -> Self | None:
        """Return the trait if the redraws of the weight are counted, else None."""
        return None if masked.buffer(cls.buffer) is None else cls()

    def to_json(self) -> Any:
        """Return True: the numbers of redraws are stored as a tensor."""
        return True

    @classmethod
    def from_json(cls, entry: Any) -> Self | None:
        """Return the trait if the ticket's entry is true, else None."""
        return cls() if entry else None

    def drawn(self, recipe: recipes.Recipe, buffer: torch.Tensor) -> torch.Tensor:
        """Draw each entry from its stream."""
        return recipes.of_generations(recipe, buffer)

    @classmethod
    def reset(cls, masked: Masked) -> None:
        """Set the counts to 0."""
        if masked.buffer(cls.buffer) is not None:
            _generation(masked).zero_()
