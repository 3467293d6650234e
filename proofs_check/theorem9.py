"""Theorem 9 (Theorem 3 in the main text): an attention hidden in a random one.

Claim. Target with H heads, each of its factors of spectral norm <= 1; source with the same d1, d2, H, entries
U[-n_K^(1/4), n_K^(1/4)] for query and key, U[-1, 1] for value and output; inputs of norm <= alpha, alpha >=
max(sqrt d1, sqrt d2), any length, any attention mask. If n_K >= d1 C log(8 H alpha^3 d1^(3/2) / eps) and
n_V >= d1 C log(2 H alpha d1 sqrt(d2) / eps), then with probability >= 1 - eps masks exist for which
max_i ||Attn_S(x_i) - Attn_T(x_i)|| <= eps. (In the last line of its proof the failure probabilities of a head must be
multiplied by H; they still add up to less than eps.)

There are two tests. First, with merged matrices whose entries have errors within the budget of the proof, the error of
the output is at most eps. A search over inputs, targets (merged matrices within their norm bounds, d_K = 1) and errors
reaches half of it at d1 = d2 = 1, so the control uses a third. (The error of the softmax is largest at a tie of
opposite inputs, whose average is 0, so that W_VO has no error there.) Second, random sources of these widths, with the
measured constant, reach such matrices; their error is bounded for all inputs by the certificate of `slth.construct`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from proofs_check import draws, sources
from proofs_check.check import Check, Control, Statement, exists, missing, worst
from proofs_check.search import FEW, ascend, distance
from proofs_check.sources import hidden_for, leave
from slth import theory
from slth.attention import MultiHeadAttention, merged_attention
from slth.construct import attention, certificate


class Case(NamedTuple):
    """A setting: d1, d2, H, alpha, eps, as the theory's functions take them, and T."""

    d_in: int
    d_out: int
    heads: int
    alpha: float
    epsilon: float
    length: int = 4

    @property
    def layer(self) -> tuple[int, int, int, float, float]:
        """All but T."""
        return self[:5]


GIVEN = [
    Case(1, 1, 1, 1.0, 0.1, 3),
    Case(1, 1, 3, 1.0, 0.9, 3),
    Case(1, 1, 1, 4.0, 0.1, 3),
    Case(2, 1, 1, math.sqrt(2), 0.1),
    Case(4, 2, 2, 2.0, 0.01),
    Case(2, 4, 1, 6.0, 0.5),
    Case(3, 3, 2, math.sqrt(3), 0.1, 12),
]
DRAWN = [Case(2, 1, 1, math.sqrt(2), 0.2), Case(2, 2, 2, math.sqrt(2), 0.2), Case(3, 3, 1, math.sqrt(3), 0.3)]
SOURCES = 40  # random sources per setting; controls use half as many
SCALE = "logits over sqrt(d_K) in place of sqrt(n_K)"
Bound = Callable[[Case], float]


def check(share: float = 1.0) -> Statement:
    """Test the theorem."""
    each = draws.count(160, share)
    given = {case: worst_given(case, each) for case in GIVEN}
    total = len(GIVEN) * each
    one = DRAWN[0]
    return Statement(
        "Theorem 9 (3): attention",
        (
            Check("merged matrices at the accuracy of the proof: eps", total, worst(given, lambda c: c.epsilon)),
            Check("the same by Lemma 8, as in the proof", total, max(by_lemma8(case, each) for case in GIVEN)),
            *(exists(f"sources, {title(case)}", bounds(case), case.epsilon) for case in DRAWN),
        ),
        (
            Control("a third of eps", worst(given, lambda case: case.epsilon / 3)),
            Control("half of eps by Lemma 8", 2 * max(by_lemma8(case, FEW) for case in GIVEN)),
            Control("W_QK without alpha^2", coarse(FEW, qk=lambda case: case.alpha**2)),
            Control("W_VO without d1 sqrt(d2)", coarse(FEW, vo=lambda case: case.d_in * math.sqrt(case.d_out))),
            Control("W_VO without H", coarse(FEW, vo=lambda case: case.heads)),
            missing("a quarter of the widths", errors(one, width=0.25), one.epsilon),
            missing(SCALE, errors(one, spoil=wrong_scale), one.epsilon),
            missing("one bit of the output mask flipped", errors(one, spoil=flip_output), one.epsilon),
            missing("one bit of the key mask flipped", errors(one, spoil=flip_key), one.epsilon),
            Control("one bit of the attention mask flipped", other_mask(one, FEW)),
        ),
    )


def title(case: Case) -> str:
    """Describe the setting in words."""
    return f"d1={case.d_in}, d2={case.d_out}, H={case.heads}, eps={case.epsilon}"


# given errors


def worst_given(case: Case, cases: int, *, qk_times: float = 1.0, vo_times: float = 1.0) -> float:
    """Return the largest error found by a search over inputs, targets and errors up to the budget times a factor."""
    name = f"theorem9/{case}"
    budget = theory.theorem9_budget(*case.layer)
    mask = draws.attention_mask(f"{name}/mask", cases, case.length, case.length)

    def value(
        x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, d_qk: torch.Tensor, d_vo: torch.Tensor
    ) -> torch.Tensor:
        x, qk, vo = draws.ball(x, case.alpha), draws.contraction(qk), draws.contraction(vo)
        pruned_qk = qk + draws.box(d_qk, qk_times * budget.qk_max_norm)
        pruned_vo = vo + draws.box(d_vo, vo_times * budget.vo_max_norm)
        return distance(merged_attention(x, pruned_qk, pruned_vo, mask), merged_attention(x, qk, vo, mask))

    square, flat = (case.heads, case.d_in, case.d_in), (case.heads, case.d_in, case.d_out)
    shapes = {"x": (case.length, case.d_in), "qk": square, "d_qk": square, "vo": flat, "d_vo": flat}
    return ascend(value, draws.all_starts(name, cases, shapes))


