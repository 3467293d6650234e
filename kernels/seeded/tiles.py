# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, misc"
"""A tile of a masked random weight, in registers.

If rows consist of whole Philox blocks, each block is computed once and all its words are used; otherwise one block is
computed for every element.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import block_words, element, sign, uniform, uniform16


@triton.jit
def interleaved(w0, w1, w2, w3):
    """Interleave four (R, B) to (R, 4 B), with the four entries of each column next to each other."""
    four = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(four, (w0.shape[0], 4 * w0.shape[1]))


@triton.jit
def block_numbers(r, b, blocks, WIDE: tl.constexpr):
    """Return the numbers (R, B) of the blocks b (B,) of rows r (R,), in 64 bits if WIDE."""
    if WIDE:
        number = r.to(tl.int64)[:, None] * blocks + b[None, :]
    else:
        number = r.to(tl.uint32)[:, None] * blocks + b.to(tl.uint32)[None, :]
    return number


@triton.jit
def _tile_any(
    bits, r, c, rows, columns, stride_bits, stream_id, key0, key1, scale,
    DISTRIBUTION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Compute a tile element by element."""
    live = (r < rows)[:, None] & (c < columns)[None, :]
    if MASKED:
        byte = tl.load(bits + r.to(tl.int64)[:, None] * stride_bits + (c // 8)[None, :], mask=live, other=0)
        live = live & (((byte.to(tl.int32) >> (c % 8)[None, :]) & 1) != 0)
    index = r.to(tl.int64)[:, None] * columns + c[None, :]
    return tl.where(live, element(index, stream_id, key0, key1, scale, DISTRIBUTION), 0.0)


@triton.jit
def _tile_uniform(bits, r, column, rows, columns, stride_bits, stream_id, key0, key1, scale, C: tl.constexpr,
                  WIDE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Compute a tile with four weights per block, whose mask bits are half a byte."""
    b = column // 4 + tl.arange(0, C // 4)
    live = (r < rows)[:, None] & (b < columns // 4)[None, :]
    w0, w1, w2, w3 = block_words(block_numbers(r, b, columns // 4, WIDE), stream_id, key0, key1, WIDE)
    kept = live.to(tl.int32) * 0xF
    if MASKED:
        byte = tl.load(bits + r.to(tl.int64)[:, None] * stride_bits + (b // 2)[None, :], mask=live, other=0)
        kept = byte.to(tl.int32) >> ((b % 2) * 4)[None, :]
    return interleaved(
        tl.where((kept & 1) != 0, uniform(w0, scale), 0.0),
        tl.where((kept & 2) != 0, uniform(w1, scale), 0.0),
        tl.where((kept & 4) != 0, uniform(w2, scale), 0.0),
        tl.where((kept & 8) != 0, uniform(w3, scale), 0.0),
    )


@triton.jit
def _tile_uniform16(bits, r, column, rows, columns, stride_bits, stream_id, key0, key1, scale, C: tl.constexpr,
                    WIDE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Compute a tile with eight weights per block, whose mask bits are a byte."""
    b = column // 8 + tl.arange(0, C // 8)
    live = (r < rows)[:, None] & (b < columns // 8)[None, :]
    w0, w1, w2, w3 = block_words(block_numbers(r, b, columns // 8, WIDE), stream_id, key0, key1, WIDE)
    kept = live.to(tl.int32) * 0xFF
    if MASKED:
        byte = tl.load(bits + r.to(tl.int64)[:, None] * stride_bits + b[None, :], mask=live, other=0)
        kept = byte.to(tl.int32)
    low = interleaved(
        tl.where((kept & 1) != 0, uniform16(w0 & 0xFFFF, scale), 0.0),
        tl.where((kept & 4) != 0, uniform16(w1 & 0xFFFF, scale), 0.0),
        tl.where((kept & 16) != 0, uniform16(w2 & 0xFFFF, scale), 0.0),
        tl.where((kept & 64) != 0, uniform16(w3 & 0xFFFF, scale), 0.0),
    )
    high = interleaved(
        tl.where((kept & 2) != 0, uniform16(w0 >> 16, scale), 0.0),
        tl.where((kept & 8) != 0, uniform16(w1 >> 16, scale), 0.0),
        tl.where((kept & 32) != 0, uniform16(w2 >> 16, scale), 0.0),
        tl.where((kept & 128) != 0, uniform16(w3 >> 16, scale), 0.0),
    )
    return tl.reshape(tl.join(low, high), (w0.shape[0], C))


@triton.jit
def _tile_sign(bits, r, column, rows, columns, stride_bits, stream_id, key0, key1, scale, C: tl.constexpr,
               WIDE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Compute a tile with 128 weights per block, whose mask has as many words as its signs."""
    b = column // 128 + tl.arange(0, C // 128)
    w0, w1, w2, w3 = block_words(block_numbers(r, b, columns // 128, WIDE), stream_id, key0, key1, WIDE)
    word = column // 32 + tl.arange(0, C // 32)
    live = (r < rows)[:, None] & (word < columns // 32)[None, :]
    kept = 0 - live.to(tl.int32)
    if MASKED:
        kept = tl.load(bits + r.to(tl.int64)[:, None] * stride_bits + word[None, :], mask=live, other=0)
    k = tl.arange(0, 32)[None, None, :]
    minus = (interleaved(w0, w1, w2, w3)[:, :, None] >> k.to(tl.uint32)) & 1
    weight = tl.where(((kept[:, :, None] >> k) & 1) != 0, sign(minus, scale), 0.0)
    return tl.reshape(weight, (w0.shape[0], C))


@triton.jit
def weight_tile(
    bits, row, column, rows, columns, stride_bits, stream_id, key0, key1, scale,
    DISTRIBUTION: tl.constexpr, R: tl.constexpr, C: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Compute the masked weights (R, C) from (row, column), float32; 0 outside of the matrix."""
    r = row + tl.arange(0, R)
    if not WHOLE:
        weight = _tile_any(
            bits, r, column + tl.arange(0, C), rows, columns, stride_bits, stream_id, key0, key1, scale,
            DISTRIBUTION, MASKED,
        )  # fmt: skip
    elif DISTRIBUTION == "uniform":
        weight = _tile_uniform(
            bits, r, column, rows, columns, stride_bits, stream_id, key0, key1, scale, C, WIDE, MASKED
        )  # fmt: skip
    elif DISTRIBUTION == "uniform16":
        weight = _tile_uniform16(
            bits, r, column, rows, columns, stride_bits, stream_id, key0, key1, scale, C, WIDE, MASKED
        )  # fmt: skip
    else:
        weight = _tile_sign(
            bits, r, column, rows, columns, stride_bits, stream_id, key0, key1, scale, C, WIDE, MASKED
        )  # fmt: skip
    return weight
