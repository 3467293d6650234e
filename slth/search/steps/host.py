"""A step that checks its loss and gradient before it continues: on the CPU, and if no other step is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from slth.defaults import usual
from slth.search import parallel
from slth.search.steps.training import Training, not_finite


class HostStep:
    """A step that checks its loss and gradient before it continues."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each of the optimiser's groups."""
        for group, rate in zip(self.training.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate

    def take(self, batch: Any, number: int) -> float:
        """Take a step and return the loss. Raises FloatingPointError if it or its gradient is not finite."""
        model, optimiser, parameters = self.training.model, self.training.optimiser, self.training.parameters
        model.train()
        optimiser.zero_grad(set_to_none=True)
        rows, weight = parallel.share(batch, self.training.accumulate)
        total = 0.0
        for value in self.training.losses(rows):
            value = value if weight == 1.0 else value * weight
            loss = parallel.mean(value)
            if not math.isfinite(loss):
                raise FloatingPointError(not_finite("loss", loss, number))
            self.training.backward(value)
            total += loss
        parallel.average_gradients(model, parameters)
        parallel.agree_on_statistics(model)
        norm = float(nn.utils.clip_grad_norm_(parameters, self.training.clip))
        if not math.isfinite(norm):
            raise FloatingPointError(not_finite("gradient's norm", norm, number))
        with usual():  # the optimiser's state must not depend on torch's default dtype and device
            optimiser.step()
        return total

    def settle(self) -> None:
        """Do nothing: every step has already been checked."""
