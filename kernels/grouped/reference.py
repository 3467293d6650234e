"""The three operations in plain torch, group by group and segment by segment: the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..cut import Cut
from ..masked_weight.reference import masked_weight, score_gradient
from ..select.reference import select_threshold
from .cuts import Cuts

if TYPE_CHECKING:
    from . import Segment


class Operations:
    """Cuts, masked weights and score gradients of the segments of a table."""

    def __init__(self, segments: Sequence[Segment], groups: int) -> None:
        self._segments, self._groups = segments, groups
        self._offsets = offsets(segments, groups)

    def cut(self, kept: torch.Tensor) -> Cuts:
        """Find the cut of each group by sorting its scores."""
        values, ties = [], []
        nan = torch.zeros((), dtype=torch.int64, device=kept.device)
        for group, k in enumerate(kept.tolist()):
            scores = torch.cat([s.scores.reshape(-1) for s in self._segments if s.group == group])
            nan |= scores.isnan().any()
            value, last_tie = select_threshold(scores, k, None).tensors(kept.device)
            values.append(value)
            ties.append(last_tie)
        return Cuts(torch.stack(values), torch.stack(ties), nan)

    def write(self, cuts: Cuts) -> None:
        """Write every masked weight."""
        for segment, offset in zip(self._segments, self._offsets, strict=True):
            cut = Cut(cuts.value[segment.group], cuts.last_tie[segment.group]).after(offset)
            segment.pruned.copy_(masked_weight(segment.weight, (segment.scores, cut), None))

    def slope(self, grads: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> torch.Tensor:
        """Write every score gradient and return the sum of their squares."""
        squares = torch.zeros((), dtype=torch.float64, device=self._segments[0].scores.device)
        for segment, grad, slope in zip(self._segments, grads, out, strict=True):
            made = score_gradient(grad, segment.weight, segment.scores)
            slope.copy_(made if segment.free is None else torch.where(segment.free, made, 0))
            squares += slope.double().square().sum()
        return squares.float()

    def point(self) -> None:
        """Do nothing: the reference uses no addresses."""


def offsets(segments: Sequence[Segment], groups: int) -> list[int]:
    """Return the index of each segment's first score in its group."""
    sizes = [0] * groups
    found = []
    for segment in segments:
        found.append(sizes[segment.group])
        sizes[segment.group] += segment.scores.numel()
    return found
