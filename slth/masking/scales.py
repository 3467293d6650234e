"""Learned factors of a masked weight: one a matrix, one an attention head, or one an output unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slth.masking.parameters import MaskedParameter

#: What has a factor of its own, by name.
SCALES = ("matrix", "head", "row")
_FACING_INPUTS = ("output",)  # roles whose heads lie along the inputs


@dataclass(frozen=True)
class Scale:
    """`count` factors, each of an equal stretch of a weight along `axis`. They start at 1 and are float32."""

    axis: int
    count: int

    def spread(self, factors: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Factors (count,) -> a tensor that broadcasts to a weight of this shape."""
        wide = factors.repeat_interleave(shape[self.axis] // self.count)
        return wide.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])

    def check(self, shape: Sequence[int]) -> None:
        """Raise ValueError where a weight of this shape cannot have these factors."""
        if not 0 <= self.axis < len(shape) or self.count < 1 or shape[self.axis] % self.count:
            raise ValueError(f"{self.count} factors along axis {self.axis} of {tuple(shape)}: must divide it")

    def to_json(self) -> list[int]:
        """As a ticket and a state_dict have it."""
        return [self.axis, self.count]

    @classmethod
    def from_json(cls, told: Any) -> Scale:
        """What :meth:`to_json` told of. Raises ValueError or TypeError for anything else."""
        axis, count = told
        if not all(type(number) is int for number in (axis, count)):
            raise TypeError(f"scale {told!r}: must be two ints")
        return cls(axis, count)


def check_scale(scale: object) -> None:
    """Raise ValueError unless it is None or one of SCALES."""
    if not (scale is None or (isinstance(scale, str) and scale in SCALES)):
        raise ValueError(f"scale={scale!r}: must be None or one of {', '.join(SCALES)}")


def scale_of(param: MaskedParameter, scale: str | None) -> Scale | None:
    """The factors of a weight: one a matrix (each of query, key and value where they are fused), head or output unit.

    A weight that is known to belong to no attention head has one a matrix in place of one a head.
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
