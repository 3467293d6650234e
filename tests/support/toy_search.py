"""Searches as a user writes them, in a file of the user's own."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from slth.masking import state
from slth.masking.traits import Trait
from slth.search import Search, options
from slth.wrapping import handle


@dataclass(frozen=True, kw_only=True)
class Momentum(Search):
    """Scores that also follow a running mean of their gradients."""

    decay: float = options.number(0.9, "[0, 1)", help="of the mean")

    def prepare(self, model):
        super().prepare(model)
        for masked in handle(model).weights.values():
            masked.put("mean", torch.zeros_like(masked.scores))

    @torch.no_grad()
    def after_step(self, model, step, steps, optimiser):
        rate = optimiser.param_groups[0]["lr"]
        for masked in handle(model).weights.values():
            mean = masked.buffer("mean").lerp_(masked.scores.grad, 1 - self.decay)
            masked.scores -= rate * mean


@dataclass(frozen=True, kw_only=True)
class Scaled(Search):
    """Kept weights are multiplied by a number, which a ticket must know."""

    factor: float = options.number(0.5, "(0, 1]", help="of the kept weights")

    def gate(self, masked):
        return Gate(self.factor)

    def prepare(self, model):
        super().prepare(model)
        for masked in handle(model).weights.values():
            masked.add(Factor(self.factor))


@state.named("toy")
@dataclass
class Gate:
    factor: float

    def __call__(self, masked, weight):
        return torch.where(masked.mask(), weight, 0.0) * self.factor + (masked.scores - masked.scores.detach())


@dataclass(frozen=True)
class Factor(Trait):
    key: ClassVar[str] = "factor"
    altered: ClassVar[str] = "scaled"

    factor: float

    def shown(self, drawn, parts):
        return drawn * self.factor
