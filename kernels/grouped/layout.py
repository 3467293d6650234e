"""How a segment lies in memory: the same rows of contiguous columns in each of its tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """Tensors of one shape read as (rows, columns): contiguous within a row, one row a stride after the other.

    One row where all of them are contiguous.
    """

    rows: int
    columns: int

    def row_stride(self, tensor: torch.Tensor) -> int | None:
        """Entries from one row of a tensor to the next, None where it does not lie so."""
        try:
            flat = tensor.view(self.rows, self.columns)
        except RuntimeError:  # its axes cannot be joined
            return None
        if self.columns > 1 and flat.stride(1) != 1:
            return None
        return flat.stride(0) if self.rows > 1 else self.columns


def layout_of(*tensors: torch.Tensor) -> Layout | None:
    """The layout with the longest rows that tensors of one shape share, None where there is none."""
    shape = tensors[0].shape
    for axis in range(len(shape) + 1):
        layout = Layout(shape[:axis].numel(), shape[axis:].numel())
        if all(layout.row_stride(t) is not None for t in tensors):
            return layout
    return None
