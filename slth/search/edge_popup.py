"""Edge-popup: train scores through a straight-through mask (Ramanujan et al. 2020, arXiv 1911.13299).

The other searches are this one with something added; each says so by deriving from :class:`EdgePopup`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from slth.masking import masks, straight_through
from slth.numbers import as_float, put
from slth.wrapping import handle


@dataclass(frozen=True, kw_only=True)
class EdgePopup:
    """The search of which the others are variations.

    schedule: how keep comes down from 1 to its value, a name of `slth.masking.masks.SCHEDULES` ("constant": it is there
    from the start); arrival: the share of the steps, in (0, 1], after which it has come down. Raises ValueError for
    others.
    """

    schedule: str = "constant"
    arrival: float = 0.75

    def __post_init__(self) -> None:
        if self.schedule not in masks.SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r}: must be one of {', '.join(masks.SCHEDULES)}")
        put(self, arrival=as_float("arrival", self.arrival, "(0, 1]", "a share of the steps"))

    def for_steps(self, steps: int) -> EdgePopup:
        """This search with what depends on the number of steps settled. Raises ValueError where it could never act."""
        return self

    def start(self, model: nn.Module) -> None:
        """Prepare a wrapped model, once before training and again on resuming. Raises ValueError."""
        for masked in handle(model).weights.values():
            masked.gate = straight_through

    def restore(self, model: nn.Module) -> None:
        """Put right what follows from the state that a checkpoint has just brought back."""

    def before(self, model: nn.Module, step: int, steps: int) -> None:
        """What comes before step 0, 1, ... of `steps`."""
        handle(model).set_progress(self.schedule, progress=step / max(1.0, self.arrival * steps))

    def after(self, model: nn.Module, step: int, steps: int) -> None:
        """What comes after a step, its scores moved."""

    def finish(self, model: nn.Module) -> None:
        """Bring keep to its own value, after the last step."""
        handle(model).set_progress(self.schedule, progress=1.0)
