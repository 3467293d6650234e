"""Products with a masked weight that exists only in registers.

The product is computed transposed, y^T = (W . M) x^T, since tensor cores can take their first operand from registers,
where the mask is applied; the second operand would have to go back to shared memory. dx^T = (W . M)^T dy^T is the same
product with the transposed tile. The gradient to the scores, (dy^T x) . W sign(S), is multiplied by the weight before
it is written. Few tokens have too few tiles for all processors; the inputs are then split into parts, whose float32
sums a second kernel adds up in a fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..cut import Scored
from ..masked_weight.triton import ENTRIES, WORDS, Mask, at_tile, cut_of, kept_tile, parts_of, signed


class Tile(NamedTuple):
    """A program's output tile: `rows` of the weight by `columns` (tokens, or weight columns), in steps of `depth`."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


PROGRAMS = 132  # programs that keep every multiprocessor of an H100 busy
FEW = 64  # most tokens of a product that is split into parts
#: The largest first; the first that gives PROGRAMS tiles is used, else the last.
TILES = {
    2: (Tile(128, 128, 64, 8, 3), Tile(64, 128, 64, 4, 3), Tile(64, 64, 64, 4, 4)),
    4: (Tile(64, 64, 32, 4, 2), Tile(32, 32, 32, 4, 2)),
}  # by bytes per entry
TILES_FEW = {
    2: (Tile(64, 16, 64, 4, 4), Tile(64, 32, 64, 4, 4), Tile(64, 64, 64, 4, 4)),
    4: (Tile(32, 16, 32, 4, 2), Tile(32, 32, 32, 4, 2)),
}  # by bytes per entry, the narrowest first
GROUP = 8  # row tiles whose programs run in sequence, so that their inputs are in the cache


