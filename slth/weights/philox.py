"""The random number generator Philox4x32-10, keyed by a name and indexed by element.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A block of four words is a pure function of (key,
stream, index of the block), so that it does not depend on the device, threads or earlier draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit, uint32, uint64

from slth.numbers import as_int

LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LANES = 256  # blocks that the inner loop processes in each round, so that the compiler can vectorise it


def stream_key(seed: int, name: str) -> tuple[int, int]:
    """Return the 64-bit Philox key of a seed and a name: the first 8 bytes of SHA-256("seed/name").

    The key is returned as two uint32, low first. Raises ValueError if seed is not an integer.
    """
    digest = hashlib.sha256(f"{as_int('seed', seed)}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def philox4x32(counter: Sequence[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Compute Philox4x32-10: four int64 tensors of counter words in [0, 2^32) -> four tensors of random words.

    Plain torch on any device; the reference for :func:`fill`.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products overflow, but both halves of their 64 bits are correct after masking
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & LOW) ^ c1 ^ k0,
            p1 & LOW,
            ((p0 >> 32) & LOW) ^ c3 ^ k1,
            p0 & LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & LOW, (k1 + _WEYL[1]) & LOW
    return [c0, c1, c2, c3]


def words(key: tuple[int, int], stream: int, first_block: int, blocks: int, device: torch.device) -> torch.Tensor:
    """Return the 4 * blocks words from block first_block on, int64 in [0, 2^32), in counter order. Plain torch."""
    index = torch.arange(first_block, first_block + blocks, device=device)
    zero = torch.zeros_like(index)
    return torch.stack(philox4x32([index & LOW, index >> 32, zero + stream, zero], key), dim=1).flatten()


@njit(cache=True, nogil=True)
def fill(out: np.ndarray, first_block: int, stream: int, key0: int, key1: int) -> None:  # pragma: no cover
    """Write the words from block first_block on to out (uint32, length divisible by 4): :func:`words` for the CPU."""
    c0, c1 = np.empty(_LANES, np.uint32), np.empty(_LANES, np.uint32)
    c2, c3 = np.empty(_LANES, np.uint32), np.empty(_LANES, np.uint32)
    for start in range(0, out.size // 4, _LANES):
        lanes = min(_LANES, out.size // 4 - start)
        for i in range(lanes):
            index = uint64(first_block + start + i)
            c0[i], c1[i], c2[i], c3[i] = uint32(index), uint32(index >> uint64(32)), uint32(stream), uint32(0)
        k0, k1 = uint32(key0), uint32(key1)
        for _ in range(_ROUNDS):
            for i in range(lanes):
                p0, p1 = uint64(c0[i]) * uint64(_MULTIPLIERS[0]), uint64(c2[i]) * uint64(_MULTIPLIERS[1])
                c0[i], c1[i] = uint32(p1 >> uint64(32)) ^ c1[i] ^ k0, uint32(p1)
                c2[i], c3[i] = uint32(p0 >> uint64(32)) ^ c3[i] ^ k1, uint32(p0)
            k0, k1 = uint32(k0 + uint32(_WEYL[0])), uint32(k1 + uint32(_WEYL[1]))
        for i in range(lanes):
            at = 4 * (start + i)
            out[at], out[at + 1], out[at + 2], out[at + 3] = c0[i], c1[i], c2[i], c3[i]
