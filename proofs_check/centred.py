"""Centred sums: the mean and reach of sums that keep one of each pair (c, -c).

Claim. Masks that keep exactly one of each of N pairs (c_k, -c_k), c_k in R^d, give the 2^N sums of +-c_k. Their mean is
0, and their mean square is the sum of |c_k|^2. In coordinate j they reach from -r_j to r_j, with r_j the sum of
|c_kj|. Sums of 0/1 of the same vectors are instead centred at half the sum of all, which is itself random.
"""

from __future__ import annotations

import itertools

import torch

from proofs_check import draws
from proofs_check.check import Check, Control, Statement

N, D = 6, 3
ROUNDING = 1e-12  # rounding of a mean, relative to the vectors' sizes


def check(share: float = 1.0) -> Statement:
    """Test the claim, with this share of the usual number of cases."""
    cases = draws.count(200, share)
    vectors = draws.normal("centred", cases, N, D)
    signed, subset = _sums(vectors, -1.0), _sums(vectors, 0.0)
    size, reach = vectors.square().sum((1, 2)), vectors.abs().sum(1)
    square = signed.square().sum(-1).mean(1) / size  # (cases,)
    equal = _sums(vectors.abs(), 1.0)  # pairs of equal vectors: only one sum
    return Statement(
        "Centred sums: one of each antithetic pair",
        (
            Check("the mean is 0", cases, _off_centre(signed, size)),
            Check("the mean square is at most the sum of |c|^2", cases, square.max().item()),
            Check("the mean square is at least the sum of |c|^2", cases, (1 / square).max().item()),
            Check("the least and the largest are -r and r", cases, _short_of(signed, reach)),
        ),
        (
            Control("the mean of 0/1 sums is 0", _off_centre(subset, size)),
            Control("the mean of sums of equal pairs is 0", _off_centre(equal, size)),
            Control("0/1 sums have a fourth of the mean square", (4 * _square(subset) / size).max().item()),
            Control("0/1 sums reach -r and r", _short_of(subset, reach)),
            Control("the mean square is at most 0.9 of the sum", square.max().item() / 0.9),
        ),
    )


def _sums(vectors: torch.Tensor, other: float) -> torch.Tensor:
    """Return all 2^N sums (cases, 2^N, d) of each vector times 1 or `other`."""
    factors = torch.tensor(list(itertools.product([1.0, other], repeat=N)), dtype=torch.float64)
    return factors @ vectors


def _off_centre(sums: torch.Tensor, size: torch.Tensor) -> float:
    return float((sums.mean(1).norm(dim=-1) / (ROUNDING * size.sqrt())).max())


def _square(sums: torch.Tensor) -> torch.Tensor:
    return sums.square().sum(-1).mean(1)


def _short_of(sums: torch.Tensor, reach: torch.Tensor) -> float:
    """Return 1 plus the share of the claimed reach by which the sums fall short of it, on the worse side."""
    return float((2 - torch.minimum(sums.amax(1), -sums.amin(1)) / reach).max())
