"""Relaxed Bernoulli gates in place of a straight-through mask (Tsayag & Lindenbaum 2026, arXiv 2603.08914)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from slth.masking import Masked, state
from slth.search import options
from slth.search.base import Search
from slth.weights import inits
from slth.wrapping import handle


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Search):
    """Train each weight under a noisy gate z = clip(mu + sigma * normal, 0, 1); evaluate under the exact mask.

    The gradient is that of z itself, not a straight-through estimate. mu = 1/2 + sharpness * (|score| - threshold) /
    unit, where threshold is that of the exact mask and unit the mean |score| of the part, both treated as constants.
    Exactly the kept gates have mu > 1/2, so that `keep` is met exactly; the paper uses a penalty on the expected count
    instead. With a sharpness much below 1, gates learn to stay half open, and evaluation then sees another network.
    Raises ValueError unless sigma and sharpness are > 0.
    """

    sigma: float = options.number(0.5, "(0, inf)", help="the noise's standard deviation")
    sharpness: float = options.number(2.0, "(0, inf)", help="the gate's slope, per mean score")
    seed: int = options.integer(0, help="seed of the noise")
    any_form: ClassVar[bool] = False

    def gate(self, masked: Masked) -> Gate:
        """Return a noisy gate, at step 0."""
        return Gate(self.sigma, self.sharpness, self.seed)

    def restore(self, model: nn.Module, step: int) -> None:
        """Set the noise to that of the last step."""
        self._note(model, max(step - 1, 0))

    def before_step(self, model: nn.Module, step: int, steps: int, optimiser: torch.optim.Optimizer) -> None:
        """Set the noise to that of this step."""
        super().before_step(model, step, steps, optimiser)
        self._note(model, step)

    def _note(self, model: nn.Module, step: int) -> None:
        for masked in handle(model).weights.values():
            assert isinstance(masked.gate, Gate)
            masked.gate.step = step


@state.named("bernoulli")
@dataclass
class Gate:
    """The noisy gate of one weight at one step of the search."""

    sigma: float
    sharpness: float
    seed: int
    step: int = 0

    def __call__(self, masked: Masked, weight: torch.Tensor) -> torch.Tensor:
        """Return weight * gate in training mode, the masked weight in eval mode."""
        if not masked.training:
            return masked.pruned(weight)
        scores = masked.scores
        noise = inits.normal(
            scores.shape, self.sigma, seed=self.seed, name=f"gate/{masked.path}", stream=self.step, device=scores.device
        )
        thresholds, units = _scale(masked)
        gates = (0.5 + self.sharpness * (scores.abs() - thresholds) / units + noise).clamp(0.0, 1.0)
        return weight * gates.to(weight.dtype)


def _scale(masked: Masked) -> tuple[torch.Tensor, torch.Tensor]:
    """The threshold and the mean magnitude of the part to which each score belongs, of the scores' shape."""
    magnitudes = masked.scores.detach().abs()
    thresholds, units = torch.empty_like(magnitudes), torch.empty_like(magnitudes)
    for part, cut in zip(masked.parts, masked.cuts, strict=True):
        part.of(thresholds).fill_(cut.value).clamp_min_(0.0)
        part.of(units).fill_(part.of(magnitudes).mean().clamp(min=torch.finfo(torch.float32).tiny))
    return thresholds, units
