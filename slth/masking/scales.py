"""Learned factors of a masked weight: one per matrix, per attention head, or per output unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slth.masking.parameters import MaskedParameter

#: The units that can have a factor of their own.
SCALES = ("matrix", "head", "row")
_FACING_INPUTS = ("output",)  # roles whose heads are along the inputs


@dataclass(frozen=True)
class Scale:
    """`count` factors (float32, initially 1), each for an equal stretch of a weight along `axis`."""

    axis: int
    count: int

    def spread(self, factors: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Expand factors (count,) to a tensor that broadcasts to a weight of this shape."""
        wide = factors.repeat_interleave(shape[self.axis] // self.count)
        return wide.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])

    def check(self, shape: Sequence[int]) -> None:
        """Raise ValueError if a weight of this shape cannot have these factors."""
        if not 0 <= self.axis < len(shape) or self.count < 1 or shape[self.axis] % self.count:
            raise ValueError(f"{self.count} factors along axis {self.axis} of {tuple(shape)}: must divide it")

    def to_json(self) -> list[int]:
        """Return [axis, count], for tickets and state_dicts."""
        return [self.axis, self.count]

    @classmethod
    def from_json(cls, stored: Any) -> Scale:
        """Read the result of :meth:`to_json`. Raises ValueError or TypeError for anything else."""
        axis, count = stored
        if not all(type(number) is int for number in (axis, count)):
            raise TypeError(f"scale {stored!r}: must be two ints")
        return cls(axis, count)


def check_scale(scale: object) -> None:
    """Raise ValueError unless scale is None or one of SCALES."""
    if not (scale is None or (isinstance(scale, str) and scale in SCALES)):
        raise ValueError(f"scale={scale!r}: must be None or one of {', '.join(SCALES)}")


def scale_of(param: MaskedParameter, scale: str | None) -> Scale | None:
    """Return the scale of a weight: one factor per matrix (of fused query, key and value), head or output unit.

    With "head", a weight that is not known to belong to attention heads has one factor per matrix.
    """
    if scale is None:
        return None
    shape, axes = param.tensor.shape, param.axes
    if scale == "row":
        return Scale(axes.outputs, shape[axes.outputs])
    role = param.parts[0].role
    if scale == "head" and param.head and role:
        axis = axes.inputs if role in _FACING_INPUTS else axes.outputs
        if shape[axis] % param.head == 0:
            return Scale(axis, shape[axis] // param.head)
    return Scale(param.parts[0].dim, len(param.parts))
