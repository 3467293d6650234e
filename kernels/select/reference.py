"""Selection in plain torch, the reference for the other implementations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..cut import Cut
from .nan import refuse_nan


def select_threshold(scores: torch.Tensor, k: int, near: Cut | None) -> Cut:
    """Find the threshold that keeps exactly k scores, by sorting them."""
    magnitude = scores.detach().abs().flatten()
    ordered = magnitude.sort(descending=True).values
    value = ordered[k - 1]
    above = (magnitude > value).sum()
    ties = (magnitude == value).cumsum(0)
    last_tie = torch.where(ties == k - above, torch.arange(ties.numel(), device=ties.device), ties.numel()).amin()
    return Cut(value, last_tie)


class Selection:
    """The cuts of one group of scores, each found from scratch."""

    def cut(self, scores: Sequence[torch.Tensor], k: int) -> Cut:
        """Find the cut that keeps exactly k of all scores together. Raises ValueError for NaN."""
        flat = torch.cat([s.detach().to(scores[0].device).reshape(-1) for s in scores])
        refuse_nan(bool(flat.isnan().any()))
        return select_threshold(flat, k, None)

    def settle(self) -> None:
        """Do nothing: NaN is detected immediately."""
