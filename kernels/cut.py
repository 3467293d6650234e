"""The threshold of scores, which a selection returns and a masked weight takes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from slth.threads import in_parallel
from slth.watched import watched

_PIECE = 1 << 15  # scores that one thread compares at a time, which fit its core's cache


class Cut(NamedTuple):
    """A threshold of scores: kept are |score| > value, and |score| == value at a row-major index <= last_tie.

    last_tie = -1 keeps no ties. Both are Python numbers, or both are 0-dimensional tensors, value float32 and last_tie
    int64, on the scores' device, so that the host need not wait for them. The index counts through all tensors of a
    group, each in row-major order.
    """

    value: float | torch.Tensor
    last_tie: int | torch.Tensor = -1

    def after(self, offset: int) -> Cut:
        """Return the cut with indices counted from the score of index `offset`."""
        return Cut(self.value, self.last_tie - offset) if offset else self

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (value, last_tie) as tensors on a device."""
        value, last_tie = self
        if not isinstance(value, float | int) and not isinstance(last_tie, int):
            return value.to(device), last_tie.to(device)
        # filled on the device, since a copy from the host would synchronise
        return (
            torch.full((), float(value), dtype=torch.float32, device=device),
            torch.full((), int(last_tie), dtype=torch.int64, device=device),
        )

    def mask(self, scores: torch.Tensor, offset: int = 0) -> torch.Tensor:
        """Return the mask, bool, of scores whose first one has index `offset` in the group."""
        scores, (value, last_tie) = scores.detach(), self.after(offset)
        if isinstance(value, torch.Tensor) or not isinstance(last_tie, int):
            value, last_tie = self.after(offset).tensors(scores.device)
            index = torch.arange(scores.numel(), device=scores.device).reshape(scores.shape)
            magnitude = scores.abs()
            return (magnitude > value) | ((magnitude == value) & (index <= last_tie))
        if not scores.is_cpu or scores.numel() <= _PIECE or watched():
            return _kept(scores, value, last_tie + 1)
        with torch.inference_mode(False):  # other threads could not write to an inference tensor
            kept = torch.empty_like(scores, dtype=torch.bool)
        row = scores[0].numel()
        rows = max(_PIECE // row, 1)

        def work(pieces: slice) -> None:
            for start in range(rows * pieces.start, min(rows * pieces.stop, len(scores)), rows):
                here = slice(start, start + rows)
                kept[here] = _kept(scores[here], value, last_tie + 1 - start * row)

        in_parallel(work, -(-len(scores) // rows), torch.get_num_threads())
        return kept


def _kept(scores: torch.Tensor, value: float, ties: int) -> torch.Tensor:
    """Return |score| > value, or |score| == value among the first `ties` scores."""
    magnitude = scores.abs()
    if ties <= 0:
        return magnitude > value
    if ties >= scores.numel():
        return magnitude >= value
    index = torch.arange(scores.numel(), device=scores.device).reshape(scores.shape)
    return (magnitude > value) | ((magnitude == value) & (index < ties))


#: (float32 scores of the weight's shape, their cut: a Cut, a number or a 0-dimensional float32 tensor)
Scored = tuple[torch.Tensor, Cut | torch.Tensor | float]


def as_cut(given: Cut | torch.Tensor | float) -> Cut:
    """Convert a value to a cut without ties; return a cut unchanged. Raises ValueError for a tensor with axes."""
    if isinstance(given, Cut):
        return given
    if isinstance(given, torch.Tensor):
        if given.dim():
            raise ValueError(f"threshold of shape {tuple(given.shape)}: must have no axes")
        return Cut(given.float(), torch.full((), -1, dtype=torch.int64, device=given.device))
    return Cut(float(given))
