# ruff: noqa: SIM300
"""Linear layers whose weight is a seed and one bit per entry, generated in registers and never written to memory.

There are three kernels: one writes the weight to memory; one multiplies it by a single token, where generating the
weights is most of the work; and one multiplies it by tiles of tokens on tensor cores. Tiles of 16 tokens are also used
for few tokens: generating a weight takes about ten instructions, and each token outside of tensor cores one more.

A weight matrix (rows, columns) is contracted over its columns (that of nn.Linear, forward) or its rows (inputs first,
forward). The gradient to the input contracts over the other axis.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from slth.weights.philox import stream_key
from slth.weights.recipes import Draw

from ..bits import in_words
from .philox import PER_BLOCK, block_words, factor, signed, uniform, uniform16
from .tiles import block_numbers, weight_tile

SCALARS = ["key0", "key1", "stream_id"]  # arbitrary numbers, for whose values kernels must not be specialised

# ---------------------------------------------------------------- write the weight


@triton.jit(do_not_specialize=SCALARS)
def _write(
    out, bits, rows, columns, stride_bits, stream_id, key0, key1, scale,
    DISTRIBUTION: tl.constexpr, R: tl.constexpr, C: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Write the weight (rows, columns), float32, contiguous; one program per tile."""
    across = tl.cdiv(columns, C)
    row = (tl.program_id(0) // across) * R
    column = (tl.program_id(0) % across) * C
    weight = weight_tile(
        bits, row, column, rows, columns, stride_bits, stream_id, key0, key1, scale,
        DISTRIBUTION, R, C, WHOLE, WIDE, MASKED,
    )  # fmt: skip
    r = row + tl.arange(0, R)
    c = column + tl.arange(0, C)
    live = (r < rows)[:, None] & (c < columns)[None, :]
    tl.store(out + r.to(tl.int64)[:, None] * columns + c[None, :], weight, mask=live)


# ---------------------------------------------------------------- one token


@triton.jit
def _rounded(weight, DTYPE: tl.constexpr):
    """Round float32 to DTYPE and back; bfloat16 in pairs, since single conversions run at a quarter of the rate."""
    if DTYPE == tl.bfloat16:
        pair: tl.constexpr = """{
            .reg .b32 both;
            cvt.rn.bf16x2.f32 both, $3, $2;
            shl.b32 $0, both, 16;
            and.b32 $1, both, 0xffff0000;
        }"""
        weight = tl.inline_asm_elementwise(pair, "=r,=r,r,r", [weight], dtype=tl.float32, is_pure=True, pack=2)
    else:
        weight = weight.to(DTYPE).to(tl.float32)
    return weight


@triton.jit
def _added(acc, weight, kept, x, J: tl.constexpr, BIT: tl.constexpr, B: tl.constexpr, DTYPE: tl.constexpr):
    """Add to acc the J-th weight of each block, where its bit in kept is 1, times its input."""
    token = tl.load(x + J * B)
    weight = tl.where((kept & BIT) != 0, _rounded(weight, DTYPE), 0.0)
    return acc + weight * token[None, :]


@triton.jit
def _added_halves(acc, word, kept, x, scale, J: tl.constexpr, B: tl.constexpr, DTYPE: tl.constexpr):
    """Add to acc the two weights of a word of 16-bit uniforms, times their inputs."""
    acc = _added(acc, uniform16(word & 0xFFFF, scale), kept, x, J, 1 << J, B, DTYPE)
    return _added(acc, uniform16(word >> 16, scale), kept, x, J + 1, 2 << J, B, DTYPE)


@triton.jit
def _added_signs(acc, word, kept, x, B: tl.constexpr):
    """Add to acc the 32 inputs of a word of each block, by their signs and bits."""
    for _ in range(4):  # in four steps, since 32 inputs at once would need all registers
        for k in tl.static_range(8):
            token = tl.load(x + k * B)[None, :]
            token = tl.where((word & (1 << k)) != 0, -token, token)
            acc += tl.where((kept & (1 << k)) != 0, token, 0.0)
        word = word >> 8
        kept = kept >> 8
        x += 8 * B
    return acc


@triton.jit(do_not_specialize=SCALARS, do_not_specialize_on_alignment=["x", "bits"])
def _one_token(
    x, bits, bias, y, rows, blocks, stride_bits, stream_id, key0, key1, scale,
    DISTRIBUTION: tl.constexpr, PER: tl.constexpr, R: tl.constexpr, B: tl.constexpr, WIDE: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """Compute y (rows,) = weight x, for rows of whole blocks; R rows per program.

    x is float32 (ceil(blocks / B), PER, B), padded with zeros at the end: the inputs of one position in B blocks are
    contiguous. A thread computes whole blocks of R / warps rows, which share their inputs, and their sums. No alignment
    is declared, so that each thread loads only its own inputs.
    """
    DTYPE: tl.constexpr = y.dtype.element_ty
    r = tl.program_id(0) * R + tl.arange(0, R)
    lines = bits + r.to(tl.int64)[:, None] * stride_bits
    acc = tl.zeros((R, B), tl.float32)
    x += tl.arange(0, B)
    for start in range(0, blocks, B):
        b = start + tl.arange(0, B)
        live = (r < rows)[:, None] & (b < blocks)[None, :]
        w0, w1, w2, w3 = block_words(block_numbers(r, b, blocks, WIDE), stream_id, key0, key1, WIDE)
        if DISTRIBUTION == "sign":
            words = lines + 4 * b[None, :]
            acc = _added_signs(acc, w0, tl.load(words, mask=live, other=0), x, B)
            acc = _added_signs(acc, w1, tl.load(words + 1, mask=live, other=0), x + 32 * B, B)
            acc = _added_signs(acc, w2, tl.load(words + 2, mask=live, other=0), x + 64 * B, B)
            acc = _added_signs(acc, w3, tl.load(words + 3, mask=live, other=0), x + 96 * B, B)
        elif DISTRIBUTION == "uniform16":
            kept = tl.load(lines + b[None, :], mask=live, other=0).to(tl.int32)
            acc = _added_halves(acc, w0, kept, x, scale, 0, B, DTYPE)
            acc = _added_halves(acc, w1, kept, x, scale, 2, B, DTYPE)
            acc = _added_halves(acc, w2, kept, x, scale, 4, B, DTYPE)
            acc = _added_halves(acc, w3, kept, x, scale, 6, B, DTYPE)
        else:
            kept = tl.load(lines + (b // 2)[None, :], mask=live, other=0).to(tl.int32) >> ((b % 2) * 4)[None, :]
            acc = _added(acc, uniform(w0, scale), kept, x, 0, 1, B, DTYPE)
            acc = _added(acc, uniform(w1, scale), kept, x, 1, 2, B, DTYPE)
            acc = _added(acc, uniform(w2, scale), kept, x, 2, 4, B, DTYPE)
            acc = _added(acc, uniform(w3, scale), kept, x, 3, 8, B, DTYPE)
        x += PER * B
    total = tl.sum(acc, axis=1)
    if DISTRIBUTION == "sign":  # all weights have one magnitude, which is rounded like weights
        total *= (tl.zeros((R,), tl.float32) + scale).to(DTYPE).to(tl.float32)
    if BIASED:
        total += tl.load(bias + r, mask=r < rows, other=0.0).to(tl.float32)
    tl.store(y + r, total.to(DTYPE), mask=r < rows)


# ---------------------------------------------------------------- tokens in tiles


@triton.jit(do_not_specialize=SCALARS)
def _product(
    x, bits, bias, y, tokens, rows, columns, share, stride_xt, stride_xi, stride_bits, stream_id, key0, key1, scale,
    DISTRIBUTION: tl.constexpr, OVER_COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Contract x (tokens, inputs) with the weight (rows, columns) over its columns or its rows.

    A program computes M tokens by N outputs from its share of the inputs, in steps of K; y is (shares, tokens,
    outputs). The weight is in registers, so it is the left operand of the tensor cores.
    """
    outputs = rows if OVER_COLUMNS else columns
    inputs = columns if OVER_COLUMNS else rows
    across = tl.cdiv(outputs, N)
    o = (tl.program_id(0) % across) * N
    t = (tl.program_id(0) // across) * M + tl.arange(0, M)
    x += t.to(tl.int64)[None, :] * stride_xt
    acc = tl.zeros((N, M), tl.float32)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, inputs), K):
        i = start + tl.arange(0, K)
        token = tl.load(
            x + i.to(tl.int64)[:, None] * stride_xi, mask=(i < inputs)[:, None] & (t < tokens)[None, :], other=0.0
        )  # (K, M)
        if OVER_COLUMNS:
            weight = weight_tile(
                bits, o, start, rows, columns, stride_bits, stream_id, key0, key1, scale,
                DISTRIBUTION, N, K, WHOLE, WIDE, True,
            )  # fmt: skip
        else:
            weight = tl.trans(weight_tile(
                bits, start, o, rows, columns, stride_bits, stream_id, key0, key1, scale,
                DISTRIBUTION, K, N, WHOLE, WIDE, True,
            ))  # fmt: skip
        acc = tl.dot(weight.to(token.dtype), token, acc, input_precision=PRECISION)
    n = o + tl.arange(0, N)
    if BIASED:
        acc += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[:, None]
    y += tl.program_id(1).to(tl.int64) * tokens * outputs
    tl.store(
        y + t.to(tl.int64)[None, :] * outputs + n[:, None],
        acc.to(y.dtype.element_ty),
        mask=(n < outputs)[:, None] & (t < tokens)[None, :],
    )


# ---------------------------------------------------------------- launches

_BUSY = 4 * 132  # programs that fill an H100: four per SM, to hide latency


def _one_token_tile(rows: int) -> dict[str, int]:
    """Return R rows by B blocks per step: four rows per thread, to amortise loading an input; less for few rows."""
    return {"R": 16 if rows >= 4096 else 8, "B": 32, "num_warps": 4}


def _product_tile(
    distribution: str, over_columns: bool, tokens: int, dtype: torch.dtype, *, whole: bool
) -> dict[str, int]:
    """Return M tokens, N outputs and K inputs per step.

    Weights are generated again for every M tokens, so M is large: 256 tokens amortise the ten instructions. The columns
    of a tile are whole blocks, at least 128 signs. Tiles are smaller for float32, which has no tensor cores, and for
    rows that are no whole blocks, whose words need registers.
    """
    if not whole:
        return {"M": 16 if tokens <= 16 else 64, "N": 32, "K": 32, "num_warps": 4 if tokens <= 16 else 8}
    full = dtype != torch.float32
    wide, narrow = (128, 32) if distribution == "sign" else (64, 64)
    if tokens <= 16:
        m = 16
    elif tokens <= 64 or not full:
        m = 64
    else:
        m = 128 if tokens <= 128 or distribution == "sign" else 256  # signs are cheap, and their inputs need registers
    n, k = (64 if full else 32, wide) if over_columns else (wide, narrow)
    return {"M": m, "N": n, "K": k if full or distribution == "sign" else 32, "num_warps": 8 if m >= 128 else 4}


def _write_tile() -> dict[str, int]:
    """Return a tile with rows of 512 bytes, at least one block per thread."""
    return {"R": 16, "C": 128, "num_warps": 4}


def _stream(draw: Draw) -> dict[str, Any]:
    """Return a draw as kernel arguments. Raises as `slth.weights.inits` does for an invalid scale or stream."""
    draw.tensor((0,))  # checks the draw
    key0, key1 = (signed(word) for word in stream_key(draw.seed, draw.name))
    return {
        "stream_id": signed(draw.stream), "key0": key0, "key1": key1, "scale": factor(draw.distribution, draw.scale),
        "DISTRIBUTION": draw.distribution,
    }  # fmt: skip


def _whole(distribution: str, shape: tuple[int, int]) -> dict[str, bool]:
    """Tell whether rows consist of whole blocks (WHOLE), and whether block numbers exceed 32 bits (WIDE)."""
    per = PER_BLOCK[distribution]
    return {"WHOLE": shape[1] % per == 0, "WIDE": shape[0] * shape[1] // per >= 1 << 32}


def _lines(bits: torch.Tensor, words: bool) -> torch.Tensor:
    """Return bits with contiguous rows, as int32 words if `words`; copied only if their strides require it."""
    if bits.stride(1) != 1:
        bits = bits.contiguous()
    if not words:
        return bits
    return (bits if in_words(bits) else bits.clone(memory_format=torch.contiguous_format)).view(torch.int32)


def seeded_weight(shape: tuple[int, int], draw: Draw, bits: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Generate the masked weight, float32."""
    rows, columns = shape
    stream, whole = _stream(draw), _whole(draw.distribution, (rows, columns))
    out = torch.empty(rows, columns, dtype=torch.float32, device=device)
    lines = out if bits is None else _lines(bits, whole["WHOLE"] and draw.distribution == "sign")
    tile = _write_tile()
    grid = (triton.cdiv(rows, tile["R"]) * triton.cdiv(columns, tile["C"]),)
    with torch.cuda.device_of(out):
        _write[grid](out, lines, rows, columns, lines.stride(0), **stream, **whole, **tile, MASKED=bits is not None)
    return out


def seeded_linear(
    x: torch.Tensor,
    shape: tuple[int, int],
    draw: Draw,
    bits: torch.Tensor,
    inputs_first: bool,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Multiply x (..., in) by the weight -> (..., out)."""
    out: torch.Tensor = _Linear.apply(x, bias, bits, _stream(draw), tuple(shape), not inputs_first)
    return out


class _Linear(Function):
    """Saves only the bits; backward generates the weights again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        bits: torch.Tensor,
        stream: dict[str, Any],
        shape: tuple[int, int],
        over_columns: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(bits)
        ctx.stream, ctx.shape, ctx.over_columns = stream, shape, over_columns
        y = _times(x.reshape(-1, x.shape[-1]), bits, bias, stream, shape, over_columns)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            dx = _times(flat, bits, None, ctx.stream, ctx.shape, not ctx.over_columns)
            dx = dx.reshape(*grad.shape[:-1], dx.shape[-1])
        if ctx.needs_input_grad[1]:
            dbias = flat.sum(0, dtype=torch.float32).to(grad.dtype)
        return dx, dbias, None, None, None, None


def _times(
    x: torch.Tensor,
    bits: torch.Tensor,
    bias: torch.Tensor | None,
    stream: dict[str, Any],
    shape: tuple[int, int],
    over_columns: bool,
) -> torch.Tensor:
    """Contract x (tokens, inputs) with the weight (rows, columns) over its columns or rows -> (tokens, outputs)."""
    rows, columns = shape
    distribution = stream["DISTRIBUTION"]
    whole = _whole(distribution, shape)
    lines = _lines(bits, whole["WHOLE"] and distribution == "sign")
    if len(x) == 0:
        return x.new_zeros(0, rows if over_columns else columns)
    if len(x) == 1 and over_columns and whole["WHOLE"]:
        return _times_one(x, lines, bias, stream, shape, whole["WIDE"])
    tile = _product_tile(distribution, over_columns, len(x), x.dtype, whole=whole["WHOLE"])
    outputs, inputs = (rows, columns) if over_columns else (columns, rows)
    tiles = triton.cdiv(len(x), tile["M"]) * triton.cdiv(outputs, tile["N"])
    steps = triton.cdiv(inputs, tile["K"])
    shares = max(1, min(_BUSY // tiles, steps // 4))  # each with at least four steps
    share = triton.cdiv(steps, shares) * tile["K"]
    shares = triton.cdiv(inputs, share)
    y = torch.empty(shares, len(x), outputs, dtype=x.dtype if shares == 1 else torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _product[tiles, shares](
            x, lines, y if bias is None else bias.contiguous(), y, len(x), rows, columns, share, *x.stride(),
            lines.stride(0), **stream, OVER_COLUMNS=over_columns, **whole, **tile,
            BIASED=bias is not None and shares == 1, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        )  # fmt: skip
    if shares == 1:
        return y[0]
    total = y.sum(0)
    return (total if bias is None else total + bias).to(x.dtype)


def _times_one(
    x: torch.Tensor,
    lines: torch.Tensor,
    bias: torch.Tensor | None,
    stream: dict[str, Any],
    shape: tuple[int, int],
    wide: bool,
) -> torch.Tensor:
    """Multiply x (1, columns) by the weight -> (1, rows)."""
    rows, columns = shape
    per = PER_BLOCK[stream["DISTRIBUTION"]]
    tile = _one_token_tile(rows)
    step = per * tile["B"]
    missing = -columns % step
    padded = torch.nn.functional.pad(x, (0, missing)) if missing else x
    places = torch.empty((columns + missing) // step, per, tile["B"], dtype=torch.float32, device=x.device)
    places.copy_(padded.reshape(-1, tile["B"], per).mT)
    y = torch.empty(1, rows, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _one_token[(triton.cdiv(rows, tile["R"]),)](
            places, lines, y if bias is None else bias.contiguous(), y, rows, columns // per, lines.stride(0), **stream,
            PER=per, WIDE=wide, BIASED=bias is not None, **tile,
        )  # fmt: skip
    return y
