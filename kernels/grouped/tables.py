"""What the kernels read of segments: a row of numbers each, and lists of pieces that programs work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .layout import Layout, layout_of
from .reference import offsets

if TYPE_CHECKING:
    from . import Segment

GRANULE = 4  # entries that lie in one row and are read together, 16 bytes of float32, where all tensors allow it
NARROW = 1 << 30  # entries from which on 64 bits count them: 31 would do for places, yet not for one piece beyond

#: Of a segment, as int64: columns and size; its group and the index in it of its first score; of each tensor the
#: address and the entries from row to row (0 without `free`).
FIELDS = ("columns", "size", "group", "offset", "scores", "scores_row", "weight", "weight_row", "pruned", "pruned_row",
          "free", "free_row")  # fmt: skip


class Placed(NamedTuple):
    """A segment with scores: its place among those that a table was given, its layout, its row of numbers."""

    place: int
    segment: Segment
    layout: Layout
    numbers: list[int]

    def lying(self, *tensors: torch.Tensor | None) -> list[tuple[torch.Tensor, Layout]]:
        """Tensors that lie as the segment does, those that there are."""
        return [(tensor, self.layout) for tensor in tensors if tensor is not None]


def placed(segments: Sequence[Segment], groups: int) -> list[Placed]:
    """The segments that have scores, group by group."""
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
    """(address, entries from row to row) of a tensor."""
    stride = layout.row_stride(tensor)
    assert stride is not None
    return tensor.data_ptr(), stride


def reading(tensors: Sequence[tuple[torch.Tensor, Layout]]) -> dict[str, Any]:
    """How programs read these tensors: how many entries together, and whether their places take 64 bits."""
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
    """(row, size) of segments -> int32 (pieces, 2): (row, number of the piece in it), pieces of so many entries."""
    rows, entries = torch.tensor(sizes, dtype=torch.int64, device="cpu").reshape(-1, 2).unbind(1)
    counts = -(-entries // length)
    first = counts.cumsum(0) - counts
    numbers = torch.arange(int(counts.sum()), device="cpu") - first.repeat_interleave(counts)
    return torch.stack([rows.repeat_interleave(counts), numbers], 1).int()
