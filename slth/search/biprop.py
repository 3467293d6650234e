"""Biprop: find binary weights (Diffenderfer & Kailkhura 2021, arXiv 2103.09377)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from slth.masking import Gate, Masked, state, straight_through
from slth.masking.parameters import Part
from slth.masking.traits import Trait
from slth.search.base import Search


@dataclass(frozen=True, kw_only=True)
class Biprop(Search):
    """Edge-popup on binary weights: kept entries of each part are alpha * sign(weight), alpha their mean |weight|.

    alpha is exact for the present mask (the paper's code divides by another count than the mask's) and treated as a
    constant. The gradient of a score is g * alpha * sign(weight) * sign(score), the straight-through gradient for the
    weights that the network sees; the paper's code uses g * |weight|.
    """

    any_form: ClassVar[bool] = False

    def gate(self, masked: Masked) -> Gate:
        """Return the gate that makes weights binary."""
        return binary


@state.named("biprop")
def binary(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """Apply mask and level to a weight: the gate of biprop."""
    return straight_through(masked, _levelled(masked, weight.detach()))


@torch.no_grad()
def _levelled(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """The signs of a weight times alpha, with one alpha per part."""
    kept = masked.pruned(weight)
    levels = weight.sign()
    for part in masked.parts:
        values = part.of(kept)
        part.of(levels).mul_(values.abs().sum() / values.count_nonzero().clamp(min=1))
    return levels


@dataclass(frozen=True)
class Levels(Trait):
    """Kept entries are the signs of the drawn weights times one level per part."""

    key: ClassVar[str] = "levels"
    altered: ClassVar[str] = "made binary"
    words: ClassVar[str] = "their signs"

    levels: tuple[float, ...]

    @property
    def note(self) -> str:
        """The word for such a weight in a ticket's description."""
        return "binary"

    @classmethod
    def detected(cls, value: torch.Tensor, drawn: torch.Tensor, parts: Sequence[Part]) -> Self | None:
        """Read the level of each part from the values."""
        return cls(tuple(float(part.of(value).abs().max()) for part in parts))

    def to_json(self) -> Any:
        """Return the levels."""
        return self.levels

    @classmethod
    def from_json(cls, levels: Any) -> Self:
        """Read the levels of a ticket. Raises TypeError if one is not a number."""
        if odd := [level for level in levels if not isinstance(level, int | float)]:
            raise TypeError(f"level {odd[0]!r}: must be a number")
        return cls(tuple(levels))

    def check(self, parts: Sequence[Part]) -> None:
        """Raise ValueError unless there is a level for each part."""
        if len(self.levels) != len(parts):
            raise ValueError(f"{len(self.levels)} levels, must be one for each of {len(parts)} parts")

    def shown(self, drawn: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
        """Return the signs of the drawn weights times the levels."""
        out = drawn.sign()
        for part, level in zip(parts, self.levels, strict=True):
            part.of(out).mul_(level)
        return out
