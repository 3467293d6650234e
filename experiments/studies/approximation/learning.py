"""Learned masks, for comparison with constructed ones in the measurements of approx_error.py.

The recipe: scores are initialised with the weights' magnitudes, each of the four factors keeps the same share, and the
optimiser is AdamW. After every fifth step the mask is evaluated on validation inputs, and the best mask is used. Using
the best mask matters most: scores near the threshold change order until the last step, and the loss of the last batch
is several times that of the best.

Relative errors in trials on the target of the default config (medians over 6 to 8 sources at hidden = 8, 16, 64):

=====================================  ==================
500 steps, keep=0.5, lr=0.03           0.21  0.063  0.033
lr=0.1 (16, 64)                              0.065  0.050
keep=0.35 (16, 64)                           0.060  0.065
scores U[-1, 1] / sqrt(fan_in)         0.20  0.058  0.053
the same, signed constants as weights  0.13  0.146  0.061
one group of all factors               0.20  0.050  0.030
the same, keep=0.35                    0.22  0.108  0.477
=====================================  ==================

Signed constants have a larger reach in a narrow source, but weights of equal size have few different sums. One group of
all factors is slightly better until one of the factors keeps too little.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

import slth
from slth import search as searches
from slth.attention import MultiHeadAttention
from slth.attention.facts import PROJECTIONS
from slth.experiments.lab import Arithmetic, curves
from slth.wrapping import effective, handle

EVERY = 5  # steps between evaluations on the validation inputs


@dataclass(frozen=True)
class Learning:
    """Settings for learning a mask: the share of each factor's weights to keep, and the training of the scores.

    method: None stands for edge-popup. label: name of the curves. With gradient accumulation (arithmetic.accumulate),
    the error of each part of a batch is relative to the target's outputs for that part.
    """

    keep: float
    steps: int
    lr: float
    batch: int
    method: searches.Search | None = None
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    label: str = "learn"


class Examples(NamedTuple):
    """Inputs (count, T, d_in) and the target's outputs (count, T, d_out), both float32."""

    inputs: torch.Tensor
    outputs: torch.Tensor

    def batch(self, step: int, size: int) -> "Examples":
        """Return the batch of a step, cycling through the examples in order."""
        rows = torch.arange(step * size, (step + 1) * size) % len(self.inputs)
        return Examples(self.inputs[rows], self.outputs[rows])


def relative_error(model: nn.Module, examples: Examples) -> torch.Tensor:
    """Compute the mean squared error over the target's mean square, a scalar: 0 is perfect, and zero outputs give 1."""
    outputs: torch.Tensor = model(examples.inputs)
    return (outputs - examples.outputs).square().sum() / examples.outputs.square().sum()


def learn(source: MultiHeadAttention, train: Examples, validation: Examples, search: Learning) -> float:
    """Prune a float32 source in place with the mask of a search; return its relative_error on validation.

    Pruned weights are exactly 0, and kept weights are unchanged bit for bit unless the method changes them. Source:
    Ramanujan et al. 2020, arXiv 1911.13299.
    """
    # parameters by name: an output for d_out=1 looks like a vector
    slth.wrap(source, keep=search.keep, parameters=PROJECTIONS, scores="magnitude")
    return prune_wrapped(source, train, validation, search, every=EVERY)


def prune_wrapped(source: nn.Module, train: Examples, validation: Examples, search: Learning, *, every: int) -> float:
    """Train a wrapped source's scores, prune it with the best of the evaluated masks, and return its error."""
    best = Best(validation)
    slth.fit(
        source,
        lambda step: train.batch(step, search.batch),
        relative_error,
        search.steps,
        method=search.method,
        lr=search.lr,
        evaluate=best.look,
        every=every,
        progress=False,
        log=curves(search.label),
        name=search.label,
        **vars(search.arithmetic),
    )
    slth.unwrap(source)
    if not best.weights:
        raise FloatingPointError("no mask has a finite error on the validation inputs: a lower learning rate may help")
    with torch.no_grad():
        for path, weight in best.weights.items():
            source.get_parameter(path).copy_(weight)
    return best.error


class Best:
    """The best masked weights so far, by name, and their relative_error on validation inputs, initially infinite."""

    def __init__(self, validation: Examples) -> None:
        self.validation, self.error = validation, math.inf
        self.weights: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def look(self, model: nn.Module) -> dict[str, float]:
        """Evaluate a wrapped model's masks, as a callback of `slth.fit`; return its relative_error as validation_error.

        Masks that keep more than the final share, during a schedule, are not used.
        """
        error = float(relative_error(model, self.validation))
        if error < self.error and all(group.current == group.keep for group in handle(model).groups):
            self.error, self.weights = error, effective(model)
        return {"validation_error": error}
