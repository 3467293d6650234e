"""Theorem 9 with shared heads: grouped-query, grouped-tied and explicit attention.

Claim. Source with one key and value for all heads, otherwise as in Theorem 9. The widths of Theorem 9 suffice, since
keys and values have structural masks, which are the same for all heads, and the failure probabilities of all entries
add up whether entries are independent or not. If key and value are one projection U[-n^(1/4), n^(1/4)], the sums of
values must be n^(1/4) times finer. If they are mixtures of many components, by columns of norm 1, C is proportional to
one over the uniform part of a normal factor.

Targets are those of Theorem 9, with different heads. Random sources at these widths, with the measured constant, are
pruned, and their error is bounded for all inputs by the certificate of `slth.construct`. That the accuracy of entries
suffices does not depend on the source; see Theorem 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from proofs_check import draws, sources
from proofs_check.check import Statement, exists, missing
from proofs_check.sources import hidden_for, leave
from proofs_check.theorem9 import Case, target, title
from slth import theory
from slth.attention import (
    Attention,
    GroupedTiedAttention,
    MultiHeadAttention,
    MultiheadExplicitAttention,
    MultiQueryAttention,
)
from slth.construct import AttentionConstruction, variant

DRAWN = [Case(2, 1, 2, math.sqrt(2), 0.2), Case(2, 2, 2, math.sqrt(2), 0.3)]
SOURCES = 40  # random sources per setting; controls use half as many
COMPONENTS = 16
Build = Callable[[Case, int, float], Attention]


def check(share: float = 1.0) -> Statement:
    """Test the claim. Nothing depends on share, since confidence bounds need all sources."""
    one = DRAWN[1]
    return Statement(
        "Theorem 9 where heads share keys and values",
        tuple(
            exists(f"{name}, {title(case)}", bounds(case, build), case.epsilon)
            for name, build in BUILD.items()
            for case in DRAWN
        ),
        (
            *(missing(f"{name}, 1/8 of the width", errors(one, BUILD[name], 1 / 8), one.epsilon) for name in BUILD),
            missing("one bit of the shared key mask flipped", errors(one, multi_query, spoil=flip_key), one.epsilon),
            missing("one bit of the tied mask flipped", errors(one, tied, spoil=flip_tied), one.epsilon),
            missing("heads' outputs exchanged", errors(one, multi_query, spoil=exchange), one.epsilon),
            missing("one bit of the mixing tensor flipped", errors(one, explicit, spoil=flip_mixing), one.epsilon),
        ),
    )


# random sources: build(case, i, width), at width times the required width


def multi_query(case: Case, i: int, width: float) -> Attention:
    """Make a source with one key and value for all heads."""
    asked = theory.grouped_hidden(*case.layer, constant="measured")
    hidden = hidden_for(asked, case.d_in, width)
    return MultiQueryAttention(case.d_in, case.d_out, case.heads, hidden, seed=2 * i + 1, dtype=torch.float64)


@torch.no_grad()
def tied(case: Case, i: int, width: float) -> Attention:
    """Make a source with one projection for all. Its factor n^(1/4) is that of the whole width, with the surplus."""
    asked = max(case.d_in, round(width * theory.tied_hidden(*case.layer, constant="measured")))
    hidden = hidden_for(asked, case.d_in, 1.0)
    module = GroupedTiedAttention(
        case.d_in, case.d_out, case.heads, hidden, kv_heads=1, seed=2 * i + 1, dtype=torch.float64
    )
    module.key_value.mul_((asked / hidden) ** 0.25)
    module.query.mul_((hidden / asked) ** 0.25)
    return module


@torch.no_grad()
def explicit(case: Case, i: int, width: float) -> Attention:
    """Make a source with one key and value for all, each a mixture of components by a column of norm 1."""
    asked = theory.explicit_hidden(*case.layer, constant="measured")
    hidden = hidden_for(asked, case.d_in, width)
    options: dict[str, Any] = {"components": COMPONENTS, "kv_heads": 1, "norm": False, "mixing_init": "random"}
    sizes = (case.d_in, case.d_out, case.heads, hidden)
    module = MultiheadExplicitAttention(*sizes, **options, seed=2 * i + 1, dtype=torch.float64)
    for column in (module.mix_key, module.mix_value):
        column.div_(torch.linalg.vector_norm(column, dim=0, keepdim=True))
    return module


BUILD: dict[str, Build] = {"multi-query": multi_query, "tied": tied, "explicit": explicit}


def construction(wanted: MultiHeadAttention, source: Attention, alpha: float | None = None) -> AttentionConstruction:
    """Construct the masks to test."""
    return variant(wanted, source, side="input", alpha=alpha, threads=1)


def bounds(case: Case, build: Build) -> list[float]:
    """Return a bound on the error over eps, for all inputs, of each pruned source."""
    found = (construction(target(case, i), build(case, i, 1.0), case.alpha) for i in range(SOURCES))
    return [one.certificate.bound.item() / case.epsilon for one in found]


Spoil = Callable[[Attention], None]


def errors(case: Case, build: Build, width: float = 1.0, *, spoil: Spoil = leave) -> list[float]:
    """Return the error over eps on some inputs of each pruned source, after spoil has changed it in place."""
    pairs = ((target(case, i), build(case, i, width).requires_grad_(False)) for i in range(SOURCES // 2))
    name = f"sharing/{build.__name__}"
    found = sources.errors(name, pairs, lambda a, b: construction(a, b).masks, spoil, d=case.d_in, alpha=case.alpha)
    return [error / case.epsilon for error in found]


def flip_key(source: Attention) -> None:
    """Prune one weight of the key that all heads share."""
    draws.prune_largest(source.get_parameter("key"))


def flip_tied(source: Attention) -> None:
    """Prune one weight of the tied projection."""
    draws.prune_largest(source.get_parameter("key_value"))


def flip_mixing(source: Attention) -> None:
    """Prune the largest entry of the mixing tensor of values."""
    draws.prune_largest(source.get_parameter("mix_value"))


@torch.no_grad()
def exchange(source: Attention) -> None:
    """Give each head the output of the next."""
    source.output.copy_(source.output.roll(1, 0))