def masked_linear(
    x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor | Scored, bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply x (..., in) by the transposed masked weight (out, in); differentiable in x, the scores and the bias."""
    tokens = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    y: torch.Tensor = _MaskedLinear.apply(tokens, weight.detach(), *parts_of(mask), bias)
    return y.reshape(*x.shape[:-1], weight.shape[0])


class _MaskedLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        mask, bias = Mask(*rest[:3]), rest[3]
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, weight, *mask)
        return _product(x, weight, mask, bias, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, *rest = ctx.saved_tensors
        mask = Mask(*rest)
        wanted = ctx.needs_input_grad
        grad_x = _product(grad, weight, mask, None, transposed=True) if wanted[0] else None
        grad_scores = _score_gradient(grad, x, weight, mask.given) if wanted[2] else None
        grad_bias = grad.sum(0) if wanted[5] else None
        return grad_x, None, grad_scores, None, None, grad_bias


# ---------------------------------------------------------------- launchers


def _product(
    x: torch.Tensor, weight: torch.Tensor, mask: Mask, bias: torch.Tensor | None, *, transposed: bool
) -> torch.Tensor:
    """Compute x (tokens, inner) (W . M)^T + bias in x's dtype; transposed: with W . M instead of its transpose."""
    tokens, inner = x.shape
    rows = weight.shape[1 if transposed else 0]
    y = torch.empty((tokens, rows), dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    tile = _tile(tokens, rows, x.element_size())
    parts, length = _split(tokens, rows, inner, tile)
    out = y if parts == 1 else torch.empty((parts, tokens, rows), dtype=torch.float32, device=x.device)
    tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(tokens, tile.columns)
    with torch.cuda.device_of(x):
        _multiply[(tiles, parts)](
            weight, *mask, x, bias if parts == 1 else None, out, rows, tokens, inner, length, weight.shape[1],
            *weight.stride(), *mask.given.stride(), *x.stride(), tokens * rows,
            **_constants(tile, mask.given.dtype, transposed), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if parts > 1:
            entries = tokens * rows
            grid = (triton.cdiv(entries, ENTRIES // 4),)
            _add_up[grid](out, bias, y, entries, rows, parts, BLOCK=ENTRIES // 4)
    return y


def _score_gradient(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Compute (grad^T x) . W sign(S), float32 (out, in), from grad (tokens, out) and x (tokens, in)."""
    rows, columns = weight.shape
    out = torch.empty_like(scores)
    if not out.numel():
        return out
    tile = _largest(rows, columns, x.element_size())
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),)
    with torch.cuda.device_of(x):
        _multiply_slope[grid](
            grad, x, weight, scores, out, rows, columns, x.shape[0],
            *grad.stride(), *x.stride(), *weight.stride(), *scores.stride(), *out.stride(),
            **_sizes(tile), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


def _tile(tokens: int, rows: int, size: int) -> Tile:
    """Choose the tile of a product for this many tokens and entries of `size` bytes."""
    if tokens > FEW:
        return _largest(rows, tokens, size)
    return next((tile for tile in TILES_FEW[size] if tokens <= tile.columns), TILES_FEW[size][-1])


def _largest(rows: int, columns: int, size: int) -> Tile:
    tiles = TILES[size]
    enough = (t for t in tiles if triton.cdiv(rows, t.rows) * triton.cdiv(columns, t.columns) >= PROGRAMS)
    return next(enough, tiles[-1])


def _split(tokens: int, rows: int, inner: int, tile: Tile) -> tuple[int, int]:
    """Return (parts of the inputs, inputs per part except the last); each part has at least two steps of the loop."""
    steps = triton.cdiv(inner, tile.depth)
    if tokens > FEW or steps < 4:
        return 1, max(inner, 1)
    tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(tokens, tile.columns)
    parts = min(max(2 * PROGRAMS // tiles, 1), steps // 2)
    length = triton.cdiv(steps, parts) * tile.depth
    return triton.cdiv(inner, length), length


def _constants(tile: Tile, mask: torch.dtype, transposed: bool) -> dict[str, Any]:
    return _sizes(tile) | {"WORD": WORDS[mask], "TRANSPOSED": transposed}


def _sizes(tile: Tile) -> dict[str, int]:
    return {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "GROUP": GROUP}


# ---------------------------------------------------------------- kernels


@triton.jit
def _add_up(parts_ptr, bias_ptr, out_ptr, entries, rows, parts, BLOCK: tl.constexpr):
    """Write the sum of the parts of a product, in their order, and the bias."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < entries
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(parts):
        total += tl.load(parts_ptr + at, mask=here, other=0.0)
        parts_ptr += entries
    if bias_ptr is not None:
        total += tl.load(bias_ptr + at % rows, mask=here, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total, mask=here)


# ---------------------------------------------------------------- products


@triton.jit
def _multiply(
    weight_ptr, mask_ptr, value_ptr, last_tie_ptr, x_ptr, bias_ptr, out_ptr, rows, tokens, inner, length, total,
    weight_row, weight_column, mask_row, mask_column, x_token, x_inner, out_part,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    WORD: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Write one tile of (W . M) x^T, or of (W . M)^T x^T, over one part of the inputs, to (tokens, rows).

    rows: rows of the product, which are the weight's columns if TRANSPOSED; total: columns of the weight.
    """
    row, token = _place(rows, tokens, ROWS, COLUMNS, GROUP)
    part = tl.program_id(1)
    end = tl.minimum(part * length + length, inner)
    value, last_tie = cut_of(value_ptr, last_tie_ptr, WORD)
    tokens_at = token + tl.arange(0, COLUMNS)
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(part * length, end, DEPTH):
        if TRANSPOSED:
            a = tl.trans(
                _masked(weight_ptr, mask_ptr, value, last_tie, begin, row, end, rows, total,
                        weight_row, weight_column, mask_row, mask_column, DEPTH, ROWS, WORD)
            )  # fmt: skip
        else:
            a = _masked(weight_ptr, mask_ptr, value, last_tie, row, begin, rows, end, total,
                        weight_row, weight_column, mask_row, mask_column, ROWS, DEPTH, WORD)  # fmt: skip
        inner_at = begin + tl.arange(0, DEPTH)
        x = tl.load(
            x_ptr + inner_at.to(tl.int64)[:, None] * x_inner + tokens_at.to(tl.int64)[None, :] * x_token,
            mask=(inner_at < end)[:, None] & (tokens_at < tokens)[None, :],
            other=0.0,
        )  # (DEPTH, COLUMNS)
        result = tl.dot(a, x, result, input_precision="ieee")
    rows_at = row + tl.arange(0, ROWS)
    if bias_ptr is not None:
        result += tl.load(bias_ptr + rows_at, mask=rows_at < rows, other=0.0).to(tl.float32)[:, None]
    out = out_ptr + part.to(tl.int64) * out_part + tokens_at.to(tl.int64)[None, :] * rows + rows_at[:, None]
    tl.store(out, result, mask=(rows_at < rows)[:, None] & (tokens_at < tokens)[None, :])


@triton.jit
def _masked(
    weight_ptr, mask_ptr, value, last_tie, row, column, rows, columns, total,
    weight_row, weight_column, mask_row, mask_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Load one tile of the masked weight, not transposed."""
    kept = kept_tile(
        mask_ptr, value, last_tie, row, column, 0, rows, columns, total, mask_row, mask_column, ROWS, COLUMNS, WORD
    )
    down, across = at_tile(row, column, ROWS, COLUMNS)
    here = (down < rows) & (across < columns)
    weight = tl.load(weight_ptr + down * weight_row + across * weight_column, mask=here, other=0.0)
    return tl.where(kept, weight, tl.zeros_like(weight))


@triton.jit
def _multiply_slope(
    grad_ptr, x_ptr, weight_ptr, scores_ptr, out_ptr, rows, columns, tokens,
    grad_token, grad_row, x_token, x_column, weight_row, weight_column, scores_row, scores_column, out_row, out_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write one tile of (grad^T x) . W sign(S)."""
    row, column = _place(rows, columns, ROWS, COLUMNS, GROUP)
    rows_at, columns_at = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, tokens, DEPTH):
        tokens_at = begin + tl.arange(0, DEPTH)
        token = tokens_at.to(tl.int64)
        grad = tl.load(
            grad_ptr + token[None, :] * grad_token + rows_at.to(tl.int64)[:, None] * grad_row,
            mask=(rows_at < rows)[:, None] & (tokens_at < tokens)[None, :],
            other=0.0,
        )  # (ROWS, DEPTH)
        x = tl.load(
            x_ptr + token[:, None] * x_token + columns_at.to(tl.int64)[None, :] * x_column,
            mask=(tokens_at < tokens)[:, None] & (columns_at < columns)[None, :],
            other=0.0,
        )  # (DEPTH, COLUMNS)
        result = tl.dot(grad, x, result, input_precision="ieee")
    down, across = at_tile(row, column, ROWS, COLUMNS)
    here = (down < rows) & (across < columns)
    weight = tl.load(weight_ptr + down * weight_row + across * weight_column, mask=here)
    scores = tl.load(scores_ptr + down * scores_row + across * scores_column, mask=here)
    out = out_ptr + down * out_row + across * out_column
    tl.store(out, signed(result * weight.to(tl.float32), scores), mask=here)


@triton.jit
def _place(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Return (first row, first column) of a program's tile: GROUP tiles down, then the next column."""
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    high = tl.minimum(down - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * across)
    return (group * GROUP + within % high) * ROWS, within // high * COLUMNS