def coarse(cases: int, *, qk: Bound = lambda case: 1.0, vo: Bound = lambda case: 1.0) -> float:
    """Return the worst error over eps if the accuracy of W_QK or W_VO lacks a factor."""
    return max(worst_given(case, cases, qk_times=qk(case), vo_times=vo(case)) / case.epsilon for case in GIVEN)


def by_lemma8(case: Case, cases: int) -> float:
    """Return the proof's sum over eps, at errors of the full budget with random signs."""
    name = f"theorem9/lemma8/{case}"
    budget = theory.theorem9_budget(*case.layer)
    square, flat = (cases, case.heads, case.d_in, case.d_in), (cases, case.heads, case.d_in, case.d_out)
    qk, vo = (draws.contraction(3 * draws.normal(f"{name}/{role}", *s)) for role, s in (("qk", square), ("vo", flat)))
    d_qk, d_vo = (draws.uniform(f"{name}/d{role}", *s).sign() for role, s in (("qk", square), ("vo", flat)))
    pruned = (qk + budget.qk_max_norm * d_qk, vo + budget.vo_max_norm * d_vo)
    return certificate((qk, vo), pruned, case.alpha).lemma8.max().item() / case.epsilon


def other_mask(case: Case, cases: int) -> float:
    """Return the worst error over eps of a target against itself with one more key."""
    name = f"theorem9/other_mask/{case}"
    before = torch.ones(case.length, case.length, dtype=torch.bool)
    before[0, 1] = False

    def value(x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor) -> torch.Tensor:
        x, qk, vo = draws.ball(x, case.alpha), draws.contraction(qk), draws.contraction(vo)
        return distance(merged_attention(x, qk, vo, before), merged_attention(x, qk, vo))

    square, flat = (case.heads, case.d_in, case.d_in), (case.heads, case.d_in, case.d_out)
    shapes = {"x": (case.length, case.d_in), "qk": square, "vo": flat}
    return ascend(value, draws.all_starts(name, cases, shapes)) / case.epsilon


# random sources


def target(case: Case, i: int, *, hidden: int = 8) -> MultiHeadAttention:
    """Draw a target with factors of spectral norm 1; for every other i W_VO is a diagonal of signs, a hard corner."""
    module = MultiHeadAttention(case.d_in, case.d_out, case.heads, hidden, seed=2 * i, dtype=torch.float64)
    if i % 2:
        signs = draws.uniform(f"theorem9/{case}/{i}", case.heads, case.d_in, hidden).sign()
        with torch.no_grad():
            module.value.copy_(signs * torch.eye(case.d_in, hidden))
            module.output.copy_(torch.eye(hidden, case.d_out).expand_as(module.output))
    return draws.at_norm_one(module)


def pair(case: Case, i: int, *, width: float = 1.0) -> tuple[MultiHeadAttention, MultiHeadAttention]:
    """Draw the i-th target and its random source at width times the theorem's widths, float64."""
    asked = theory.theorem9_hidden(*case.layer, constant="measured")
    hidden_qk, hidden_vo = (hidden_for(n, case.d_in, width) for n in asked)
    source = MultiHeadAttention(
        case.d_in, case.d_out, case.heads, hidden_qk, hidden_vo=hidden_vo, seed=2 * i + 1, dtype=torch.float64
    )
    return target(case, i), source.requires_grad_(False)


def bounds(case: Case) -> list[float]:
    """Return a bound on the error over eps, for all inputs, of each pruned source."""
    return [
        attention(*pair(case, i), side="input", threads=1, alpha=case.alpha).certificate.bound.item() / case.epsilon
        for i in range(SOURCES)
    ]


Spoil = Callable[[MultiHeadAttention], None]


def errors(case: Case, *, width: float = 1.0, spoil: Spoil = leave) -> list[float]:
    """Return the error over eps on some inputs of each pruned source, after spoil has changed it in place."""
    pairs = (pair(case, i, width=width) for i in range(SOURCES // 2))
    found = sources.errors("theorem9/errors", pairs, masks, spoil, d=case.d_in, alpha=case.alpha)
    return [error / case.epsilon for error in found]


def masks(target: MultiHeadAttention, source: MultiHeadAttention) -> dict[str, torch.Tensor]:
    """Construct the masks to test."""
    return attention(target, source, side="input", threads=1).masks


def wrong_scale(source: MultiHeadAttention) -> None:
    """Replace 1/sqrt(n_K) by the target's 1/sqrt(8)."""
    source.scale_qk *= math.sqrt(source.hidden_qk / 8)


def flip_output(source: MultiHeadAttention) -> None:
    """Prune one weight of the output factor."""
    draws.prune_largest(source.output)


def flip_key(source: MultiHeadAttention) -> None:
    """Prune one weight of the key factor."""
    draws.prune_largest(source.key)
