"""Ranks of explicit attention (MEA) and of talking-heads attention.

Claim. In explicit attention without its norm, a head's W_QK is W_Q (sum_a t_a W_K,a)^T, of rank at most hidden for any
number of components. In talking-heads attention it is sum_k t_k W_Q,k W_K,k^T, of rank up to heads hidden. Both ranks
are at most d1. So the distance of an explicit head from a matrix, in spectral norm, is at least the matrix's singular
value number hidden + 1, which is attained; for talking heads it is number heads hidden + 1. The same holds for W_VO.

Ranks are counted in modules with random weights, as singular values above 1e-9 of the largest. The ratio of counted
rank and theory is checked in both directions, since both are attained. For distances, a search over the weights and the
mixing tensor of a head starts from random ones.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from proofs_check import draws
from proofs_check.check import Check, Control, Statement
from proofs_check.search import ascend
from slth import theory
from slth.attention import MultiheadExplicitAttention, TalkingHeadsAttention
from slth.construct.certificates import Merged, spectral_norm


class Case(NamedTuple):
    """A setting: d1 = d2, heads (components, logit heads, value heads), hidden."""

    d: int
    heads: int
    hidden: int


CASES = [Case(6, 4, 1), Case(6, 2, 2), Case(8, 3, 2), Case(8, 2, 5), Case(4, 3, 8)]
NEAR = Case(5, 3, 1)
SEEDS = 6


def check(share: float = 1.0) -> Statement:
    """Test the claim."""
    seeds = draws.count(SEEDS, share)
    explicit = {case: [rank for i in range(seeds) for rank in ranks(explicit_heads(case, i))] for case in CASES}
    talking = {case: [rank for i in range(seeds) for rank in ranks(talking_heads(case, i))] for case in CASES}
    least = {case: theory.explicit_rank(case.d, case.hidden) for case in CASES}
    most = {case: theory.talking_rank(*case) for case in CASES}
    counted = sum(map(len, explicit.values()))
    bounds = [bound(i) for i in range(seeds)]
    found, reached, by_talking = (
        [near(i) for i in range(seeds)] for near in (searched, truncated, partial(truncated, heads=NEAR.heads))
    )
    return Statement(
        "Ranks of explicit attention and of talking heads",
        (
            Check("explicit: at most hidden", counted, max(max(explicit[c]) / least[c] for c in CASES)),
            Check("explicit: no less", counted, max(least[c] / min(explicit[c]) for c in CASES)),
            Check("talking heads: at most heads hidden", counted, max(max(talking[c]) / most[c] for c in CASES)),
            Check("talking heads: no less", counted, max(most[c] / min(talking[c]) for c in CASES)),
            Check("explicit: no nearer than singular value hidden + 1", seeds, furthest(bounds, found)),
            Check("explicit: that is reached", seeds, furthest(reached, bounds)),
        ),
        (
            Control(
                "explicit: at most hidden - 1", max(max(explicit[c]) / (least[c] - 1) for c in CASES if least[c] > 1)
            ),
            Control("talking heads within explicit attention's rank", max(max(talking[c]) / least[c] for c in CASES)),
            Control("explicit attention as wide as talking heads", max(most[c] / min(explicit[c]) for c in CASES)),
            Control("talking heads: no nearer than singular value hidden + 1", furthest(bounds, by_talking)),
            Control("explicit: no nearer than 1.1 times that", 1.1 * furthest(bounds, found)),
        ),
    )


def furthest(left: list[float], right: list[float]) -> float:
    """Return the largest ratio of left to right."""
    return max(a / b for a, b in zip(left, right, strict=True))


def explicit_heads(case: Case, seed: int) -> Merged:
    """Return merged matrices of explicit attention without its norm."""
    module = MultiheadExplicitAttention(
        case.d, case.d, case.heads, case.hidden, norm=False, mixing_init="random", seed=seed, dtype=torch.float64
    )
    return module.merged()


def talking_heads(case: Case, seed: int) -> Merged:
    """Return merged matrices of talking-heads attention."""
    module = TalkingHeadsAttention(
        case.d, case.d, case.heads, case.hidden, mixing_init="random", seed=seed, dtype=torch.float64
    )
    return module.merged()


def ranks(merged: Merged) -> list[int]:
    """Return the rank of each head's W_QK and W_VO."""
    values = (torch.linalg.svdvals(matrix.detach()) for matrix in merged)
    return [rank for s in values for rank in (s > 1e-9 * s[..., :1]).sum(-1).tolist()]


def target(i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the SVD (u, s, v) of a random matrix u s v without small singular values."""
    u, s, v = torch.linalg.svd(draws.normal(f"rank/{i}/target", NEAR.d, NEAR.d))
    return u, s.clamp_min(0.3), v


def bound(i: int) -> float:
    """Return singular value number hidden + 1 of a target."""
    return target(i)[1][NEAR.hidden].item()


def truncated(i: int, *, heads: int = 1) -> float:
    """Return the distance reached with the largest singular values, `hidden` of them per head, mixed with factors 1."""
    u, s, v = target(i)
    step = NEAR.hidden
    parts = [slice(k * step, (k + 1) * step) for k in range(heads)]
    head = torch.stack([(u[:, part] * s[part]) @ v[part] for part in parts]).sum(0)
    return spectral_norm(head - u @ torch.diag(s) @ v).item()


def searched(i: int) -> float:
    """Return the least distance of an explicit head that a search over its weights and mixing tensor finds."""
    u, s, v = target(i)
    wanted = u @ torch.diag(s) @ v

    def value(q: torch.Tensor, k: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -spectral_norm(q @ (k * t[..., None, None]).sum(1).mT - wanted)

    cases, matrix = 12, (NEAR.d, NEAR.hidden)
    shapes = {"q": matrix, "k": (NEAR.heads, *matrix), "t": (NEAR.heads,)}
    start = {role: draws.normal(f"rank/{i}/{role}", cases, *shape) for role, shape in shapes.items()}
    return -ascend(value, start, steps=200, rate=0.1)
