"""The parts of a training step that all implementations share, and their protocol."""

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
    """The model, loss and optimiser of a training step.

    parameters: the trained ones. clip: the maximal norm of the gradient. accumulate: the number of pieces into which
    the rows of a batch are split; they go through the model one at a time.
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
        """The device of the trained parameters."""
        return self.parameters[0].device

    def losses(self, batch: Any) -> Iterator[torch.Tensor]:
        """Yield the loss of each piece of a batch times its share of the rows; their sum is the batch's loss."""
        for rows, share in batches.pieces(batch, self.accumulate):
            with arithmetic(self.precision, self.device):
                value = arguments.check_loss(self.loss(self.model, rows))
            yield value if share == 1.0 else value * share

    def backward(self, value: torch.Tensor) -> None:
        """Run the backward pass of a loss. Raises ValueError if it depends on no trained parameter."""
        arguments.check_gradient(value)
        with products(self.precision, self.device):
            value.backward()


class Step(Protocol):
    """Takes the steps of a training."""

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each of the optimiser's groups."""

    def take(self, batch: Any, number: int) -> float | torch.Tensor:
        """Take a step and return the loss. Raises FloatingPointError as :meth:`settle` does, for any step so far."""

    def settle(self) -> None:
        """Wait for all steps so far.

        Raises FloatingPointError, with the index of the step, if a loss or a gradient was not finite: from then on the
        optimiser has taken no step.
        """


def not_finite(what: str, value: float, step: int) -> str:
    """Return the error message for a loss or norm that is not finite."""
    return f"the {what} is {value} at step {step}: a lower learning rate may help"
