# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, type-arg, misc"
"""The piece of a segment that a program works on, and the addresses of its entries in each tensor."""

from __future__ import annotations

import triton
import triton.language as tl

from . import tables

_FIELDS = tl.constexpr(len(tables.FIELDS))
AT_COLUMNS, AT_SIZE, AT_GROUP, AT_OFFSET, AT_SCORES, AT_WEIGHT, AT_PRUNED, AT_FREE = (
    tl.constexpr(tables.FIELDS.index(name))
    for name in ("columns", "size", "group", "offset", "scores", "weight", "pruned", "free")
)
AT_GRAD, AT_OUT = tl.constexpr(0), tl.constexpr(2)  # of a step's gradients: address and row of each


@triton.jit
def piece(table_ptr, pieces_ptr, piece, length, WIDE: tl.constexpr):
    """Return (the table row of a piece's segment, its columns, begin and end of the piece); WIDE: in 64 bits."""
    pieces_ptr += 2 * piece.to(tl.int64)
    row_ptr = table_ptr + tl.load(pieces_ptr).to(tl.int64) * _FIELDS
    start = as_index(tl.load(pieces_ptr + 1), WIDE) * length
    size = as_index(tl.load(row_ptr + AT_SIZE), WIDE)
    return row_ptr, as_index(tl.load(row_ptr + AT_COLUMNS), WIDE), start, tl.minimum(start + length, size)


@triton.jit
def as_index(number, WIDE: tl.constexpr):
    """Convert a number of entries to 64 bits if WIDE, else to 32."""
    return number.to(tl.int64 if WIDE else tl.int32)


@triton.jit
def tensor(row_ptr, TENSOR: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr, GRANULE: tl.constexpr):
    """Return (pointer, row stride in entries) of a tensor in a row of a table."""
    pointer = tl.load(row_ptr + TENSOR).to(tl.pointer_type(DTYPE))
    stride = as_index(tl.load(row_ptr + TENSOR + 1), WIDE)
    if GRANULE > 1:
        pointer = tl.multiple_of(pointer, 16)
    return pointer, stride // GRANULE * GRANULE  # tells the compiler that it is a multiple of GRANULE


@triton.jit
def places(at, columns, GRANULE: tl.constexpr, BLOCK: tl.constexpr):
    """Return (index, row, column) in their segment of the BLOCK entries from `at`: (BLOCK // GRANULE, GRANULE).

    The entries of a granule are in one row, whose number is computed once per granule.
    """
    granule = at // GRANULE + tl.arange(0, BLOCK // GRANULE)
    across = tl.cdiv(columns, GRANULE)
    row = granule // across
    column = (granule - row * across) * GRANULE
    within = tl.arange(0, GRANULE)[None, :]
    return (granule * GRANULE)[:, None] + within, row[:, None], column[:, None] + within
