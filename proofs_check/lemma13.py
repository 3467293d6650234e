"""Lemma 13, corrected: how much a block's outputs change with its inputs.

Claim. Under the conditions of Lemma 12, and for a network F of spectral norms <= 1, the block y = Attn(x) + x, F(y) + y
moves by at most 2 H sqrt(d1) (alpha (exp(4 alpha e) - 1) + 2e), with 2 (alpha + alpha') instead of 4 alpha if x' is
bounded by alpha'.

The paper prints half of this bound, while its proof gives the full one. Half of it is false for small alpha, which is
one of the controls (T = d1 = H = 1 and all weights 1: the block is 4x). For alpha >= sqrt(d1), which the paper assumes,
no counterexample is found; for d1 >= 2 it follows from our tight form 2 (H (2 alpha tanh(alpha e) + e) + e), see
`slth.theory.lemma13_block`.
"""

from __future__ import annotations

import math

import torch

from proofs_check import draws
from proofs_check.check import Check, Control, Statement, worst
from proofs_check.lemma12 import Case, cases_with, moved_pair, shapes
from proofs_check.search import FEW, ascend, distance
from slth import theory
from slth.attention import merged_attention

CASES = cases_with(1.0)
ALPHA_AS_ASSUMED = [case for case in CASES if case.alpha >= math.sqrt(case.d)]
LAYERS = 2


def check(share: float = 1.0) -> Statement:
    """Test the lemma."""
    each = draws.count(160, share)
    found = {case: worst_change(case, each) for case in CASES}
    assumed = {case: found[case] for case in ALPHA_AS_ASSUMED}
    doubled = {case: worst_change(case, each) for case in cases_with(2.0)}
    expanding = {case: worst_change(case, FEW, norm=3.0) for case in CASES[:4]}
    other_mask = {case: worst_change(case, FEW, flip=True) for case in CASES[4:]}
    return Statement(
        "Lemma 13, corrected: change of the inputs of a block",
        (
            Check("corrected: twice the printed bound", len(CASES) * each, worst(found, corrected)),
            Check("x' of norm <= 2 alpha, exponent 6 alpha e", len(CASES) * each, worst(doubled, corrected)),
            Check("tight: 2 (H (2 alpha tanh(alpha e) + e) + e)", len(CASES) * each, worst(found, tight)),
            Check("as printed, where alpha >= sqrt(d1)", len(assumed) * each, worst(assumed, printed)),
        ),
        (
            Control("as printed, alpha < sqrt(d1) too", worst(found, printed)),
            Control("without H", worst(found, lambda case: corrected(case) / case.heads)),
            Control("without the residuals (e for 2e)", worst(found, without_residuals)),
            Control("without the softmax's term", worst(found, without_softmax)),
            Control("the tight form halved", worst(found, lambda case: tight(case) / 2)),
            Control("layers of norm 3 in the network", worst(expanding, corrected)),
            Control("one bit of the attention mask flipped", worst(other_mask, corrected)),
        ),
    )


def corrected(case: Case) -> float:
    """Right side of the lemma as its proof gives it."""
    return theory.lemma13_block(case.drift, case.d, case.heads, case.alpha, case.moved_alpha)


def printed(case: Case) -> float:
    """Right side of the lemma as printed."""
    return corrected(case) / 2


def tight(case: Case) -> float:
    """Right side of our form."""
    return theory.tanh_block(case.drift, case.heads, case.alpha, case.moved_alpha)


def without_residuals(case: Case) -> float:
    """Right side if x is not added to Attn(x)."""
    return 2 * theory.lemma12_attention(case.drift, case.d, case.heads, case.alpha, case.moved_alpha)


def without_softmax(case: Case) -> float:
    """Right side without its first term."""
    return 4 * case.heads * math.sqrt(case.d) * case.drift


def worst_change(case: Case, cases: int, *, norm: float = 1.0, flip: bool = False) -> float:
    """Return the largest change that a search over x, x' and all matrices finds.

    norm: norm of the network's layers. flip: x' has one more key than x.
    """
    name = f"lemma13/{case}"
    before, after = draws.mask_pair(f"{name}/mask", flip, cases, case.length, case.length)

    def value(
        x: torch.Tensor, move: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, layers: torch.Tensor
    ) -> torch.Tensor:
        x, moved = moved_pair(x, move, case.alpha, case.moved_alpha, case.drift)
        qk, vo, layers = draws.contraction(qk), draws.contraction(vo), norm * draws.contraction(layers)
        return distance(block(x, qk, vo, layers, before), block(moved, qk, vo, layers, after))

    return ascend(value, draws.all_starts(name, cases, shapes(case) | {"layers": (LAYERS, case.d, case.d)}))


def block(
    x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, layers: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Compute the block on x (cases, T, d): qk, vo (cases, H, d, d); layers (cases, L, d, d) with ReLU between them."""
    y = merged_attention(x, qk, vo, mask) + x
    return network(y, layers) + y


def network(x: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
    """x W_1 -> ReLU -> ... -> W_L: x (cases, T, d), layers (cases, L, d, d)."""
    for i, weight in enumerate(layers.unbind(-3)):
        x = (x.relu() if i else x) @ weight
    return x
