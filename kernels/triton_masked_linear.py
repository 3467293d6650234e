# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, type-arg"
"""Products with a masked weight whose masked copy exists in registers alone, and the masked weight in one pass.

The product is made transposed, y^T = (W . M) x^T: tensor cores take their first operand from registers, where the mask
can be applied to it on its way; on the second it would have to go back to shared memory. dx^T = (W . M)^T dy^T is the
same product of the transposed tile, and the gradient to the scores, (dy^T x) . W sign(S), multiplies by the weight
before it writes. Where tokens are few there are not enough tiles for all processors: the inputs are then cut into parts
whose sums, float32, a second kernel adds up in their order.

A mask is read as it lies: bits in words, each spread over its entries, of 32 bits where rows are whole ones, since what
is narrower cannot be fetched ahead of its use; or scores, against a threshold that stays on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from .bits import in_words
from .offline import Case
from .shapes import Scored, Threshold


class Tile(NamedTuple):
    """What one program makes: `rows` of the weight by `columns` (tokens, or the weight's own), `depth` at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


PROGRAMS = 132  # that keep every processor of an H100 busy
FEW = 64  # tokens up to which a product is cut into parts
#: the largest first; one is taken that makes PROGRAMS tiles, else the last
TILES = {
    2: (Tile(128, 128, 64, 8, 3), Tile(64, 128, 64, 4, 3), Tile(64, 64, 64, 4, 4)),
    4: (Tile(64, 64, 32, 4, 2), Tile(32, 32, 32, 4, 2)),
}  # by bytes of an entry
TILES_FEW = {
    2: (Tile(64, 16, 64, 4, 4), Tile(64, 32, 64, 4, 4), Tile(64, 64, 64, 4, 4)),
    4: (Tile(32, 16, 32, 4, 2), Tile(32, 32, 32, 4, 2)),
}  # by bytes of an entry, the narrowest first
ENTRIES = 4096  # that a program of an elementwise kernel reads at a time
WIDE = 128  # columns of its tile, where there are as many
GROUP = 8  # tiles of rows whose programs run one after the other, so that they find each other's inputs in the cache

# ---------------------------------------------------------------- public


def masked_weight(weight: torch.Tensor, mask: torch.Tensor | Scored, out: torch.Tensor | None) -> torch.Tensor:
    """The weight (..., rows, columns) where its mask keeps it, else exactly 0; differentiable in the scores.

    Written into out where that is given, without gradients.
    """
    given, *threshold = _parts_of(mask)
    if out is None:
        made: torch.Tensor = _MaskedWeight.apply(weight.detach(), given, *threshold)
        return made
    _over_matrices(_mask_weight, (weight.detach(), given.detach(), out.detach()), tuple(threshold))
    increment_version(out)  # Triton's writing is not seen by autograd
    return out


def score_gradient(grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Grad * weight with the score's sign, + for a score of 0: float32, of the scores' shape (..., rows, columns)."""
    out = _empty_like(scores)
    _over_matrices(_slope, (grad, weight, scores, out), ())
    return out


def masked_linear(
    x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor | Scored, bias: torch.Tensor | None
) -> torch.Tensor:
    """X (..., in) times the masked weight (out, in), transposed; differentiable in x, the scores and the bias."""
    tokens = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    y: torch.Tensor = _MaskedLinear.apply(tokens, weight.detach(), *_parts_of(mask), bias)
    return y.reshape(*x.shape[:-1], weight.shape[0])


class _Mask(NamedTuple):
    """Words of bits, uint8 or int32; or scores and their threshold."""

    given: torch.Tensor
    value: torch.Tensor | None
    last_tie: torch.Tensor | None


def _parts_of(mask: torch.Tensor | Scored) -> _Mask:
    if isinstance(mask, torch.Tensor):
        return _Mask(_words(mask), None, None)
    scores, threshold = mask
    assert isinstance(threshold, Threshold)
    return _Mask(scores, *threshold)


def _words(bits: torch.Tensor) -> torch.Tensor:
    """The same bits, 32 to a word where they lie so, else 8."""
    return bits.view(torch.int32) if in_words(bits) else bits


#: bits of a word, 0 for scores
WORDS = {torch.uint8: 8, torch.int32: 32, torch.float32: 0}


class _MaskedWeight(Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, *mask: Any) -> torch.Tensor:
        ctx.save_for_backward(weight, mask[0])
        out = _empty_like(weight)
        _over_matrices(_mask_weight, (weight, mask[0], out), mask[1:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.needs_input_grad[1]:
            return (None,) * 4
        return None, score_gradient(grad, *ctx.saved_tensors), None, None


class _MaskedLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        mask, bias = _Mask(*rest[:3]), rest[3]
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, weight, *mask)
        return _product(x, weight, mask, bias, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, *rest = ctx.saved_tensors
        mask = _Mask(*rest)
        wanted = ctx.needs_input_grad
        grad_x = _product(grad, weight, mask, None, transposed=True) if wanted[0] else None
        grad_scores = _score_gradient(grad, x, weight, mask.given) if wanted[2] else None
        grad_bias = grad.sum(0) if wanted[5] else None
        return grad_x, None, grad_scores, None, None, grad_bias


# ---------------------------------------------------------------- launchers


def _product(
    x: torch.Tensor, weight: torch.Tensor, mask: _Mask, bias: torch.Tensor | None, *, transposed: bool
) -> torch.Tensor:
    """X (tokens, inner) (W . M)^T + bias, or without the transposition, of x's dtype."""
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
    """(grad^T x) . W sign(S): float32 (out, in) of grad (tokens, out) and x (tokens, in)."""
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
    """For a product of so many tokens, of entries of `size` bytes."""
    if tokens > FEW:
        return _largest(rows, tokens, size)
    return next((tile for tile in TILES_FEW[size] if tokens <= tile.columns), TILES_FEW[size][-1])


def _largest(rows: int, columns: int, size: int) -> Tile:
    tiles = TILES[size]
    enough = (t for t in tiles if triton.cdiv(rows, t.rows) * triton.cdiv(columns, t.columns) >= PROGRAMS)
    return next(enough, tiles[-1])


def _split(tokens: int, rows: int, inner: int, tile: Tile) -> tuple[int, int]:
    """(parts that the inputs are cut into, inputs of each but the last): at least two steps of the loop each."""
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


def _over_matrices(kernel: Any, tensors: tuple[torch.Tensor, ...], threshold: tuple[Any, ...]) -> None:
    """Run an elementwise kernel over the matrices (..., rows, columns) of tensors whose last is written to."""
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
        kernel[grid](*stacked, *threshold, rows, columns, *strides, **shape, **extra)
    if stacked[-1].data_ptr() != out.data_ptr():  # its memory is no stack of matrices
        out.copy_(stacked[-1].reshape(out.shape))


def _as_one(tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor] | None:
    """Tensors of one shape, each as one matrix (1, rows, columns) with entries in the same order: of few columns more.

    A convolution's kernels would make small matrices. None where a tensor's memory does not allow it.
    """
    shape = tensors[0].shape
    first = next((axis for axis in range(len(shape) - 1, 1, -1) if shape[axis:].numel() >= WIDE), 1)
    try:
        return [t.view(1, shape[:first].numel(), shape[first:].numel()) for t in tensors]
    except RuntimeError:
        return None


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """To be written to, laid out like the tensor; contiguous where its stack of matrices has several axes."""
    layout = torch.preserve_format if tensor.dim() <= 3 else torch.contiguous_format
    return torch.empty_like(tensor, memory_format=layout)


def _block(columns: int) -> dict[str, int]:
    """The tile of an elementwise kernel: as wide as the matrix, from a word to WIDE columns."""
    wide = min(max(triton.next_power_of_2(columns), 32), WIDE)
    return {"ROWS": ENTRIES // wide, "COLUMNS": wide}


# ---------------------------------------------------------------- what a tile of a mask keeps


@triton.jit
def _kept(
    mask_ptr, value, last_tie, row, column, first, rows, columns, total, stride_row, stride_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Bool (ROWS, COLUMNS): what is kept of the tile that begins at a row and column, nothing beyond rows and columns.

    first: the index, among all rows of a stack of matrices, of the matrix's first; total: the columns of a whole row.
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
        # up to which column a row's ties are kept
        tie_row, tie_column = last_tie // total, (last_tie % total).to(tl.int32)
        last = tl.where(first + down < tie_row, total, tl.where(first + down == tie_row, tie_column, -1))
        kept = (magnitude > value) | ((magnitude == value) & (across[None, :] <= last[:, None]))
    return kept


@triton.jit
def _threshold(value_ptr, last_tie_ptr, WORD: tl.constexpr):
    """(value, last_tie) of scores; what bits have no use for."""
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
    value, last_tie = _threshold(value_ptr, last_tie_ptr, WORD)
    kept = _kept(
        mask_ptr + matrix * mask_stack, value, last_tie, row, column, matrix * rows, rows, columns, columns,
        mask_row, mask_column, ROWS, COLUMNS, WORD,
    )  # fmt: skip
    down, across = _at(row, column, ROWS, COLUMNS)
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
    """Write one tile of the gradient to the scores: grad * weight with the score's sign, + for a score of 0."""
    matrix, row, column = _tile_of(rows, columns, ROWS, COLUMNS)
    down, across = _at(row, column, ROWS, COLUMNS)
    here = (down < rows) & (across < columns)
    grad = tl.load(grad_ptr + matrix * grad_stack + down * grad_row + across * grad_column, mask=here)
    weight = tl.load(weight_ptr + matrix * weight_stack + down * weight_row + across * weight_column, mask=here)
    scores = tl.load(scores_ptr + matrix * scores_stack + down * scores_row + across * scores_column, mask=here)
    out = out_ptr + matrix * out_stack + down * out_row + across * out_column
    tl.store(out, _signed(grad.to(tl.float32) * weight.to(tl.float32), scores), mask=here)


@triton.jit
def _tile_of(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(matrix of the stack, first row, first column) of a program's tile; all in one axis of the grid, the long one."""
    across = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * across
    tile = tl.program_id(0) % tiles
    return (tl.program_id(0) // tiles).to(tl.int64), tile // across * ROWS, tile % across * COLUMNS


@triton.jit
def _signed(slope, scores):
    return tl.where(scores < 0, -slope, slope)


@triton.jit
def _at(row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows (ROWS, 1) and columns (1, COLUMNS) of a tile, 64 bits wide for offsets."""
    down, across = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    return down.to(tl.int64)[:, None], across.to(tl.int64)[None, :]


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

    rows: of the product, which are the weight's columns where TRANSPOSED; total: columns of the weight.
    """
    row, token = _place(rows, tokens, ROWS, COLUMNS, GROUP)
    part = tl.program_id(1)
    end = tl.minimum(part * length + length, inner)
    value, last_tie = _threshold(value_ptr, last_tie_ptr, WORD)
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
    """One tile of the masked weight, as it lies."""
    kept = _kept(
        mask_ptr, value, last_tie, row, column, 0, rows, columns, total, mask_row, mask_column, ROWS, COLUMNS, WORD
    )
    down, across = _at(row, column, ROWS, COLUMNS)
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
    down, across = _at(row, column, ROWS, COLUMNS)
    here = (down < rows) & (across < columns)
    weight = tl.load(weight_ptr + down * weight_row + across * weight_column, mask=here)
    scores = tl.load(scores_ptr + down * scores_row + across * scores_column, mask=here)
    out = out_ptr + down * out_row + across * out_column
    tl.store(out, _signed(result * weight.to(tl.float32), scores), mask=here)


@triton.jit
def _place(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """(first row, first column) of a program's tile: GROUP tiles down before the next column."""
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    high = tl.minimum(down - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * across)
    return (group * GROUP + within % high) * ROWS, within // high * COLUMNS


# ---------------------------------------------------------------- offline


def offline_cases() -> list[Case]:
    """The kernels as they are launched over contiguous tensors whose sizes are multiples of 16."""
    return list(_offline_cases())


_POINTERS = {"value_ptr": "*fp32", "last_tie_ptr": "*i64", "scores_ptr": "*fp32"}


def _case(
    name: str,
    kernel: Any,
    types: Mapping[str, str],
    constants: dict[str, Any],
    warps: int = 4,
    stages: int = 3,
    spills: int = 0,
) -> Case:
    """A case whose arguments that are not named are 32-bit sizes."""
    free = [key for key in kernel.arg_names if key not in constants]
    types = {key: types.get(key, _POINTERS.get(key, "i32")) for key in free}
    odd = {"parts", "value_ptr", "last_tie_ptr"} | ({"mask_row"} if types.get("mask_ptr") == "*i32" else set())
    aligned = tuple(key for key in free if key not in odd)  # a row of 768 has 24 words
    products = kernel in (_multiply, _multiply_slope) and types["weight_ptr"] != "*fp32"
    return Case(name, kernel, types, constants, warps, stages, spills, aligned, products)


def _offline_cases() -> Iterator[Case]:
    """The largest tile's every product; of others y by bits, as in serving, and dx by scores, as in training."""
    for dtype, size, tiles in (
        ("bf16", 2, dict.fromkeys((*TILES[2], *TILES_FEW[2]))),  # without repetition
        ("fp16", 2, TILES[2][1:2]),
        ("fp32", 4, TILES[4][:1]),
    ):
        pointers = dict.fromkeys(("weight_ptr", "x_ptr", "grad_ptr", "bias_ptr", "out_ptr"), f"*{dtype}")
        for tile in tiles:
            launch = tile.warps, tile.stages
            name = f"{dtype} {tile.rows}x{tile.columns}x{tile.depth}"
            for mask, types, constants in _offline_masks(pointers):
                constants = constants | _sizes(tile) | {"x_inner": 1}
                if tile not in TILES[size]:  # few tokens, in parts
                    types, constants = types | {"out_ptr": "*fp32"}, constants | {"bias_ptr": None}
                for output, extra in (
                    ("y", {"TRANSPOSED": False}),
                    ("dx", {"TRANSPOSED": True, "bias_ptr": None}),
                ):
                    if mask == "bytes" or (tile != TILES[size][0] and (output == "y") != (mask == "bits")):
                        continue
                    # without tensor cores, dx of the larger tile by bits: 4 on 3.7.1, none on 3.6.0 and 3.9.0
                    spills = 8 if (dtype, output, tile) == ("fp32", "dx", TILES[4][0]) else 0
                    full = f"masked_linear {output} {mask} {name}"
                    yield _case(full, _multiply, types, constants | extra, *launch, spills)
            if tile in TILES[size]:
                ones = dict.fromkeys(("grad_row", "x_column", "weight_column", "scores_column", "out_column"), 1)
                types = pointers | {"out_ptr": "*fp32"}
                yield _case(f"masked_linear dS {name}", _multiply_slope, types, ones | _sizes(tile), *launch)
        if dtype == "fp16":
            continue
        for mask, types, constants in _offline_masks(pointers):
            if dtype == "bf16" and mask != "scores":
                continue
            yield _case(
                f"masked_weight {mask} {dtype}", _mask_weight, types, constants | {"out_column": 1} | _block(128)
            )
        ones = dict.fromkeys(("grad_column", "weight_column", "scores_column", "out_column"), 1)
        yield _case(f"masked_weight dS {dtype}", _slope, pointers | {"out_ptr": "*fp32"}, ones | _block(128))
        if dtype == "bf16":
            types = pointers | {"parts_ptr": "*fp32"}
            yield _case(f"masked_linear add_up {dtype}", _add_up, types, {"BLOCK": ENTRIES // 4})


def _offline_masks(pointers: dict[str, str]) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """(name, types, constants) of each kind of mask; words of 8 bits stand for rows that are not whole ones of 32."""
    contiguous = {"weight_column": 1, "mask_column": 1}
    none = {"value_ptr": None, "last_tie_ptr": None}
    yield "bits", pointers | {"mask_ptr": "*i32"}, contiguous | none | {"WORD": 32}
    yield "bytes", pointers | {"mask_ptr": "*u8"}, contiguous | none | {"WORD": 8}
    yield "scores", pointers | {"mask_ptr": "*fp32"}, contiguous | {"WORD": 0}
