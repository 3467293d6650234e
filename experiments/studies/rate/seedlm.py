"""SeedLM (arXiv 2410.10714): a block of weights as a seed of a shift register and a few coefficients.

The register of 16 bits makes a matrix (weights, coefficients) from its states after the seed, each turned into a number
of (-1, 1). Of all 65,535 seeds that is taken for which the least-squares coefficients, rounded to 4 bits with one
exponent of 4 bits for all of them, bring the block nearest.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

from slth.construct.subset_sum import FloatArray
from slth.threads import in_parallel

SEED_BITS, EXPONENT_BITS, COEFFICIENT_BITS = 16, 4, 4
SHAPES = {3: (12, 4), 4: (8, 3)}  # bits -> weights and coefficients of a block
TAPS = (
    0,
    1,
    3,
    12,
)  # of x^16 + x^15 + x^13 + x^4 + 1, counted from the lowest bit; all 65,535 states follow one another


def seedlm(matrix: FloatArray, bits: int, blocks: int) -> tuple[FloatArray, FloatArray]:
    """(weights, decoded), each (blocks, weights): some blocks spread over the matrix, as searching one takes ms.

    Raises ValueError for bits other than 3 and 4.
    """
    if bits not in SHAPES:
        raise ValueError(f"bits={bits}: must be 3 or 4")
    size, coefficients = SHAPES[bits]
    rows = matrix.reshape(-1)[: matrix.size // size * size].reshape(-1, size)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, blocks).astype(int))]
    basis, inverse = _matrices(size, coefficients)
    out = np.empty_like(rows)

    def work(part: slice) -> None:
        _decode(rows[part], basis, inverse, out[part])

    in_parallel(work, len(rows))
    return rows, out


@lru_cache(maxsize=2)
def _matrices(size: int, coefficients: int) -> tuple[FloatArray, FloatArray]:
    """(seeds, size, coefficients), and the matrices that give the least-squares coefficients."""
    state = np.arange(1, 1 << SEED_BITS)
    states = []
    for _ in range(size * coefficients):
        fed = np.bitwise_xor.reduce([state >> tap for tap in TAPS]) & 1
        state = (state >> 1) | (fed << (SEED_BITS - 1))
        states.append(state)
    middle = 1 << (SEED_BITS - 1)
    basis = ((np.stack(states, axis=1) - middle) / (middle - 1)).reshape(-1, size, coefficients)
    turned = np.swapaxes(basis, 1, 2)
    return basis, np.linalg.inv(turned @ basis + 1e-9 * np.eye(coefficients)) @ turned


@njit(cache=True, nogil=True)
def _decode(rows, basis, inverse, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, size = rows.shape
    coefficients = inverse.shape[1]
    levels, here = np.empty(coefficients), np.empty(size)
    for row in range(count):
        least = np.inf
        for seed in range(len(basis)):
            largest = 0.0
            for k in range(coefficients):
                total = 0.0
                for i in range(size):
                    total += inverse[seed, k, i] * rows[row, i]
                levels[k] = total
                largest = max(largest, abs(total))
            step = 2.0 ** np.ceil(np.log2(max(largest, 1e-30) / 7.5))
            error = 0.0
            for k in range(coefficients):
                levels[k] = min(7.0, max(-8.0, np.rint(levels[k] / step))) * step
            for i in range(size):
                total = 0.0
                for k in range(coefficients):
                    total += basis[seed, i, k] * levels[k]
                here[i] = total
                error += (total - rows[row, i]) ** 2
            if error < least:
                least = error
                out[row] = here
