"""The masked weight and its gradient, in one pass each.

A mask is read in its own layout: words of bits, each expanded to its entries, or scores, which are compared with a cut
that stays on the device. Words have 32 bits if rows consist of whole words, since narrower loads cannot be prefetched.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd.graph import increment_version

from ..bits import in_words
from ..cut import Cut, Scored

ENTRIES = 4096  # entries that a program of an elementwise kernel reads at a time
WIDE = 128  # most columns of its tile

# ---------------------------------------------------------------- public


def masked_weight(weight: torch.Tensor, mask: torch.Tensor | Scored, out: torch.Tensor | None) -> torch.Tensor:
    """Compute the weight where its mask keeps it, else exactly 0; without gradient."""
    given, *cut = parts_of(mask)
    made = _empty_like(weight) if out is None else out
    tensors = weight.detach(), given.detach(), made.detach()
    _over_matrices(_mask_weight, _as_matrices(tensors), tuple(cut))
    if out is not None:
        increment_version(out)  # autograd does not notice that Triton writes
    return made


def score_gradient(grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Compute grad * weight * sign(score), with sign(0) = 1: float32, of the scores' shape."""
    out = _empty_like(scores)
    _over_matrices(_slope, _as_matrices((grad, weight, scores, out)), ())
    return out


