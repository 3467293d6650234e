"""The memory layout of a segment: the same rows of contiguous columns in each of its tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """Tensors of one shape read as (rows, columns), with contiguous columns and rows at a constant stride.

    There is one row if all tensors are contiguous.
    """

    rows: int
    columns: int

    def row_stride(self, tensor: torch.Tensor) -> int | None:
        """Return the stride, in entries, from one row of a tensor to the next; None if it has another layout."""
        try:
            flat = tensor.view(self.rows, self.columns)
        except RuntimeError:  # its axes cannot be joined
            return None
        if self.columns > 1 and flat.stride(1) != 1:
            return None
        return flat.stride(0) if self.rows > 1 else self.columns


def layout_of(*tensors: torch.Tensor) -> Layout | None:
    """Return the layout with the longest rows that tensors of one shape share; None if there is none."""
    shape = tensors[0].shape
    for axis in range(len(shape) + 1):
        layout = Layout(shape[:axis].numel(), shape[axis:].numel())
        if all(layout.row_stride(t) is not None for t in tensors):
            return layout
    return None
