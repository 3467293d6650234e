"""Ranks: what explicit attention (MEA) can be, and what talking heads can.

Claim. A head's W_QK is W_Q (sum_a t_a W_K,a)^T in explicit attention without its norm, of rank at most hidden however
many components are mixed, and sum_k t_k W_Q,k W_K,k^T in talking-heads attention, of rank up to heads hidden; both at
most d1. So an explicit head comes no nearer to a matrix, in spectral norm, than its singular value number hidden + 1, and
reaches that; talking heads come as near as number heads hidden + 1. The same holds for W_VO.

Ranks are counted in modules with random weights, by singular values above 1e-9 of the largest. A rank counted is put
over the theory's, and the other way round, since both are attained. For distances, a search over the weights and mixing
tensors of a head starts from many random ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from proofs_check import draws
from proofs_check.check import Check, Control, Statement
from proofs_check.search import ascend
from slth import theory
from slth.attention import MultiheadExplicitAttention, TalkingHeadsAttention
from slth.construct.certificate import Merged, spectral_norm


class Case(NamedTuple):
    """A setting: d1 = d2, heads (components, logit heads, value heads), hidden."""

    d: int
    heads: int
    hidden: int


CASES = [Case(6, 4, 1), Case(6, 2, 2), Case(8, 3, 2), Case(8, 2, 5), Case(4, 3, 8)]
NEAR = Case(5, 3, 1)
SEEDS = 10


def check(share: float = 1.0) -> Statement:
    """Put the claim to the test."""
    seeds = draws.count(SEEDS, share)
    explicit = {case: [rank for i in range(seeds) for rank in ranks(explicit_heads(case, i))] for case in CASES}
    talking = {case: [rank for i in range(seeds) for rank in ranks(talking_heads(case, i))] for case in CASES}
    least = {case: theory.explicit_rank(case.d, case.hidden) for case in CASES}
    most = {case: theory.talking_rank(*case) for case in CASES}
    counted = sum(map(len, explicit.values()))
    explicit_near, talking_near = nearest(NEAR, seeds, mixing=False), nearest(NEAR, seeds, mixing=True)
    return Statement(
        "Ranks of explicit attention and of talking heads",
        (
            Check("explicit: at most hidden", counted, max(max(explicit[c]) / least[c] for c in CASES)),
            Check("explicit: no less", counted, max(least[c] / min(explicit[c]) for c in CASES)),
            Check("talking heads: at most heads hidden", counted, max(max(talking[c]) / most[c] for c in CASES)),
            Check("talking heads: no less", counted, max(most[c] / min(talking[c]) for c in CASES)),
            Check("explicit: no nearer than singular value hidden + 1", seeds, explicit_near.beyond),
            Check("explicit: 1.02 times that is reached", seeds, explicit_near.short / 1.02),
        ),
        (
            Control("explicit: at most hidden - 1", max(max(explicit[c]) / (least[c] - 1) for c in CASES if least[c] > 1)),
            Control("talking heads within explicit attention's rank", max(max(talking[c]) / least[c] for c in CASES)),
            Control("explicit attention as wide as talking heads", max(most[c] / min(explicit[c]) for c in CASES)),
            Control("talking heads: no nearer than singular value hidden + 1", talking_near.beyond),
            Control("explicit: no nearer than 1.05 times that", 1.05 * explicit_near.beyond),
        ),
    )


def explicit_heads(case: Case, seed: int) -> Merged:
    """Merged matrices of explicit attention without its norm."""
    module = MultiheadExplicitAttention(
        case.d, case.d, case.heads, case.hidden, norm=False, mixing_init="random", seed=seed, dtype=torch.float64
    )
    return module.merged()


def talking_heads(case: Case, seed: int) -> Merged:
    """Merged matrices of talking-heads attention."""
    module = TalkingHeadsAttention(
        case.d, case.d, case.heads, case.hidden, mixing_init="random", seed=seed, dtype=torch.float64
    )
    return module.merged()


def ranks(merged: Merged) -> list[int]:
    """The rank of each head's W_QK and W_VO."""
    values = (torch.linalg.svdvals(matrix.detach()) for matrix in merged)
    return [rank for s in values for rank in (s > 1e-9 * s[..., :1]).sum(-1).tolist()]


class Distance(NamedTuple):
    """Of the nearest head: beyond, the bound over it in the worst case; short, it over the bound."""

    beyond: float
    short: float


def nearest(case: Case, targets: int, *, mixing: bool) -> Distance:
    """Search for the head nearest to each of some random targets; mixing: of logits, as talking heads do it."""
    found = []
    for i in range(targets):
        name = f"rank/{case}/{i}"
        u, s, v = torch.linalg.svd(draws.normal(f"{name}/target", case.d, case.d))
        wanted = u @ torch.diag(s.clamp_min(0.3)) @ v  # so that no singular value is too small to tell
        bound = torch.linalg.svdvals(wanted)[case.hidden].item()

        def value(q: torch.Tensor, k: torch.Tensor, t: torch.Tensor, wanted: torch.Tensor = wanted) -> torch.Tensor:
            if mixing:
                head = (q @ k.mT * t[..., None, None]).sum(1)  # (cases, d, d)
            else:
                head = q[:, 0] @ (k * t[..., None, None]).sum(1).mT
            return -spectral_norm(head - wanted)

        shape = (case.heads, case.d, case.hidden)
        start = {role: draws.normal(f"{name}/{role}", 24, *shape) for role in ("q", "k")}
        start["t"] = draws.normal(f"{name}/t", 24, case.heads)
        found.append((-ascend(value, start, steps=400, rate=0.1), bound))
    return Distance(max(bound / d for d, bound in found), max(d / bound for d, bound in found))
