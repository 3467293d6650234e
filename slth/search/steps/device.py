"""A step that reads nothing back from the device it runs on, so that Python can run ahead of it, or not run at all.

Learning rates, the step's number and what each group keeps are tensors there. So are clipping and finiteness: they go
into torch's fused optimisers as those of `torch.amp.GradScaler` do, and from the first loss or gradient that is not
finite on the optimiser takes no step.
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

#: Optimisers whose fused form takes rates, clipping and finiteness as tensors.
_FUSED = torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD
_PATIENCE = 32  # steps after which what was found is read


def can_fuse(optimiser: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether torch has a fused form of the optimiser for its parameters, and the user has chosen no other one."""
    options = [group for group in optimiser.param_groups if type(optimiser) in _FUSED]
    tensors = [p for group in options for p in group["params"]]
    return bool(tensors) and (
        all(p.device == device and p.is_floating_point() for p in tensors)
        and not any(group["foreach"] or group["fused"] is False or group["differentiable"] for group in options)
    )


def fuse(optimiser: torch.optim.Optimizer, device: torch.device) -> None:
    """Let an optimiser step in its fused form, by learning rates on the device."""
    for group in optimiser.param_groups:
        group["fused"], group["foreach"] = True, False
        group["lr"] = torch.as_tensor(group["lr"]).to(device, torch.float32, copy=True)  # the user's stays as it is
    for state in optimiser.state.values():
        if "step" in state:
            state["step"] = state["step"].to(device, torch.float32)


@contextmanager
def capturable(optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """Within it an optimiser lets itself be captured. One that does so elsewhere, too, is warned of by torch."""
    groups = [group for group in optimiser.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group, value in zip(groups, before, strict=True):
            group["capturable"] = value


class _Found(NamedTuple):
    """What steps have found so far, as tensors without axes."""

    step: torch.Tensor  # int64: the first that was not finite, -1 while there is none
    loss: torch.Tensor  # float64: of that step
    norm: torch.Tensor  # float64: of its gradient
    nan: torch.Tensor  # bool: whether there was NaN among its scores


class DeviceStep:
    """A step of which nothing comes back unless it is asked for.

    wrapped: the masks of a wrapped model. They become leaves (`slth.masking.leaves`) where the search permits it, and
    else are cut within the forward pass.
    """

    def __init__(self, training: Training, wrapped: Wrapped | None) -> None:
        self.training, self._wrapped = training, wrapped
        device = training.device
        self._clock = torch.zeros((), dtype=torch.int64, device=device)
        loss, norm = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self._found = _Found(torch.full_like(self._clock, -1), loss, norm, torch.zeros_like(self._clock).bool())
        self._make_leaves()
        fuse(training.optimiser, device)

    def _make_leaves(self) -> None:
        lower = self.training.precision == "bf16" and self.training.accumulate == 1  # else gradients add up in float32
        dtype = torch.bfloat16 if lower else torch.float32
        self.leaves = Leaves.of(root(self.training.model), self._wrapped, dtype) if self._wrapped else None
        scores = {id(p) for p in self.leaves.scores} if self.leaves else set()
        self._others = [p for p in self.training.parameters if id(p) not in scores]

    @property
    def recordable(self) -> bool:
        """Whether :meth:`run` is work of the device alone, as far as masks are concerned."""
        return self._wrapped is None or self.leaves is not None

    def check_recordable(self) -> None:
        """Raise RuntimeError where a step has shown that a recording would not follow its masks."""
        if self.leaves and self.leaves.bypassed:
            raise RuntimeError("the model cuts masks by itself, as a compiled one does")

    def refresh(self) -> bool:
        """Make other leaves where weights, scores or gates are others than they were. Returns whether they were.

        Where there are none, none are looked for: not in every step of a search with gates of its own.
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
        """Take a step and return the loss, on the device. Raises FloatingPointError for an earlier step.

        run: does what :meth:`run` does, from a recording of it.
        """
        if run is None:
            self.refresh()
        self._prepare(number)
        loss = (run or self.run)(batch)
        if (number + 1) % _PATIENCE == 0:
            self.settle()
        return loss

    def _prepare(self, number: int) -> None:
        """Tell the device what is new in this step."""
        self._train()
        self._clock.fill_(number)
        if self.leaves:
            self.leaves.follow_keep()

    def _train(self) -> None:
        if not self.training.model.training:  # as an evaluation has left it
            self.training.model.train()

    def run(self, batch: Any) -> torch.Tensor:
        """The step itself: all of it work of the device, that can be recorded and run again without Python."""
        self._train()  # the mode is a part of what is recorded
        leaves = self.leaves
        for parameter in self._others:
            parameter.grad = None
        nan = torch.zeros_like(self._found.nan)
        if leaves:
            leaves.zero()
            nan = leaves.write()
        total = torch.zeros_like(self._found.loss)
        with leaves.standing_in() if leaves else nullcontext():
            for value in self.training.losses(batch):
                self.training.backward(value)
                total += value.detach().reshape(())
        self._update(total, self._norm(leaves.pull() if leaves else None), nan)
        return total

    def _norm(self, squares: torch.Tensor | None) -> torch.Tensor:
        """The norm of all gradients; squares: the sum of those of the scores, where it is known."""
        parameters = self.training.parameters if squares is None else self._others
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads).double() if grads else torch.zeros_like(self._found.norm)
        return norm if squares is None else (norm.square() + squares).sqrt()

    @torch.no_grad()
    def _update(self, loss: torch.Tensor, norm: torch.Tensor, nan: torch.Tensor) -> None:
        """Note what was found, and take the optimiser's step unless anything ever was not finite."""
        found = self._found
        odd = ~(loss.isfinite() & norm.isfinite()) | nan
        first = odd & (found.step < 0)
        for noted, value in zip(found, (self._clock, loss, norm, nan), strict=True):
            noted.copy_(torch.where(first, value, noted))
        optimiser: Any = self.training.optimiser
        optimiser.found_inf = (found.step >= 0).float()
        optimiser.grad_scale = ((norm + 1e-6) / self.training.clip).clamp(min=1.0).nan_to_num(1.0).float()
        try:
            optimiser.step()
        finally:
            del optimiser.found_inf, optimiser.grad_scale

    def recorded(self) -> None:
        """Note that :meth:`run` was recorded, and not done: its tensors have addresses now."""
        if self.leaves:
            self.leaves.point()

    def settle(self) -> None:
        """Wait for what the steps so far have found.

        Raises FloatingPointError where a loss or a gradient was not finite, and ValueError where scores were NaN.
        """
        step, loss, norm, nan = (value.item() for value in self._found)
        if step < 0:
            return
        if nan:
            raise ValueError(f"scores hold NaN at step {step:.0f}: must be numbers")
        named = ("loss", loss) if not math.isfinite(loss) else ("gradient's norm", norm)
        raise FloatingPointError(not_finite(*named, int(step)))
