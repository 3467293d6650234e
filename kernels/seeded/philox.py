# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: SIM108
"""The generator of `slth.weights.inits` inside Triton kernels: Philox4x32-10, and the conversion of words to weights.

All steps are exact or round once, where `slth.weights.inits` rounds, so weights are equal bit for bit. A draw consists
of blocks; a block's four words give PER_BLOCK[distribution] neighbouring weights of the row-major matrix.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

PER_BLOCK = {"uniform": 4, "uniform16": 8, "sign": 128}


def factor(distribution: str, scale: float) -> float:
    """Return the factor of lattice points, rounded to float32 as in `slth.weights.inits`."""
    bits = {"uniform": 24, "uniform16": 16, "sign": 0}[distribution]
    return float(np.float32(scale) * np.float32(2.0**-bits))


def signed(word: int) -> int:
    """Convert a uint32 to the int32 with the same bits, since Triton would use int64 from 2^31."""
    return word - (1 << 32) if word >= 1 << 31 else word


@triton.jit
def philox(low, high, stream_id, key0, key1):
    """Compute the four uint32 words of block (low, high). Each product is one 32 x 32 -> 64 multiplication.

    Scalars (high, stream_id) stay scalars for as many rounds as possible, which saves two products.
    """
    c0 = low.to(tl.uint32)
    c1 = high.to(tl.uint32)
    c2 = stream_id.to(tl.uint32)
    c3 = c2 ^ c2
    k0 = key0.to(tl.uint32)
    k1 = key1.to(tl.uint32)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def block_words(block, stream_id, key0, key1, WIDE: tl.constexpr):
    """Compute the words of blocks by number: int64 if WIDE, else uint32, all below 2^32."""
    if WIDE:
        high = (block >> 32).to(tl.uint32)
    else:
        high = tl.full((), 0, tl.uint32)
    return philox(block.to(tl.uint32), high, stream_id, key0, key1)


@triton.jit
def uniform(word, factor):
    """Compute an odd point of the 24-bit lattice, exact in float32, times the factor: one rounding."""
    odd = (word >> 8).to(tl.int32) * 2 + (1 - (1 << 24))
    return odd.to(tl.float32) * factor


@triton.jit
def uniform16(half, factor):
    """Compute the same from 16 bits (uint32 below 2^16), placed in the fraction of 2^23, so no conversion is needed."""
    centred = (half | 0x4B000000).to(tl.float32, bitcast=True) - 8421376.0  # half - 2^15
    return (centred * 2.0 + 1.0) * factor  # all exact but the last product


@triton.jit
def sign(bit, factor):
    """Return +factor, or -factor where the bit is 1."""
    return tl.where(bit != 0, -factor, factor)


@triton.jit
def element(index, stream_id, key0, key1, factor, DISTRIBUTION: tl.constexpr):
    """Compute weights by their row-major index (int64), with one block for each of them: slow, but for any shape."""
    if DISTRIBUTION == "uniform":
        block, part = index >> 2, index & 3
    elif DISTRIBUTION == "uniform16":
        block, part = index >> 3, (index >> 1) & 3
    else:
        block, part = index >> 7, (index >> 5) & 3
    w0, w1, w2, w3 = block_words(block, stream_id, key0, key1, True)
    word = tl.where(part < 2, tl.where(part == 0, w0, w1), tl.where(part == 2, w2, w3))
    if DISTRIBUTION == "uniform":
        weight = uniform(word, factor)
    elif DISTRIBUTION == "uniform16":
        weight = uniform16((word >> ((index & 1) * 16).to(tl.uint32)) & 0xFFFF, factor)
    else:
        weight = sign((word >> (index & 31).to(tl.uint32)) & 1, factor)
    return weight
