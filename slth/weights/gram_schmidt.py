"""Orthonormal rows, computed in one fixed order so that they have the same bits on every machine."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from slth.threads import in_parallel


def orthonormal(vectors: torch.Tensor) -> npt.NDArray[np.float64]:
    """Orthonormalise each group of d consecutive rows of vectors (P, n, d), in float64, by modified Gram-Schmidt.

    Groups are counted from the last row; the first n mod d rows form a smaller group. Each product, sum, root and
    quotient is rounded separately; numba neither fuses nor reorders them with the settings used here.
    """
    rows = vectors.detach().to("cpu", torch.float64).numpy().copy()

    def work(part: slice) -> None:
        _turn(rows[part])

    in_parallel(work, len(rows))
    return rows


@njit(cache=True, nogil=True)
def _turn(problems):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Orthonormalise in place."""
    _, n, d = problems.shape
    for rows in problems:
        for i in range(n):
            row, first = rows[i], max(0, n - d * ((n - i + d - 1) // d))  # the first row of its group
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
