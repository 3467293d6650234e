"""The three operations on a GPU, with a table of addresses in which each program looks up its piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..masked_weight.triton import signed
from . import tables
from .cuts import Cuts
from .cutting import Cutting
from .pieces import (
    AT_FREE,
    AT_GRAD,
    AT_GROUP,
    AT_OFFSET,
    AT_OUT,
    AT_PRUNED,
    AT_SCORES,
    AT_WEIGHT,
    piece,
    places,
    tensor,
)

if TYPE_CHECKING:
    from . import Segment

BLOCK = 2048  # entries that a program processes together
PIECE = 8192  # entries that a program writes, a multiple of BLOCK
KNOWN = 16  # most sets of gradient addresses in the cache

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class _Batch(NamedTuple):
    """The segments of one launch: their pieces, and the kernel's compile-time options."""

    members: list[tables.Placed]
    pieces: torch.Tensor
    options: dict[str, Any]


class _Gradients(NamedTuple):
    """The gradients of a step: their table of addresses, and the options for reading them in each batch."""

    table: torch.Tensor
    readings: list[dict[str, Any]]


class Operations:
    """Cuts, masked weights and score gradients of the segments of a table."""

    def __init__(self, segments: Sequence[Segment], groups: int) -> None:
        self._placed = tables.placed(segments, groups)
        self._device = segments[0].scores.device
        self._table = self._on_device([one.numbers for one in self._placed])
        self._cutting = Cutting(self._placed, groups, self._device)
        self._writes = [
            batch._replace(options=batch.options | _reading(batch)) for batch in self._batches(with_free=False)
        ]
        self._slopes = self._batches(with_free=True)
        pieces = sum(len(batch.pieces) for batch in self._slopes)
        self._squares = torch.empty(pieces, dtype=torch.float32, device=self._device)
        self._sum = torch.empty((), dtype=torch.float32, device=self._device)
        self._known: dict[tuple[Any, ...], _Gradients] = {}  # by address
        self._captured: list[torch.Tensor] = []  # tables that captured graphs read
        self._owed: list[tuple[torch.Tensor, torch.Tensor]] = []  # (empty table, its future content)

    def cut(self, kept: torch.Tensor) -> Cuts:
        """Find the cut of each group, without a copy to the host."""
        with torch.cuda.device_of(self._table):
            return self._cutting.cut(self._table, kept)

    def write(self, cuts: Cuts) -> None:
        """Write every masked weight, in one launch for each pair of dtypes."""
        with torch.cuda.device_of(self._table):
            for _, pieces, options in self._writes:
                _write[(len(pieces),)](self._table, pieces, cuts.value, cuts.last_tie, **options)

    def slope(self, grads: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> torch.Tensor:
        """Write every score gradient, in one launch per pair of dtypes, and sum their squares in one more."""
        table, readings = self._gradients(grads, out)
        first = 0
        with torch.cuda.device_of(self._table):
            for (_, pieces, options), reading in zip(self._slopes, readings, strict=True):
                squares = self._squares[first:]
                _slope[(len(pieces),)](self._table, table, pieces, squares, **options, **reading)
                first += len(pieces)
            return torch.sum(self._squares, 0, out=self._sum)

    def point(self) -> None:
        """Fill the tables of gradients that captured graphs read."""
        for table, numbers in self._owed:
            table.copy_(numbers)
        self._owed.clear()

    # gradients

    def _gradients(self, grads: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> _Gradients:
        capturing = self._table.is_cuda and torch.cuda.is_current_stream_capturing()
        key = tuple((t.data_ptr(), t.stride()) for t in (*grads, *out))
        found = self._known.get(key)
        if found is None:
            found = self._gradients_at(grads, out, capturing)
            if not capturing:  # while capturing, its table is still empty
                if len(self._known) == KNOWN:
                    self._known.clear()
                self._known[key] = found
        if capturing:
            self._captured.append(found.table)
        return found

    def _gradients_at(self, grads: Sequence[torch.Tensor], out: Sequence[torch.Tensor], capturing: bool) -> _Gradients:
        pairs = [(one.layout, grads[one.place], out[one.place]) for one in self._placed]
        rows = [(*tables.lie(grad, layout), *tables.lie(slope, layout)) for layout, grad, slope in pairs]
        return _Gradients(self._on_device(rows, capturing), [_reading(batch, grads, out) for batch in self._slopes])

    def _on_device(self, rows: Sequence[Sequence[int]], capturing: bool = False) -> torch.Tensor:
        """Copy numbers to the device without synchronising; during a capture they are copied later, by `point`."""
        host = torch.tensor(rows, dtype=torch.int64, device="cpu")
        if capturing:
            table = torch.empty(host.shape, dtype=host.dtype, device=self._device)
            self._owed.append((table, host))
            return table
        if self._device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._device, non_blocking=True)

    # segments by the options of their launch

    def _batches(self, *, with_free: bool) -> list[_Batch]:
        rows: dict[tuple[Any, ...], list[int]] = {}
        for row, (_, segment, _, _) in enumerate(self._placed):
            free = {"FREE": segment.free is not None} if with_free else {}
            options = {"WEIGHT": DTYPES[segment.weight.dtype], "PRUNED": DTYPES[segment.pruned.dtype]} | free
            rows.setdefault(tuple(options.items()), []).append(row)
        return [self._batch(dict(options), of) for options, of in rows.items()]

    def _batch(self, options: dict[str, Any], rows: list[int]) -> _Batch:
        members = [self._placed[row] for row in rows]
        sizes = [(row, one.segment.scores.numel()) for row, one in zip(rows, members, strict=True)]
        pieces = tables.pieces(sizes, PIECE).to(self._device)
        return _Batch(members, pieces, options | {"PIECE": PIECE, "BLOCK": BLOCK})


def _reading(batch: _Batch, *gradients: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the options for reading the tensors of a batch and its gradients."""
    return tables.reading(
        [
            each
            for one in batch.members
            for each in one.lying(
                one.segment.weight, one.segment.scores, one.segment.pruned, one.segment.free,
                *(of[one.place] for of in gradients),
            )
        ]
    )  # fmt: skip


# ---------------------------------------------------------------- masked weights


@triton.jit
def _write(
    table_ptr, pieces_ptr, value_ptr, last_tie_ptr,
    WEIGHT: tl.constexpr, PRUNED: tl.constexpr, PIECE: tl.constexpr, WIDE: tl.constexpr,
    GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one piece of a masked weight."""
    row_ptr, columns, start, stop = piece(table_ptr, pieces_ptr, tl.program_id(0), PIECE, WIDE)
    group = tl.load(row_ptr + AT_GROUP)
    value = tl.load(value_ptr + group)
    last_tie = tl.load(last_tie_ptr + group) - tl.load(row_ptr + AT_OFFSET)
    tensors = (
        tensor(row_ptr, AT_SCORES, tl.float32, WIDE, GRANULE),
        tensor(row_ptr, AT_WEIGHT, WEIGHT, WIDE, GRANULE),
        tensor(row_ptr, AT_PRUNED, PRUNED, WIDE, GRANULE),
    )
    whole = start + (stop - start) // BLOCK * BLOCK
    for at in range(start, whole, BLOCK):
        _write_block(tensors, value, last_tie, at, stop, columns, PRUNED, False, GRANULE, BLOCK)
    if whole < stop:
        _write_block(tensors, value, last_tie, whole, stop, columns, PRUNED, True, GRANULE, BLOCK)


@triton.jit
def _write_block(
    tensors, value, last_tie, at, stop, columns,
    PRUNED: tl.constexpr, MASKED: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the BLOCK entries of a masked weight from `at` up to `stop`."""
    index, row, column = places(at, columns, GRANULE, BLOCK)
    here = index < stop if MASKED else None
    scores, scores_row = tensors[0]
    weight, weight_row = tensors[1]
    pruned, pruned_row = tensors[2]
    magnitude = tl.abs(tl.load(scores + (row * scores_row + column), mask=here))
    kept = (magnitude > value) | ((magnitude == value) & (index <= last_tie))
    entry = tl.load(weight + (row * weight_row + column), mask=here)
    tl.store(pruned + (row * pruned_row + column), tl.where(kept, entry, 0.0).to(PRUNED), mask=here)


# ---------------------------------------------------------------- score gradients


@triton.jit
def _slope(
    table_ptr, gradients_ptr, pieces_ptr, squares_ptr,
    WEIGHT: tl.constexpr, PRUNED: tl.constexpr, FREE: tl.constexpr, PIECE: tl.constexpr, WIDE: tl.constexpr,
    GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one piece of the gradient to scores, and the sum of its squares."""
    program = tl.program_id(0)
    row_ptr, columns, start, stop = piece(table_ptr, pieces_ptr, program, PIECE, WIDE)
    gradients_ptr += tl.load(pieces_ptr + 2 * program.to(tl.int64)) * 4
    tensors = (
        tensor(gradients_ptr, AT_GRAD, PRUNED, WIDE, GRANULE),
        tensor(row_ptr, AT_WEIGHT, WEIGHT, WIDE, GRANULE),
        tensor(row_ptr, AT_SCORES, tl.float32, WIDE, GRANULE),
        tensor(row_ptr, AT_FREE, tl.int8, WIDE, GRANULE),
        tensor(gradients_ptr, AT_OUT, tl.float32, WIDE, GRANULE),
    )
    squares = tl.zeros((BLOCK // GRANULE, GRANULE), tl.float32)
    whole = start + (stop - start) // BLOCK * BLOCK
    for at in range(start, whole, BLOCK):
        squares += _slope_block(tensors, at, stop, columns, FREE, False, GRANULE, BLOCK)
    if whole < stop:
        squares += _slope_block(tensors, whole, stop, columns, FREE, True, GRANULE, BLOCK)
    tl.store(squares_ptr + program, tl.sum(squares))


@triton.jit
def _slope_block(
    tensors, at, stop, columns,
    FREE: tl.constexpr, MASKED: tl.constexpr, GRANULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the BLOCK entries of the gradient to scores from `at` up to `stop`; return their squares, 0 beyond it."""
    index, row, column = places(at, columns, GRANULE, BLOCK)
    here = index < stop if MASKED else None
    grad, grad_row = tensors[0]
    weight, weight_row = tensors[1]
    scores, scores_row = tensors[2]
    free, free_row = tensors[3]
    out, out_row = tensors[4]
    given = tl.load(grad + (row * grad_row + column), mask=here).to(tl.float32)
    entry = tl.load(weight + (row * weight_row + column), mask=here).to(tl.float32)
    slope = signed(given * entry, tl.load(scores + (row * scores_row + column), mask=here))
    if FREE:
        slope = tl.where(tl.load(free + (row * free_row + column), mask=here) != 0, slope, 0.0)
    tl.store(out + (row * out_row + column), slope, mask=here)
    return tl.where(here, slope * slope, 0.0) if MASKED else slope * slope
