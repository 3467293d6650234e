"""Masks by edge-popup, to stand beside constructed ones in the measurements of approx_error.py.

The recipe: scores of all four factors from U[-1/sqrt(fan_in), 1/sqrt(fan_in)], the same keep in each, AdamW, one mask
in five looked at on validation inputs and the best of them taken. That the best is taken matters most: while scores
near the threshold change places the error goes up and down severalfold, to the last step.

A trial on the target and sources of the default config (median error of 4 to 8 sources after 500 steps, at hidden = 8,
16 and 64) found keep=0.5 the best at most widths (0.21, 0.05, 0.05); a small keep helps wide sources and ruins narrow
ones (0.2 after 300 steps: 0.39, 0.31, 0.04). Learning rates from 0.01 to 0.2 differ by less than sources do, and so do
scores that start at the weights' magnitudes, one group for all factors, and a keep that comes down from 1. Three times
the steps halve the error of wide sources and leave that of narrow ones. Signed constants in place of theory's uniform
weights are worse: few different sums can be made of equal weights.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lab import as_float, as_int
from torch import nn

import slth
from slth.attention import MultiHeadAttention
from slth.attention.mha import ROLES
from slth.wrapping import handle

EVERY = 5  # steps from one look at the validation inputs to the next


@dataclass(frozen=True)
class Search:
    """How a mask is learned: the share of each factor's weights that is kept, and the training of the scores."""

    keep: float
    steps: int
    lr: float
    batch: int


def search_of(config: dict[str, Any]) -> Search:
    """A checked Search, or BadConfig."""
    return Search(
        keep=as_float(config, "keep", above=0.0, maximum=1.0),
        steps=as_int(config, "steps", 1),
        lr=as_float(config, "lr", above=0.0, maximum=1e3),
        batch=as_int(config, "batch", 1),
    )


class Examples(NamedTuple):
    """Inputs (count, T, d_in) and what the target makes of them (count, T, d_out), both float32."""

    inputs: torch.Tensor
    outputs: torch.Tensor

    def batch(self, step: int, size: int) -> "Examples":
        """The batch of a step: one after the other, and again from the first."""
        rows = torch.arange(step * size, (step + 1) * size) % len(self.inputs)
        return Examples(self.inputs[rows], self.outputs[rows])


def relative_error(model: nn.Module, examples: Examples) -> torch.Tensor:
    """Mean squared error over the target's mean square, a scalar: 0 is perfect, 1 what a zero output scores."""
    return (model(examples.inputs) - examples.outputs).square().sum() / examples.outputs.square().sum()


def learn(source: MultiHeadAttention, train: Examples, validation: Examples, search: Search) -> float:
    """Prune a float32 source, in place, by the mask that edge-popup finds; returns its relative_error on validation.

    Pruned weights are exactly 0, the others keep every bit. Source: Ramanujan et al. 2020, arXiv 1911.13299.
    """
    # targets by name: an output for d_out=1 looks like a vector
    slth.wrap(source, keep=search.keep, targets=ROLES, scores="magnitude")
    best = _Best(validation)
    slth.fit(
        source,
        lambda step: train.batch(step, search.batch),
        relative_error,
        search.steps,
        lr=search.lr,
        evaluate=best.look,
        every=EVERY,
        progress=False,
    )
    handle(source).set_masks(best.masks)
    slth.unwrap(source)
    return best.error


class _Best:
    """The masks with the least error on validation inputs so far."""

    def __init__(self, validation: Examples) -> None:
        self.validation, self.error = validation, math.inf
        self.masks: dict[str, torch.Tensor] = {}

    def look(self, model: nn.Module) -> dict[str, float]:
        error = float(relative_error(model, self.validation))
        if error < self.error:
            self.error, self.masks = error, handle(model).masks()
        return {"validation_error": error}
