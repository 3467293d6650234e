"""What every step of a search is made of, and what a step must be able to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from slth.search import arguments, batches
from slth.search.precision import Precision, arithmetic, products

#: (model, batch) -> scalar tensor.
Loss = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class Training:
    """What every step is made of.

    parameters: those that are trained. clip: the largest norm of the gradient. accumulate: the pieces of rows that a
    batch is cut into, of which one at a time goes through the model.
    """

    model: nn.Module
    loss: Loss
    optimiser: torch.optim.Optimizer
    parameters: Sequence[nn.Parameter]
    clip: float = math.inf
    accumulate: int = 1
    precision: Precision = "float32"

    @property
    def device(self) -> torch.device:
        """Of what is trained."""
        return self.parameters[0].device

    def losses(self, batch: Any) -> Iterator[torch.Tensor]:
        """The loss of each piece of a batch, times its share: their sum is the batch's."""
        for rows, share in batches.pieces(batch, self.accumulate):
            with arithmetic(self.precision, self.device):
                value = arguments.check_loss(self.loss(self.model, rows))
            yield value if share == 1.0 else value * share

    def backward(self, value: torch.Tensor) -> None:
        """The backward pass of a loss. Raises ValueError where it depends on nothing that is trained."""
        arguments.check_gradient(value)
        with products(self.precision, self.device):
            value.backward()


class Step(Protocol):
    """How steps are taken."""

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each of the optimiser's groups."""

    def take(self, batch: Any, number: int) -> float | torch.Tensor:
        """Take a step and return the loss. Raises FloatingPointError as :meth:`settle` does, for any step so far."""

    def settle(self) -> None:
        """Wait for what the steps so far have found.

        Raises FloatingPointError where a loss or a gradient was not finite, with the step at which it was: from then on
        the optimiser has taken no step.
        """


def not_finite(what: str, value: float, step: int) -> str:
    """The message for a number that is not finite."""
    return f"the {what} is {value} at step {step}: a lower learning rate may help"
