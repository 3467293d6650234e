"""RoPE: approximate each W_Q and W_K, through a matrix that all heads share (knocking heads with a shared width).

Claim. Target with H heads of width m, W_Q and W_K of spectral norm <= 1; source x W_Q T, projections (d1 x n) of each
head and T (n x m) for all, entries U[-1, 1]. If n >= m C log(8 H d1 max(3 alpha^3, m) / eps), then with probability
>= 1 - eps/4 masks exist for which the error of every entry of every W_Q and W_K is at most
eps / (8 H d1 max(3 alpha^3, m)). Then the error of logits of inputs of norm <= alpha, at any two positions, is at most
eps / (8 H alpha sqrt(d1)), which is the one that Theorem 9 allows. The factor of the logarithm is m instead of d1.

There are two tests. First, with errors of all entries of W_Q and W_K within that bound, a search over inputs, weights,
errors and positions finds errors of logits up to two thirds of the allowed ones, so the control uses a half. Second,
random sources reach such projections. There is no claim for W_V W_O: its candidates share the few weights of the output
projection, and with as many features as outputs, sources fail at the width of Lemma 7 for chains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from proofs_check import draws
from proofs_check.check import Check, Control, Statement, exists, missing, worst
from proofs_check.search import FEW, ascend
from proofs_check.sources import hidden_for, leave
from slth import theory
from slth.attention import GroupedQueryAttention, LinearKnockingHeads, rope
from slth.construct import pruned, variant


class Case(NamedTuple):
    """A setting: d1, d2, H, m, alpha, eps, as the theory's functions take them."""

    d_in: int
    d_out: int
    heads: int
    hidden: int
    alpha: float
    epsilon: float


GIVEN = [
    Case(1, 1, 1, 2, 1.0, 0.1),
    Case(2, 1, 1, 2, math.sqrt(2), 0.9),
    Case(3, 2, 2, 4, 4.0, 0.1),
    Case(2, 2, 2, 16, math.sqrt(2), 0.01),
]
DRAWN = [Case(2, 2, 1, 2, math.sqrt(2), 0.4), Case(2, 4, 2, 4, 2.0, 0.4)]
SOURCES = 50  # random sources per setting; controls use half as many
Spoil = Callable[[LinearKnockingHeads], None]


def check(share: float = 1.0) -> Statement:
    """Test the claim."""
    each = draws.count(120, share)
    given = {case: worst_given(case, each) for case in GIVEN}
    coarse = {case: worst_given(case, FEW, times=case.alpha**2) for case in GIVEN}
    sharing = {case: worst_given(case, FEW, times=math.sqrt(case.d_in)) for case in GIVEN}
    one = DRAWN[0]
    return Statement(
        "RoPE: queries and keys by themselves",
        (
            Check("logits from projections at that accuracy", len(GIVEN) * each, worst(given, logits)),
            *(
                exists(f"sources, d1={c.d_in}, H={c.heads}, m={c.hidden}, eps={c.epsilon}", drawn(c), c.epsilon / 4)
                for c in DRAWN
            ),
        ),
        (
            Control("half of what logits are allowed", worst(given, lambda case: logits(case) / 2)),
            Control("accuracy without alpha^2", worst(coarse, logits)),
            Control("accuracy with sqrt(d1) for d1", worst(sharing, logits)),
            missing("a quarter of the width", drawn(one, width=0.25), one.epsilon / 4),
            missing("one bit of a query mask flipped", drawn(one, spoil=flip), one.epsilon / 4),
            missing("T with a feature of the next", drawn(one, spoil=roll), one.epsilon / 4),
            missing("values, with as many features as outputs", values(one), one.epsilon / 4),
        ),
    )


def logits(case: Case) -> float:
    """Return the error of logits that Theorem 9 allows."""
    return theory.theorem9_budget(case.d_in, case.d_out, case.heads, case.alpha, case.epsilon).logits


