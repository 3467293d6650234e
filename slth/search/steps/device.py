"""A step that reads nothing back from its device, so that Python can run ahead, or a CUDA graph can replace it.

Learning rates, the step's index and the number of weights that each group keeps are tensors on the device. So are the
clipping factor and the check for finite values: torch's fused optimisers take them as they do those of
`torch.amp.GradScaler`. After the first loss or gradient that is not finite, the optimiser takes no more steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from slth.masking import Wrapped
from slth.masking.leaves import Leaves
from slth.search.steps.training import Training, not_finite
from slth.wrapping import root

#: Optimisers whose fused form takes learning rates, clipping and the check for finite values as tensors.
_FUSED = torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD
_PATIENCE = 32  # steps between two reads of the failure


def can_fuse(optimiser: torch.optim.Optimizer, device: torch.device) -> bool:
    """Return whether torch has a fused form of the optimiser for its parameters and the user chose no other form."""
    options = [group for group in optimiser.param_groups if type(optimiser) in _FUSED]
    tensors = [p for group in options for p in group["params"]]
    return bool(tensors) and (
        all(p.device == device and p.is_floating_point() for p in tensors)
        and not any(group["foreach"] or group["fused"] is False or group["differentiable"] for group in options)
    )


def fuse(optimiser: torch.optim.Optimizer, device: torch.device) -> None:
    """Make an optimiser use its fused form, with learning rates on the device."""
    for group in optimiser.param_groups:
        group["fused"], group["foreach"] = True, False
        group["lr"] = torch.as_tensor(group["lr"]).to(device, torch.float32, copy=True)  # never the user's own
    for state in optimiser.state.values():
        if "step" in state:
            state["step"] = state["step"].to(device, torch.float32)


@contextmanager
def capturable(optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """Set an optimiser's `capturable` in the block only: torch warns if it is set outside a capture."""
    groups = [group for group in optimiser.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group, value in zip(groups, before, strict=True):
            group["capturable"] = value


class _Failure(NamedTuple):
    """Values of the first step that was not finite, as scalar tensors on the device."""

    step: torch.Tensor  # int64: index of that step, -1 if there is none
    loss: torch.Tensor  # float64: its loss
    norm: torch.Tensor  # float64: the norm of its gradient
    nan: torch.Tensor  # bool: whether its scores held NaN


class DeviceStep:
    """A step that reads nothing back from the device until :meth:`settle`.

    wrapped: the masks of a wrapped model. Masked weights become leaves (`slth.masking.leaves`) if the search permits
    it; otherwise masks are computed within the forward pass.
    """

    def __init__(self, training: Training, wrapped: Wrapped | None) -> None:
        self.training, self._wrapped = training, wrapped
        device = training.device
        self._clock = torch.zeros((), dtype=torch.int64, device=device)
        loss, norm = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self._failure = _Failure(torch.full_like(self._clock, -1), loss, norm, torch.zeros_like(self._clock).bool())
        self._make_leaves()
        fuse(training.optimiser, device)

    def _make_leaves(self) -> None:
        lower = self.training.precision == "bf16" and self.training.accumulate == 1  # else float32 sums
        dtype = torch.bfloat16 if lower else torch.float32
        self.leaves = Leaves.of(root(self.training.model), self._wrapped, dtype) if self._wrapped else None
        scores = {id(p) for p in self.leaves.scores} if self.leaves else set()
        self._others = [p for p in self.training.parameters if id(p) not in scores]

    @property
    def recordable(self) -> bool:
        """Whether :meth:`run` computes masks on the device alone."""
        return self._wrapped is None or self.leaves is not None

    def check_recordable(self) -> None:
        """Raise RuntimeError if the last step showed that a recording would not update the masks."""
        if self.leaves and self.leaves.bypassed:
            raise RuntimeError("the model cuts masks by itself, as a compiled one does")

    def refresh(self) -> bool:
        """Make new leaves if weights, scores or gates were replaced. Returns whether they were.

        Without leaves this does nothing, so that a search with its own gates does not pay for it in every step.
        """
        if self.leaves is None or self.leaves.holds_still():
            return False
        self._make_leaves()
        return True

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each of the optimiser's groups."""
        for group, rate in zip(self.training.optimiser.param_groups, rates, strict=True):
            group["lr"].fill_(rate)

    def take(self, batch: Any, number: int, run: Callable[[Any], torch.Tensor] | None = None) -> torch.Tensor:
        """Take a step and return the loss, on the device.

        run: replaces :meth:`run`, by replaying a recording of it. Raises as :meth:`settle` does, for an earlier step.
        """
        if run is None:
            self.refresh()
        self._prepare(number)
        loss = (run or self.run)(batch)
        if (number + 1) % _PATIENCE == 0:
            self.settle()
        return loss

    def _prepare(self, number: int) -> None:
        """Copy the step's index and the groups' keep to the device."""
        self._train()
        self._clock.fill_(number)
        if self.leaves:
            self.leaves.follow_keep()

    def _train(self) -> None:
        if not self.training.model.training:  # after an evaluation
            self.training.model.train()

    def run(self, batch: Any) -> torch.Tensor:
        """Run the step entirely on the device, so that it can be recorded and replayed without Python."""
        self._train()  # the mode affects what is recorded
        leaves = self.leaves
        for parameter in self._others:
            parameter.grad = None
        nan = torch.zeros_like(self._failure.nan)
        if leaves:
            leaves.zero()
            nan = leaves.write()
        total = torch.zeros_like(self._failure.loss)
        with leaves.standing_in() if leaves else nullcontext():
            for value in self.training.losses(batch):
                self.training.backward(value)
                total += value.detach().reshape(())
        self._update(total, self._norm(leaves.pull() if leaves else None), nan)
        return total

    def _norm(self, squares: torch.Tensor | None) -> torch.Tensor:
        """The norm of all gradients; squares: the sum of squares of the scores' gradients, if it is known."""
        parameters = self.training.parameters if squares is None else self._others
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads).double() if grads else torch.zeros_like(self._failure.norm)
        return norm if squares is None else (norm.square() + squares).sqrt()

    @torch.no_grad()
    def _update(self, loss: torch.Tensor, norm: torch.Tensor, nan: torch.Tensor) -> None:
        """Record a loss, norm or scores that are not finite; step the optimiser if there have been none so far."""
        failure = self._failure
        odd = ~(loss.isfinite() & norm.isfinite()) | nan
        first = odd & (failure.step < 0)
        for noted, value in zip(failure, (self._clock, loss, norm, nan), strict=True):
            noted.copy_(torch.where(first, value, noted))
        optimiser: Any = self.training.optimiser
        optimiser.found_inf = (failure.step >= 0).float()
        optimiser.grad_scale = ((norm + 1e-6) / self.training.clip).clamp(min=1.0).nan_to_num(1.0).float()
        try:
            optimiser.step()
        finally:
            del optimiser.found_inf, optimiser.grad_scale

    def recorded(self) -> None:
        """Update the kernels' pointers after :meth:`run` was recorded, as its tensors now have addresses."""
        if self.leaves:
            self.leaves.point()

    def settle(self) -> None:
        """Wait for all steps so far.

        Raises FloatingPointError if a loss or a gradient was not finite, and ValueError if scores were NaN.
        """
        step, loss, norm, nan = (value.item() for value in self._failure)
        if step < 0:
            return
        if nan:
            raise ValueError(f"scores hold NaN at step {step:.0f}: must be numbers")
        named = ("loss", loss) if not math.isfinite(loss) else ("gradient's norm", norm)
        raise FloatingPointError(not_finite(*named, int(step)))
