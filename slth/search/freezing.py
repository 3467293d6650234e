"""Partially frozen weights: random entries that are pruned or kept permanently, so that no search decides about them.

The frozen entries follow from a seed and the weight's name, so a ticket needs no bits for them (Otsuka et al. 2025,
"Partially frozen random networks contain compact strong lottery tickets", arXiv 2402.14029).
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

LOCKED = torch.finfo(torch.float32).max  # the score of a locked weight; finite, so that its average is the same value


@dataclass(frozen=True)
class Freezing(Trait):
    """Shares of each part of a weight that are permanently `pruned` and `locked` (kept), at places drawn by `seed`.

    Raises ValueError for a share outside [0, 1), or if the shares sum to 0 or leave no weight free.
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
        """The word for such a weight in a ticket's description."""
        return "partly frozen"

    @classmethod
    def of(cls, masked: Masked, mask: torch.Tensor) -> Self | None:
        """Return the freezing of a weight, None if its mask was replaced by one that contradicts it."""
        freezing = super().of(masked, mask)
        if freezing is None:
            return None
        pruned, locked = freezing.places(mask.shape, masked.parts, masked.path)
        mask = mask.cpu()
        return None if bool((pruned & mask).any()) or not bool(mask[locked].all()) else freezing

    @classmethod
    def entry(cls, masked: Masked) -> dict[str, Any]:
        """Return the entry of a state_dict; always has the key, with None if nothing is frozen."""
        return {cls.key: None} | super().entry(masked)

    @classmethod
    @torch.no_grad()
    def leave(cls, masked: Masked) -> None:
        """Give locked weights the largest magnitude of the free scores: no training step could change LOCKED."""
        if masked.free is not None:
            locked = masked.scores == LOCKED
            masked.scores[locked] = masked.scores[~locked].abs().max()

    @property
    def open(self) -> float:
        """The share that is not permanently pruned: 1 - pruned, computed on the decimals that they print as."""
        return float(1 - Fraction(str(self.pruned)))

    def places(self, shape: torch.Size, parts: Sequence[Part], path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (pruned, locked), bool masks of the weight's shape on the CPU, with the exact shares in each part."""
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
