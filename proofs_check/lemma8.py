"""Lemma 8 (Lemma 5 in the main text): how much a softmax average changes with its logits.

Claim. Logits z and their change e (T,) with |e_k| <= m, inputs X (T, d1) with rows of norm <= alpha, any attention
mask a with a 1. Then ||softmax(z; a) X - softmax(z + e; a) X||_2 <= sqrt(d1) alpha (exp(2m) - 1), and for m <= 1/2 at
most 4 sqrt(d1) alpha m (Lemma 5), independently of T. In the proof the paper shows |p'_k - p_k| <= p_k (exp(2m) - 1).

The printed bounds are not tight: the left side reaches at most 2 alpha tanh(m/2), which is 1/2 of the right side for
d1 = 1 and small m (1/4 in Lemma 5). So half of Lemma 8 still holds, and the control uses a third. The tight form
2 alpha tanh(m/2) is attained, so half of it fails. Similarly exp(m) - 1 would suffice instead of exp(2m) - 1 for the
average, but not for the single weights, where the paper's step is sharp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from proofs_check import draws
from proofs_check.check import Check, Control, Statement, worst
from proofs_check.search import FEW, ascend
from slth import theory


class Case(NamedTuple):
    """A setting: T, d1, m, alpha."""

    length: int
    d: int
    m: float
    alpha: float


CASES = [
    Case(length, d, m, alpha)
    for length, d, alpha in ((2, 1, 1.0), (3, 2, math.sqrt(2)), (8, 1, 8.0), (5, 4, 2.0), (64, 3, 4.0))
    for m in (0.01, 0.1, 0.5, 3.0)
]
Bound = Callable[[Case], float]


def check(share: float = 1.0) -> Statement:
    """Test the lemma."""
    each = draws.count(150, share)
    found = {case: worst_move(case, each) for case in CASES}
    small = {case: left for case, left in found.items() if case.m <= 0.5}
    masked = {case: worst_move(case, FEW, flip=True) for case in CASES[:8]}
    total, weights = len(CASES) * each, draws.count(4000, share)

    def lemma8(case: Case) -> float:
        return theory.lemma8_softmax(case.m, case.d, case.alpha)

    def lemma5(case: Case) -> float:
        return theory.lemma5_softmax(case.m, case.d, case.alpha)

    def tanh(case: Case) -> float:
        return theory.tanh_softmax(case.m, case.alpha)

    return Statement(
        "Lemma 8 (5): softmax",
        (
            Check("Lemma 8, sqrt(d1) alpha (exp(2m) - 1)", total, worst(found, lemma8)),
            Check("Lemma 5, 4 sqrt(d1) alpha m for m <= 1/2", len(small) * each, worst(small, lemma5)),
            Check("without sqrt(d1)", total, worst(found, lambda case: theory.exp_softmax(case.m, case.alpha))),
            Check("tight: 2 alpha tanh(m/2)", total, worst(found, tanh)),
            Check("tight, two opposite groups of keys, T = 2 to 65536", 16, max(map(opposite_groups, range(1, 17)))),
            Check("each weight: |p'_k - p_k| <= p_k (exp(2m) - 1)", weights, worst_weight(weights, 2.0)),
        ),
        (
            Control("a third of Lemma 8", worst(found, lambda case: lemma8(case) / 3)),
            Control("Lemma 8 without alpha", worst(found, lambda case: lemma8(case) / case.alpha)),
            Control("Lemma 8 shrinking with T", worst(found, lambda case: lemma8(case) / case.length)),
            Control("Lemma 5 without alpha", worst(small, lambda case: lemma5(case) / case.alpha)),
            Control("the tight form halved", worst(found, lambda case: tanh(case) / 2)),
            Control("the tight form without alpha", worst(found, lambda case: tanh(case) / case.alpha)),
            Control("each weight with exp(m) for exp(2m)", worst_weight(weights, 1.0)),
            Control("one bit of the attention mask flipped", worst(masked, lemma8)),
        ),
    )


def worst_move(case: Case, cases: int, *, flip: bool = False) -> float:
    """Return the largest change of the average that a search over z, e and X finds; flip: the change adds a key."""
    name = f"lemma8/{case}"
    before, after = draws.mask_pair(f"{name}/mask", flip, cases, case.length)

    def value(z: torch.Tensor, e: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        move = softmax(z + draws.box(e, case.m), after) - softmax(z, before)  # (cases, T)
        points = draws.ball(x, case.alpha)
        length: torch.Tensor = torch.linalg.vector_norm((move[..., None] * points).sum(-2), dim=-1)
        return length

    shapes = {"z": (case.length,), "e": (case.length,), "x": (case.length, case.d)}
    return ascend(value, draws.all_starts(name, cases, shapes))


def softmax(z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute softmax(z; mask) over the last axis."""
    return z.masked_fill(~mask, -torch.inf).softmax(-1)


def opposite_groups(k: int) -> float:
    """Return left / right for equality of the tight form at T = 2^k, m = 1/2: half of the keys at x, half at -x."""
    m, half = 0.5, 2 ** (k - 1)
    signs = torch.cat((-torch.ones(half), torch.ones(half))).double()
    z = signs * m / 2
    left = ((z - signs * m).softmax(-1) - z.softmax(-1)) @ signs
    return left.abs().item() / theory.tanh_softmax(m, 1.0)


def worst_weight(cases: int, times: float) -> float:
    """Return the largest |p'_k - p_k| / (p_k (exp(times m) - 1)) over logits and changes at their bounds, m <= 1."""
    m = 0.05 + draws.uniform("lemma8/weights/m", cases, 1).abs()
    spread = 12 * draws.uniform("lemma8/weights/spread", cases, 1).abs()
    z = spread * draws.normal("lemma8/weights/z", cases, 6)
    e = m * draws.uniform("lemma8/weights/e", cases, 6).sign()
    ratio = ((z + e).softmax(-1) / z.softmax(-1) - 1).abs() / torch.expm1(times * m)
    return ratio.max().item()