def worst_given(case: Case, cases: int, *, times: float = 1.0) -> float:
    """Return the largest error of a logit that a search over inputs, a head's weights and bounded errors finds.

    times: factor by which errors may exceed the accuracy. Query and key are at positions 5 and 0.
    """
    accuracy = times * theory.projection_accuracy(*case)
    at = torch.tensor([5]), torch.tensor([0])

    def value(
        x: torch.Tensor, y: torch.Tensor, q: torch.Tensor, k: torch.Tensor, d_q: torch.Tensor, d_k: torch.Tensor
    ) -> torch.Tensor:
        q, k = draws.contraction(q), draws.contraction(k)
        x, y = draws.ball(x, case.alpha)[:, None], draws.ball(y, case.alpha)[:, None]  # (cases, 1, d1)
        off_q, off_k = q + draws.box(d_q, accuracy), k + draws.box(d_k, accuracy)
        right, wrong = ((rope(x @ a, at[0]) * rope(y @ b, at[1])).sum((-2, -1)) for a, b in ((q, k), (off_q, off_k)))
        return (right - wrong).abs() / math.sqrt(case.hidden)

    vector, matrix = (case.d_in,), (case.d_in, case.hidden)
    shapes = {"x": vector, "y": vector, "q": matrix, "k": matrix, "d_q": matrix, "d_k": matrix}
    return ascend(value, draws.all_starts(f"projections/{case}", cases, shapes))


# random sources


@torch.no_grad()
def pair(case: Case, i: int, width: float) -> tuple[GroupedQueryAttention, LinearKnockingHeads]:
    """Draw the i-th target, with factors of norm 1, and its random source of U[-1, 1]. W_VO is a unit matrix."""
    options: dict[str, Any] = {"rope": True, "dtype": torch.float64}
    sizes = (case.d_in, case.d_out, case.heads, case.hidden)
    target = GroupedQueryAttention(*sizes, seed=2 * i, **options)
    asked = theory.projection_width(*case, constant="measured")
    n = hidden_for(asked, case.hidden, width)
    source = LinearKnockingHeads(*sizes, shared_width=n, seed=2 * i + 1, **options)
    for name, weight in source.named_parameters():
        weight.copy_(draws.uniform(f"projections/{case}/{i}/{name}", *weight.shape))
    for weight in (target.value, target.output):
        weight.copy_(torch.eye(*weight.shape[1:]).expand_as(weight))
    return draws.at_norm_one(target), source.requires_grad_(False)


def drawn(case: Case, *, width: float = 1.0, spoil: Spoil = leave) -> list[float]:
    """Return the largest error of an entry of W_Q and W_K over the allowed one, for each source changed by spoil."""
    ratios = []
    for i in range(SOURCES if spoil is leave and width == 1 else SOURCES // 2):
        target, source = pair(case, i, width)
        source = pruned(source, variant(target, source, threads=1).masks)
        spoil(source)
        got = source.absorb()
        errors = [(getattr(got, role) - getattr(target, role)).abs().max() for role in ("query", "key")]
        ratios.append(max(errors).item() / theory.projection_accuracy(*case))
    return ratios


def flip(source: LinearKnockingHeads) -> None:
    """Prune one weight of the query projections."""
    draws.prune_largest(source.query)


@torch.no_grad()
def roll(source: LinearKnockingHeads) -> None:
    """Exchange the features of the shared matrix of queries."""
    mixing = source.get_parameter("mix_query")
    mixing.copy_(mixing.roll(1, 1))


def values(case: Case) -> list[float]:
    """Return the largest error of an entry of W_VO over the one that Theorem 9 allows, at a width for 3 factors."""
    layer = (case.d_in, case.d_out, case.heads, case.alpha, case.epsilon)
    allowed = theory.theorem9_budget(*layer).vo_max_norm
    asked = theory.chain_hidden(case.d_out, case.d_in, allowed * case.d_in * case.d_out, 3, "measured")
    full = theory.projection_width(*case, constant="measured")
    found = (variant(*pair(case, i, max(1.0, asked / full)), threads=1) for i in range(SOURCES // 2))
    return [one.errors["vo"].abs().max().item() / allowed for one in found]
