"""What a search is: options, hooks that the loop calls, a gate for each weight.

    @dataclass(frozen=True, kw_only=True)
    class Momentum(Search):
        \"\"\"Scores that also follow a running mean of their steps.\"\"\"

        decay: float = number(0.9, "[0, 1)", help="of the mean")

        def prepare(self, model):
            super().prepare(model)
            for masked in handle(model).weights.values():
                masked.put("mean", torch.zeros_like(masked.scores))

        def after_step(self, model, step, steps, optimiser): ...

A search is immutable; what it learns of a weight lies beside the scores (`Masked.put`), where state_dicts, checkpoints
and copies of the model hold it too. What a ticket needs beyond draws and a mask is a `slth.masking.traits.Trait`.
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
    """Base of all searches: scores are trained through a straight-through mask, keep comes down along a schedule.

    A subclass is a frozen dataclass too; its fields are its options (`slth.search.options`). `model` in the hooks is
    the wrapped module, whose masks are `slth.handle(model).weights`. Raises ValueError for values outside the options.
    """

    schedule: str = options.choice(
        "constant",
        masks.SCHEDULES,
        help="how keep comes down from 1 to its value; constant: it is there from the start",
    )
    arrival: float = options.number(0.75, "(0, 1]", help="a share of the steps, after which keep has come down")

    #: Whether it draws weights anew, which must come from `slth.weights.inits` then.
    redraws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_dataclass(type(self))
        options.check(self)

    def for_steps(self, steps: int) -> Self:
        """This search with what depends on the number of steps settled. Raises ValueError where it could never act."""
        return self

    def require_keep(self, keep: float) -> None:
        """Raise ValueError where it cannot end with this share kept, whatever the model."""

    #: Whether it can search for masks that do more than prune, and for scales (`slth.masking.forms`).
    any_form: ClassVar[bool] = True

    def require_form(self, form: Form) -> None:
        """Raise ValueError where it cannot search for masks of this kind, or with a scale."""
        if not (self.any_form or form.is_plain):
            what = f"scale of {form.scale.count} factors" if form.prunes and form.scale else f"kind={form.kind}"
            raise ValueError(f"{what}: {type(self).__name__} must have plain masks, kind=prune and no scale")

    def gate(self, masked: Masked) -> Gate:
        """How mask and weight meet in the forward pass, and what gradient the scores get."""
        return straight_through

    def prepare(self, model: nn.Module) -> None:
        """Make a wrapped model ready, once before training and again on resuming. Raises ValueError.

        What an earlier search added to the masks is removed (:meth:`Masked.begin`), so a subclass calls this before it
        adds its own. If this or a later step raises, the masks are restored.
        """
        for masked in handle(model).weights.values():
            self.require_form(masked.form)
        for masked in handle(model).weights.values():
            masked.begin(f"{type(self).__module__}.{type(self).__qualname__}")
            masked.gate = self.gate(masked)

    def restore(self, model: nn.Module, step: int) -> None:
        """Put right what follows from the state that a checkpoint has just brought back, after so many steps."""

    def move_keep(self, model: nn.Module, progress: float) -> None:
        """Set the share that each group keeps now; progress: 0 at the first step, from 1 on its final share."""
        handle(model).set_progress(self.schedule, progress)

    def before_step(self, model: nn.Module, step: int, steps: int, optimiser: torch.optim.Optimizer) -> None:
        """Act before step 0, 1, ... of `steps`; the optimiser has this step's learning rate."""
        self.move_keep(model, step / max(1.0, self.arrival * steps))

    def after_step(self, model: nn.Module, step: int, steps: int, optimiser: torch.optim.Optimizer) -> None:
        """Act after a step, its scores moved and their gradients still there."""

    def finish(self, model: nn.Module) -> None:
        """Act after the last step: keep is its final share."""
        self.move_keep(model, 1.0)
