"""Where scores are cut: what a selection finds, and a masked weight is given."""

from __future__ import annotations

from typing import NamedTuple

import torch

from slth.threads import in_parallel
from slth.watched import watched

_PIECE = 1 << 15  # scores that one thread compares at a time: they stay in its core's cache


class Cut(NamedTuple):
    """Kept are |score| > value, and |score| == value at a row-major index <= last_tie (-1: no ties are kept).

    Both are Python's numbers; or both tensors without axes, value float32 and last_tie int64, that stay on the scores'
    device so that nothing waits for them. The index counts through all tensors of a group, each row by row.
    """

    value: float | torch.Tensor
    last_tie: int | torch.Tensor = -1

    def after(self, offset: int) -> Cut:
        """The cut as it is counted from the score of index `offset` on."""
        return Cut(self.value, self.last_tie - offset) if offset else self

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(value, last_tie) as tensors on a device."""
        value, last_tie = self
        if not isinstance(value, float | int) and not isinstance(last_tie, int):
            return value.to(device), last_tie.to(device)
        # filled there, for a copy from the host would be waited for
        return (
            torch.full((), float(value), dtype=torch.float32, device=device),
            torch.full((), int(last_tie), dtype=torch.int64, device=device),
        )

    def mask(self, scores: torch.Tensor, offset: int = 0) -> torch.Tensor:
        """What is kept of the scores from index `offset` on: bool, their shape."""
        scores, (value, last_tie) = scores.detach(), self.after(offset)
        if isinstance(value, torch.Tensor) or not isinstance(last_tie, int):
            value, last_tie = self.after(offset).tensors(scores.device)
            index = torch.arange(scores.numel(), device=scores.device).reshape(scores.shape)
            magnitude = scores.abs()
            return (magnitude > value) | ((magnitude == value) & (index <= last_tie))
        if not scores.is_cpu or scores.numel() <= _PIECE or watched():
            return _kept(scores, value, last_tie + 1)
        with torch.inference_mode(False):  # which other threads could not write to
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
    """|score| > value, of the first `ties` scores also those with |score| == value."""
    magnitude = scores.abs()
    if ties <= 0:
        return magnitude > value
    if ties >= scores.numel():
        return magnitude >= value
    index = torch.arange(scores.numel(), device=scores.device).reshape(scores.shape)
    return (magnitude > value) | ((magnitude == value) & (index < ties))


#: (scores float32 of the weight's shape, the cut: a Cut, a number or a float32 tensor without axes)
Scored = tuple[torch.Tensor, Cut | torch.Tensor | float]


def as_cut(given: Cut | torch.Tensor | float) -> Cut:
    """A cut, which keeps no ties where only a value is given. Raises ValueError for a tensor with axes."""
    if isinstance(given, Cut):
        return given
    if isinstance(given, torch.Tensor):
        if given.dim():
            raise ValueError(f"threshold of shape {tuple(given.shape)}: must have no axes")
        return Cut(given.float(), torch.full((), -1, dtype=torch.int64, device=given.device))
    return Cut(float(given))
