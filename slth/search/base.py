"""The base class of searches: options, hooks that the training loop calls, and a gate for each weight.

    @dataclass(frozen=True, kw_only=True)
    class Momentum(Search):
        \"\"\"Scores that also follow a running mean of their steps.\"\"\"

        decay: float = number(0.9, "[0, 1)", help="of the mean")

        def prepare(self, model):
            super().prepare(model)
            for masked in handle(model).weights.values():
                masked.put("mean", torch.zeros_like(masked.scores))

        def after_step(self, model, step, steps, optimiser): ...

A search is immutable. Its state for each weight is stored in buffers beside the scores (`Masked.put`), so that
state_dicts, checkpoints and copies of the model include it. Anything that a ticket needs besides the random draws and
the mask is a `slth.masking.traits.Trait`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from slth.fields import require_dataclass
from slth.masking import Gate, Masked, masks, straight_through
from slth.masking.forms import Form
from slth.search import options
from slth.wrapping import handle


@dataclass(frozen=True, kw_only=True)
class Search:
    """Base of all searches: scores are trained through a straight-through mask, and keep decreases along a schedule.

    A subclass is also a frozen dataclass; its fields are its options (`slth.search.options`). In the hooks, `model` is
    the wrapped module, whose masks are `slth.handle(model).weights`. Raises ValueError for values that an option does
    not allow.
    """

    schedule: str = options.choice(
        "constant",
        masks.SCHEDULES,
        help="how keep decreases from 1 to its final value; constant: it has that value from the start",
    )
    arrival: float = options.number(0.75, "(0, 1]", help="the share of the steps after which keep has its final value")

    #: Whether it redraws weights, which must then come from `slth.weights.inits`.
    redraws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_dataclass(type(self))
        options.check(self)

    def for_steps(self, steps: int) -> Self:
        """Return this search with options that depend on `steps` resolved. Raises ValueError if it could never act."""
        return self

    def require_keep(self, keep: float) -> None:
        """Raise ValueError if the search cannot end with this share kept, for any model."""

    #: Whether it supports masks that do more than prune, and scales (`slth.masking.forms`).
    any_form: ClassVar[bool] = True

    def require_form(self, form: Form) -> None:
        """Raise ValueError if the search does not support this kind of mask or its scale."""
        if not (self.any_form or form.is_plain):
            what = f"scale of {form.scale.count} factors" if form.prunes and form.scale else f"kind={form.kind}"
            raise ValueError(f"{what}: {type(self).__name__} must have plain masks, kind=prune and no scale")

    def gate(self, masked: Masked) -> Gate:
        """Return the gate of a weight: how the mask is applied in the forward pass, and the gradient of the scores."""
        return straight_through

    def prepare(self, model: nn.Module) -> None:
        """Prepare a wrapped model, before training and again on resuming.

        This removes what an earlier search added to the masks (:meth:`Masked.begin`), so a subclass calls it before it
        adds its own buffers. If this or a later step raises, the masks are restored. Raises ValueError for a model
        that the search does not support.
        """
        for masked in handle(model).weights.values():
            self.require_form(masked.form)
        for masked in handle(model).weights.values():
            masked.begin(f"{type(self).__module__}.{type(self).__qualname__}")
            masked.gate = self.gate(masked)

    def restore(self, model: nn.Module, step: int) -> None:
        """Recompute what depends on the state that a checkpoint has just restored, after `step` steps."""

    def move_keep(self, model: nn.Module, progress: float) -> None:
        """Set the share that each group keeps now; progress is 0 at the first step, and >= 1 gives the final share."""
        handle(model).set_progress(self.schedule, progress)

    def before_step(self, model: nn.Module, step: int, steps: int, optimiser: torch.optim.Optimizer) -> None:
        """Run before step 0, 1, ... of `steps`; the optimiser already has this step's learning rate."""
        self.move_keep(model, step / max(1.0, self.arrival * steps))

    def after_step(self, model: nn.Module, step: int, steps: int, optimiser: torch.optim.Optimizer) -> None:
        """Run after a step: the scores have been updated, their gradients are still available."""

    def finish(self, model: nn.Module) -> None:
        """Run after the last step; set keep to its final share."""
        self.move_keep(model, 1.0)
