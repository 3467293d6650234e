"""Orthonormal rows by operations in one fixed order, so that they have the same bits on every machine."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from slth.threads import in_parallel


def orthonormal(vectors: torch.Tensor) -> npt.NDArray[np.float64]:
    """Rows of vectors (P, n, d), each d on end made orthonormal in their order, in float64: modified Gram-Schmidt.

    Rows are counted from the last: the first n mod d are orthonormal among themselves. Products, sums, roots and
    quotients are rounded one by one; numba, as it is set here, neither fuses nor reorders them.
    """
    rows = vectors.detach().to("cpu", torch.float64).numpy().copy()

    def work(part: slice) -> None:
        _turn(rows[part])

    in_parallel(work, len(rows))
    return rows


@njit(cache=True, nogil=True)
def _turn(problems):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The same in place."""
    _, n, d = problems.shape
    for rows in problems:
        for i in range(n):
            row, first = rows[i], max(0, n - d * ((n - i + d - 1) // d))  # of its group
            for before in rows[first:i]:
                product = 0.0
                for axis in range(d):
                    product += row[axis] * before[axis]
                for axis in range(d):
                    row[axis] -= product * before[axis]
            square = 0.0
            for axis in range(d):
                square += row[axis] * row[axis]
            length = math.sqrt(square)
            for axis in range(d):
                row[axis] /= length
