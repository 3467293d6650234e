"""Tables for the kernels: one row of numbers per segment, and lists of the pieces that programs work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .layout import Layout, layout_of
from .reference import offsets

if TYPE_CHECKING:
    from . import Segment

GRANULE = 4  # entries of one row that are read together (16 bytes of float32), if all tensors allow it
NARROW = 1 << 30  # entries from which offsets are 64 bits wide: 2^31 would overflow one piece beyond the end

#: Columns of a table, int64: columns and size of the segment; its group and the index of its first score in the group;
#: the address and the row stride, in entries, of each tensor (0 without `free`).
FIELDS = ("columns", "size", "group", "offset", "scores", "scores_row", "weight", "weight_row", "pruned", "pruned_row",
          "free", "free_row")  # fmt: skip


class Placed(NamedTuple):
    """A segment with scores: its index among a table's segments, its layout, and its row of numbers."""

    place: int
    segment: Segment
    layout: Layout
    numbers: list[int]

    def lying(self, *tensors: torch.Tensor | None) -> list[tuple[torch.Tensor, Layout]]:
        """Return (tensor, layout) of the tensors that are not None, which have the segment's layout."""
        return [(tensor, self.layout) for tensor in tensors if tensor is not None]


def placed(segments: Sequence[Segment], groups: int) -> list[Placed]:
    """Return the segments that have scores, group by group."""
    found = []
    for place, (segment, offset) in enumerate(zip(segments, offsets(segments, groups), strict=True)):
        size = segment.scores.numel()
        if size:
            weight, scores, pruned, group, free = segment
            layout = layout_of(*(t for t in (weight, scores, pruned, free) if t is not None))
            assert layout is not None
            numbers = [layout.columns, size, group, offset]
            for tensor in (scores, weight, pruned, free):
                numbers += (0, 0) if tensor is None else lie(tensor, layout)
            found.append(Placed(place, segment, layout, numbers))
    return sorted(found, key=lambda one: one.segment.group)


def lie(tensor: torch.Tensor, layout: Layout) -> tuple[int, int]:
    """Return (address, row stride in entries) of a tensor."""
    stride = layout.row_stride(tensor)
    assert stride is not None
    return tensor.data_ptr(), stride


def reading(tensors: Sequence[tuple[torch.Tensor, Layout]]) -> dict[str, Any]:
    """Return the options for reading these tensors: entries per granule, and whether offsets need 64 bits."""
    lying = [(layout, lie(tensor, layout)) for tensor, layout in tensors]
    together = all(
        address % 16 == 0 and (layout.rows == 1 or layout.columns % GRANULE == row % GRANULE == 0)
        for layout, (address, row) in lying
    )
    return {
        "GRANULE": GRANULE if together else 1,
        "WIDE": any(layout.rows * row >= NARROW for layout, (_, row) in lying),
    }


def pieces(sizes: Sequence[tuple[int, int]], length: int) -> torch.Tensor:
    """Split segments (row, size) into pieces of `length` entries: int32 (pieces, 2) of (row, index of the piece)."""
    rows, entries = torch.tensor(sizes, dtype=torch.int64, device="cpu").reshape(-1, 2).unbind(1)
    counts = -(-entries // length)
    first = counts.cumsum(0) - counts
    numbers = torch.arange(int(counts.sum()), device="cpu") - first.repeat_interleave(counts)
    return torch.stack([rows.repeat_interleave(counts), numbers], 1).int()
