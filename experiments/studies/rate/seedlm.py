"""SeedLM (arXiv 2410.10714): code a block of weights as the seed of a shift register and a few coefficients.

The 16-bit register generates a matrix (weights, coefficients) from its states after the seed, each mapped to a number
in (-1, 1). Coefficients are fitted by least squares and rounded to 4 bits, with one 4-bit exponent for all of them. Of
all 65,535 seeds the one with the least error is used. Most seeds need not be tried, since the residual outside of the
matrix's span, which unrounded coefficients leave, is a lower bound of the error.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
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
)  # x^16 + x^15 + x^13 + x^4 + 1, from the lowest bit; the period is 65,535


def seedlm(matrix: FloatArray, bits: int, blocks: int) -> tuple[FloatArray, FloatArray]:
    """Code some blocks, spread over the matrix, since each search is slow: (weights, decoded), each (blocks, weights).

    Raises ValueError for bits other than 3 and 4.
    """
    size = _size(bits)
    rows = matrix.reshape(-1)[: matrix.size // size * size].reshape(-1, size)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, blocks).astype(int))]
    return rows, _decoded(rows, bits)


def coded(matrix: FloatArray, bits: int) -> tuple[FloatArray, float]:
    """Code a whole matrix, its last block padded with zeros: (decoded, bits per weight). Raises as `seedlm` does."""
    size = _size(bits)
    rows = np.pad(matrix.reshape(-1), (0, -matrix.size % size)).reshape(-1, size)
    return _decoded(rows, bits).reshape(-1)[: matrix.size].reshape(matrix.shape), bits * rows.size / matrix.size


def _size(bits: int) -> int:
    if bits not in SHAPES:
        raise ValueError(f"bits={bits}: must be 3 or 4")
    return SHAPES[bits][0]


def _decoded(rows: FloatArray, bits: int) -> FloatArray:
    size, coefficients = SHAPES[bits]
    basis, inverse, spans = _matrices(size, coefficients)
    out = np.empty_like(rows)

    def work(part: slice) -> None:
        _decode(rows[part], spans, basis, inverse, out[part])

    in_parallel(work, len(rows))
    return out


@lru_cache(maxsize=2)
def _matrices(size: int, coefficients: int) -> tuple[FloatArray, FloatArray, npt.NDArray[np.float32]]:
    """Return the matrices (seeds, size, coefficients), those that give the least-squares coefficients, and the spans.

    The spans (coefficients, size, seeds) are orthonormal vectors, `coefficients` of them for each seed.
    """
    state = np.arange(1, 1 << SEED_BITS)
    states = []
    for _ in range(size * coefficients):
        fed = np.bitwise_xor.reduce([state >> tap for tap in TAPS]) & 1
        state = (state >> 1) | (fed << (SEED_BITS - 1))
        states.append(state)
    middle = 1 << (SEED_BITS - 1)
    basis = ((np.stack(states, axis=1) - middle) / (middle - 1)).reshape(-1, size, coefficients)
    turned = np.swapaxes(basis, 1, 2)
    spans = np.linalg.qr(basis).Q.T.astype(np.float32, order="C")
    return basis, np.linalg.inv(turned @ basis + 1e-9 * np.eye(coefficients)) @ turned, spans


@njit(cache=True, nogil=True)
def _decode(rows, spans, basis, inverse, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    levels, here = np.empty(inverse.shape[1]), np.empty(rows.shape[1])
    for row in range(len(rows)):
        outside = _outside(rows[row].astype(np.float32), spans)
        first = int(np.argmin(outside))
        least = _try(rows[row], basis[first], inverse[first], levels, here)
        out[row] = here
        slack = 1e-5 * np.square(rows[row]).sum()
        for seed in range(len(basis)):
            if outside[seed] > least + slack:
                continue
            error = _try(rows[row], basis[seed], inverse[seed], levels, here)
            if error < least or (error == least and seed < first):
                least, first = error, seed
                out[row] = here


@njit(cache=True, nogil=True)
def _outside(weights, spans):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Compute the squared length (seeds,) of the residual outside of each seed's span, four weights at a time."""
    outside = np.full(spans.shape[2], np.square(weights).sum(), np.float32)
    within = np.empty_like(outside)
    for k in range(len(spans)):
        within[:] = 0.0
        for i in range(0, len(weights), 4):
            wa, wb, wc, wd = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
            a, b, c, d = spans[k, i], spans[k, i + 1], spans[k, i + 2], spans[k, i + 3]
            for seed in range(within.size):
                within[seed] += (wa * a[seed] + wb * b[seed]) + (wc * c[seed] + wd * d[seed])
        for seed in range(within.size):
            outside[seed] -= within[seed] * within[seed]
    return outside


@njit(cache=True, nogil=True)
def _try(weights, basis, inverse, levels, here):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return the squared error of a seed's rounded coefficients, and write the decoded block to here."""
    largest = 0.0
    for k in range(len(levels)):
        total = 0.0
        for i in range(len(weights)):
            total += inverse[k, i] * weights[i]
        levels[k] = total
        largest = max(largest, abs(total))
    step = 2.0 ** np.ceil(np.log2(max(largest, 1e-30) / 7.5))
    error = 0.0
    for k in range(len(levels)):
        levels[k] = min(7.0, max(-8.0, np.rint(levels[k] / step))) * step
    for i in range(len(weights)):
        total = 0.0
        for k in range(len(levels)):
            total += basis[i, k] * levels[k]
        here[i] = total
        error += (total - weights[i]) ** 2
    return error