def _as_matrices(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """View vectors and numbers as matrices with one row."""
    return tuple(t if t.dim() > 1 else t.view(1, -1) for t in tensors)


class Mask(NamedTuple):
    """A mask for a kernel: words of bits, uint8 or int32; or scores and their cut."""

    given: torch.Tensor
    value: torch.Tensor | None
    last_tie: torch.Tensor | None


def parts_of(mask: torch.Tensor | Scored) -> Mask:
    """Convert a mask to the tensors that a kernel reads."""
    if isinstance(mask, torch.Tensor):
        return Mask(_words(mask), None, None)
    scores, cut = mask
    assert isinstance(cut, Cut)
    return Mask(scores, *cut.tensors(scores.device))


def _words(bits: torch.Tensor) -> torch.Tensor:
    """View bits as 32-bit words if their layout allows it, else as bytes."""
    return bits.view(torch.int32) if in_words(bits) else bits


#: Bits per word; 0 stands for scores.
WORDS = {torch.uint8: 8, torch.int32: 32, torch.float32: 0}


# ---------------------------------------------------------------- launchers


def _over_matrices(kernel: Any, tensors: tuple[torch.Tensor, ...], cut: tuple[Any, ...]) -> None:
    """Run an elementwise kernel over the matrices (..., rows, columns) of tensors; the last one is the output."""
    out = tensors[-1]
    if not out.numel():
        return
    extra = {} if kernel is _slope else {"WORD": WORDS[tensors[1].dtype]}
    one = None if extra.get("WORD") else _as_one(tensors)
    stacked = one or [t.reshape(-1, *t.shape[-2:]) for t in tensors]
    strides = [s for t in stacked for s in t.stride()]
    matrices, rows, columns = stacked[-1].shape
    shape = _block(columns)
    grid = (triton.cdiv(rows, shape["ROWS"]) * triton.cdiv(columns, shape["COLUMNS"]) * matrices,)
    with torch.cuda.device_of(out):
        kernel[grid](*stacked, *cut, rows, columns, *strides, **shape, **extra)
    if stacked[-1].data_ptr() != out.data_ptr():  # the memory of out is no stack of matrices
        out.copy_(stacked[-1].reshape(out.shape))


def _as_one(tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor] | None:
    """View tensors of one shape as one matrix (1, rows, columns) each, with entries in the same order.

    Rows are joined if there are few columns: a convolution's kernels would be small matrices. Returns None if the
    layout of a tensor does not allow it.
    """
    shape = tensors[0].shape
    first = next((axis for axis in range(len(shape) - 1, 1, -1) if shape[axis:].numel() >= WIDE), 1)
    try:
        return [t.view(1, shape[:first].numel(), shape[first:].numel()) for t in tensors]
    except RuntimeError:
        return None


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """Allocate an output with the tensor's layout; contiguous if its stack of matrices has several axes."""
    layout = torch.preserve_format if tensor.dim() <= 3 else torch.contiguous_format
    return torch.empty_like(tensor, memory_format=layout)


def _block(columns: int) -> dict[str, int]:
    """Return the tile of an elementwise kernel: as wide as the matrix, but from 32 to WIDE columns."""
    wide = min(max(triton.next_power_of_2(columns), 32), WIDE)
    return {"ROWS": ENTRIES // wide, "COLUMNS": wide}


# ---------------------------------------------------------------- tiles of a mask


@triton.jit
def kept_tile(
    mask_ptr, value, last_tie, row, column, first, rows, columns, total, stride_row, stride_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Return the mask, bool (ROWS, COLUMNS), of the tile that begins at (row, column); False outside of the matrix.

    first: index of the matrix's first row among all rows of the stack; total: columns of a whole row.
    """
    down = row + tl.arange(0, ROWS)
    if WORD:
        word = column // WORD + tl.arange(0, COLUMNS // WORD)
        here = (down < rows)[:, None] & (word < tl.cdiv(columns, WORD))[None, :]
        given = mask_ptr + down.to(tl.int64)[:, None] * stride_row + word.to(tl.int64)[None, :] * stride_column
        words = tl.load(given, mask=here, other=0)
        bits = (words[:, :, None] >> tl.arange(0, WORD).to(words.dtype)[None, None, :]) & 1
        kept = tl.reshape(bits, (ROWS, COLUMNS)) != 0
    else:
        across = column + tl.arange(0, COLUMNS)
        here = (down < rows)[:, None] & (across < columns)[None, :]
        given = mask_ptr + down.to(tl.int64)[:, None] * stride_row + across.to(tl.int64)[None, :] * stride_column
        magnitude = tl.abs(tl.load(given, mask=here, other=0.0))
        # the last column of each row whose ties are kept
        tie_row, tie_column = last_tie // total, (last_tie % total).to(tl.int32)
        last = tl.where(first + down < tie_row, total, tl.where(first + down == tie_row, tie_column, -1))
        kept = (magnitude > value) | ((magnitude == value) & (across[None, :] <= last[:, None]))
    return kept


@triton.jit
def cut_of(value_ptr, last_tie_ptr, WORD: tl.constexpr):
    """Load (value, last_tie) of scores; both are unused for bits."""
    if WORD:
        value, last_tie = 0.0, 0
    else:
        value, last_tie = tl.load(value_ptr), tl.load(last_tie_ptr)
    return value, last_tie


# ---------------------------------------------------------------- elementwise kernels


@triton.jit
def _mask_weight(
    weight_ptr, mask_ptr, out_ptr, value_ptr, last_tie_ptr, rows, columns,
    weight_stack, weight_row, weight_column, mask_stack, mask_row, mask_column, out_stack, out_row, out_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Write one tile of the masked weight."""
    matrix, row, column = _tile_of(rows, columns, ROWS, COLUMNS)
    value, last_tie = cut_of(value_ptr, last_tie_ptr, WORD)
    kept = kept_tile(
        mask_ptr + matrix * mask_stack, value, last_tie, row, column, matrix * rows, rows, columns, columns,
        mask_row, mask_column, ROWS, COLUMNS, WORD,
    )  # fmt: skip
    down, across = at_tile(row, column, ROWS, COLUMNS)
    here = (down < rows) & (across < columns)
    weight = tl.load(weight_ptr + matrix * weight_stack + down * weight_row + across * weight_column, mask=here)
    out = out_ptr + matrix * out_stack + down * out_row + across * out_column
    tl.store(out, tl.where(kept, weight, 0.0), mask=here)


@triton.jit
def _slope(
    grad_ptr, weight_ptr, scores_ptr, out_ptr, rows, columns,
    grad_stack, grad_row, grad_column, weight_stack, weight_row, weight_column,
    scores_stack, scores_row, scores_column, out_stack, out_row, out_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write one tile of the gradient to the scores: grad * weight * sign(score), with sign(0) = 1."""
    matrix, row, column = _tile_of(rows, columns, ROWS, COLUMNS)
    down, across = at_tile(row, column, ROWS, COLUMNS)
    here = (down < rows) & (across < columns)
    grad = tl.load(grad_ptr + matrix * grad_stack + down * grad_row + across * grad_column, mask=here)
    weight = tl.load(weight_ptr + matrix * weight_stack + down * weight_row + across * weight_column, mask=here)
    scores = tl.load(scores_ptr + matrix * scores_stack + down * scores_row + across * scores_column, mask=here)
    out = out_ptr + matrix * out_stack + down * out_row + across * out_column
    tl.store(out, signed(grad.to(tl.float32) * weight.to(tl.float32), scores), mask=here)


@triton.jit
def _tile_of(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return (matrix of the stack, first row, first column) of a program's tile, from the first axis of the grid."""
    across = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * across
    tile = tl.program_id(0) % tiles
    return (tl.program_id(0) // tiles).to(tl.int64), tile // across * ROWS, tile % across * COLUMNS


@triton.jit
def signed(slope, scores):
    """Multiply the slope by sign(score), with sign(0) = 1."""
    return tl.where(scores < 0, -slope, slope)


@triton.jit
def at_tile(row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return rows (ROWS, 1) and columns (1, COLUMNS) of a tile as 64-bit offsets."""
    down, across = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    return down.to(tl.int64)[:, None], across.to(tl.int64)[None, :]
