"""Where scores are cut: what a selection finds, and a masked weight is given."""

from __future__ import annotations

from typing import NamedTuple

import torch


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
        scores, cut = scores.detach(), self.after(offset)
        magnitude = scores.abs()
        if isinstance(cut.last_tie, int):
            kept = magnitude > cut.value
            if cut.last_tie < 0:
                return kept
            value, last_tie = cut
        else:
            value, last_tie = cut.tensors(scores.device)
            kept = magnitude > value
        index = torch.arange(scores.numel(), device=scores.device).reshape(scores.shape)
        return kept | ((magnitude == value) & (index <= last_tie))


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
