"""Weights that a search does not decide about: some pruned for good, some kept for good, at random places.

Which ones follows from a seed and the weight's name, so a ticket needs no bits for them (Otsuka et al. 2025, "Partially
frozen random networks contain compact strong lottery tickets", arXiv 2402.14029).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import torch

from slth.kernels import Selector
from slth.masking import Masked, masks
from slth.masking.parameters import Part
from slth.masking.traits import Trait
from slth.numbers import as_float, as_int, put
from slth.weights import inits

LOCKED = torch.finfo(torch.float32).max  # the score of a locked weight: finite, so that averages of it are itself


@dataclass(frozen=True)
class Freezing(Trait):
    """Shares of each part of a weight that are `pruned` and `locked` (kept) for good, each in [0, 1), drawn by seed.

    Raises ValueError for other shares, or where they leave nothing free.
    """

    key: ClassVar[str] = "freezing"
    buffer: ClassVar[str] = "free"
    kind: ClassVar[str] = "frozen"

    pruned: float
    locked: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("pruned", "locked"):
            put(self, **{name: as_float(name, getattr(self, name), "[0, 1)", "the share of weights frozen so")})
        put(self, seed=as_int("seed", self.seed))
        if not 0 < self.pruned + self.locked < 1:
            raise ValueError(f"pruned + locked = {self.pruned + self.locked}: must be in (0, 1), to leave weights free")

    @property
    def note(self) -> str:
        """As a ticket's description has it."""
        return "partly frozen"

    @classmethod
    def of(cls, masked: Masked, mask: torch.Tensor) -> Self | None:
        """The freezing of a mask that is as it says; another one may have been put in its place."""
        freezing = super().of(masked, mask)
        if freezing is None:
            return None
        pruned, locked = freezing.places(mask.shape, masked.parts, masked.path)
        mask = mask.cpu()
        return None if bool((pruned & mask).any()) or not bool(mask[locked].all()) else freezing

    @classmethod
    def entry(cls, masked: Masked) -> dict[str, Any]:
        """As the base has it; None where nothing is frozen, as entries have always said."""
        return {cls.key: None} | super().entry(masked)

    @classmethod
    @torch.no_grad()
    def leave(cls, masked: Masked) -> None:
        """Give locked weights the largest score that is free: no step of training moves the one that they have."""
        if masked.free is not None:
            locked = masked.scores == LOCKED
            masked.scores[locked] = masked.scores[~locked].abs().max()

    @property
    def open(self) -> float:
        """The share that is not pruned for good: 1 - pruned, as the decimals that they print as."""
        return float(1 - Fraction(str(self.pruned)))

    def places(self, shape: torch.Size, parts: Sequence[Part], path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(pruned, locked) of a weight: bool masks of its shape, in each part the same exact shares."""
        draws = inits.uniform(shape, 1.0, seed=self.seed, name=f"freezing/{path}").abs()
        pruned, locked = (torch.zeros(shape, dtype=torch.bool, device="cpu") for _ in range(2))
        for part in parts:
            if self.pruned:
                part.of(pruned).copy_(~_top(part.of(draws), self.open))
            if self.locked:
                part.of(locked).copy_(_top(part.of(draws), self.locked))
        return pruned, locked & ~pruned


def _top(draws: torch.Tensor, share: float) -> torch.Tensor:
    return Selector().cut([draws], masks.count_kept(draws.numel(), share)).mask(draws)
