"""Structured pruning: a matrix hidden in a random two-layer map by pruning whole hidden units, one bit per pair.

Claim. Let W (rows x columns) have Gaussian entries of variance s2, and columns be a multiple of d. Consider a random
network without biases whose hidden units come in pairs of opposite output vectors, with N pairs for each input and each
block of d outputs. After pruning one unit of each pair it computes x W', and |W' - W|^2 is at most e s2 per weight on
average if N is `slth.theory.code_candidates(d, e / 10^0.05)`, with a margin of half a decibel. So the error e takes
N / d bits per weight.
"""

from __future__ import annotations

import torch

from proofs_check import draws
from proofs_check.check import Check, Control, Statement
from slth import theory
from slth.construct import CodeConstruction, encode
from slth.construct.codes import Code

CASES = ((4, 0.3), (4, 0.12), (8, 0.12), (8, 0.08))
ROWS, COLUMNS = 16, 64
MARGIN = 10**0.05
ROUNDING = 1e-12


def check(share: float = 1.0) -> Statement:
    """Test the claim, with this share of the usual number of rows."""
    rows = max(ROWS, draws.count(4 * ROWS, share))
    found = {case: _construct(*case, rows) for case in CASES}
    d, error = 8, 0.08
    one = found[d, error]
    return Statement(
        "Structured pruning: whole units of a random two-layer map",
        (
            *(Check(f"error {e:g} in blocks of {d}", rows, c.error / e) for (d, e), c in found.items()),
            *(Check(f"the pruned network, blocks of {d}, error {e:g}", rows, _apart(c)) for (d, e), c in found.items()),
            Check("bits a weight are those of N", rows, one.weights / 2 / one.merged.numel() / _bits(d, error)),
        ),
        (
            Control("a fourth of the bits less", _construct(d, error, rows, less=0.25).error / error),
            Control("units that are not in pairs", _construct(d, error, rows, pairs=False).error / error),
            Control(
                "vectors that are not orthogonal, half the error", _independent(d, error, rows).error / (error / 2)
            ),
            Control("one unit more pruned", _apart(one, flip=True)),
            Control("no unit pruned", _apart(one, whole=True)),
        ),
    )


def _bits(d: int, error: float, less: float = 0.0) -> float:
    return round((1 - less) * theory.code_candidates(d, error / MARGIN)) / d


def _construct(d: int, error: float, rows: int, *, less: float = 0.0, pairs: bool = True) -> CodeConstruction:
    return encode(_target(rows), Code(_bits(d, error, less), d, pairs=pairs), name=f"units/{d}")


def _independent(d: int, error: float, rows: int) -> CodeConstruction:
    return encode(_target(rows), Code(_bits(d, error), d, orthogonal=False), name=f"units/{d}")


def _target(rows: int) -> torch.Tensor:
    return draws.normal("units", rows, COLUMNS)


def _apart(construction: CodeConstruction, *, flip: bool = False, whole: bool = False) -> float:
    """Return the difference of the pruned network, unit by unit, from x W', over the tolerance for rounding."""
    source, mask = construction.source, construction.masks["first"].clone()
    if flip:
        mask[0, 0, int(mask[0, 0].nonzero()[0])] = False
    first, second = source.get_parameter("first").double(), source.get_parameter("second").double()
    first = first if whole else first * mask
    x = draws.normal("units/x", 5, len(first))
    hidden = x[:, :, None, None] * first  # (inputs, rows, blocks, units): each unit has one input
    out = torch.einsum("xrbu,rbud->xbd", hidden, second).flatten(1) * source.get_buffer("scale").double()[0, 0]
    wanted = x @ construction.merged
    return float((out - wanted).norm() / (ROUNDING * wanted.norm()))
