"""Theorem 11: a block, attention and feed-forward network with residuals, hidden in a random one.

Claim. Block y = Attn(x) + x, F(y) + y of width d, F with L layers in the target and 2L in the source, target factors of
spectral norm <= 1, source entries as in Theorems 9 and 10, inputs of norm <= alpha, alpha >= sqrt(d). If
n_MHA >= d C log(32 alpha^3 H d^(3/2) / eps) and n_FC >= d C log(24 alpha L H d^(5/2) / eps), then with probability
>= 1 - eps masks exist for which the error of the block is at most eps.

There are two tests. First, with merged matrices and layers whose entries have errors within the budget of the proof
(attention at eps/4, network at eps/(6 alpha H sqrt d)), the error of the block is at most eps. A search reaches a third
of it, so half of eps still holds, and the control uses a quarter. Second, random sources reach such matrices; a bound
on their error for all inputs follows from the certificate of attention and the errors of the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from proofs_check import draws, sources
from proofs_check.check import Check, Control, Statement, exists, missing
from proofs_check.search import FEW, ascend, distance
from proofs_check.sources import hidden_for, leave, source_widths
from proofs_check.theorem9 import SCALE, wrong_scale
from proofs_check.theorem10 import error_bound, split
from slth import theory
from slth.attention import merged_attention
from slth.construct import transformer
from slth.construct.certificates import Merged, certificate, spectral_norm
from slth.models.transformer import Block, Transformer


class Case(NamedTuple):
    """A setting: d, H, L, alpha, eps, as the theory's functions take them."""

    d: int
    heads: int
    layers: int
    alpha: float
    epsilon: float


GIVEN = [
    Case(1, 1, 1, 1.0, 0.1),
    Case(1, 2, 2, 3.0, 0.5),
    Case(2, 1, 2, math.sqrt(2), 0.1),
    Case(2, 1, 1, 4.0, 0.01),
    Case(3, 2, 3, 2.0, 0.9),
]
DRAWN = [Case(2, 1, 1, math.sqrt(2), 0.2), Case(2, 2, 2, math.sqrt(2), 0.3)]
SOURCES = 40  # random sources per setting; controls use half as many
LENGTH = 3


class Accuracy(NamedTuple):
    """The allowed errors of entries of W_QK, W_VO and the network's layers."""

    qk: float
    vo: float
    layers: float


def check(share: float = 1.0) -> Statement:
    """Test the theorem."""
    each = draws.count(160, share)
    given = {case: worst_given(case, accuracy(case), each) for case in GIVEN}
    one = DRAWN[0]
    return Statement(
        "Theorem 11: block",
        (
            Check("matrices at the accuracy of the proof: eps", len(GIVEN) * each, worst(given)),
            *(exists(f"sources, {title(case)}", bounds(case), case.epsilon) for case in DRAWN),
        ),
        (
            Control("a quarter of eps", 4 * worst(given)),
            Control("attention at 4 eps instead of eps/4", coarse(FEW, attention=16.0)),
            Control(
                "network without 6 alpha H sqrt(d)", coarse(FEW, network=lambda c: 6 * c.alpha * c.heads * c.d**0.5)
            ),
            Control(
                "source without its second residual",
                worst({c: worst_given(c, accuracy(c), FEW, past=0.0) for c in GIVEN}),
            ),
            missing("a quarter of the widths", errors(one, width=0.25), one.epsilon),
            missing(SCALE, errors(one, spoil=scale), one.epsilon),
            missing("one bit of the network's mask flipped", errors(one, spoil=flip), one.epsilon),
        ),
    )


def title(case: Case) -> str:
    """Describe the setting in words."""
    return f"d={case.d}, H={case.heads}, L={case.layers}, eps={case.epsilon}"


def worst(found: dict[Case, float]) -> float:
    """Worst error over eps."""
    return max(left / case.epsilon for case, left in found.items())


# given errors


def accuracy(case: Case) -> Accuracy:
    """Return the accuracy of the proof."""
    budget = theory.theorem11_budget(*case)
    return Accuracy(budget.attention.qk_max_norm, budget.attention.vo_max_norm, budget.network_accuracy)


def coarse(cases: int, *, attention: float = 1.0, network: Callable[[Case], float] = lambda case: 1.0) -> float:
    """Return the worst error over eps if a part of the budget is too large by a factor."""
    found = {}
    for case in GIVEN:
        qk, vo, layers = accuracy(case)
        wrong = Accuracy(attention * qk, attention * vo, network(case) * layers)
        found[case] = worst_given(case, wrong, cases)
    return worst(found)


def worst_given(case: Case, allowed: Accuracy, cases: int, *, past: float = 1.0) -> float:
    """Return the largest error that a search over inputs, targets and errors of all entries within allowed finds.

    past: factor on the residual around the source's network.
    """
    name = f"theorem11/{case}"
    mask = draws.attention_mask(f"{name}/mask", cases, LENGTH, LENGTH)

    def value(x: torch.Tensor, **raw: torch.Tensor) -> torch.Tensor:
        x = draws.ball(x, case.alpha)
        wanted, near = (block(x, raw, allowed, mask, source=source, past=past) for source in (False, True))
        return distance(near, wanted)

    return ascend(value, draws.all_starts(name, cases, shapes(case)))


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shapes of inputs and all raw matrices, by role."""
    inputs: tuple[int, ...] = (LENGTH, case.d)
    return {"x": inputs} | matrices(case)


def matrices(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the raw matrices of a pair of blocks, by role."""
    heads: tuple[int, ...] = (case.heads, case.d, case.d)
    layers: tuple[int, ...] = (case.layers, case.d, case.d)
    return dict.fromkeys(("qk", "vo", "d_qk", "d_vo"), heads) | dict.fromkeys(("w", "p", "n"), layers)


def block(
    x: torch.Tensor,
    raw: dict[str, torch.Tensor],
    allowed: Accuracy,
    mask: torch.Tensor,
    *,
    source: bool,
    past: float = 1.0,
) -> torch.Tensor:
    """Compute the target's block on x (cases, T, d), or the source's, with errors of at most allowed."""
    qk, vo, layers = (draws.contraction(raw[role]) for role in ("qk", "vo", "w"))
    if not source:
        y = merged_attention(x, qk, vo, mask) + x
        z = y
        for i, weight in enumerate(layers.unbind(-3)):
            z = (z.relu() if i else z) @ weight
        return z + y
    qk, vo = qk + draws.box(raw["d_qk"], allowed.qk), vo + draws.box(raw["d_vo"], allowed.vo)
    y = merged_attention(x, qk, vo, mask) + x
    z = y
    for i, (w, p, n) in enumerate(zip(*(m.unbind(-3) for m in (layers, raw["p"], raw["n"])), strict=True)):
        z = split(z.relu() if i else z, w, p, n, allowed.layers)
    return z + past * y


# random sources


def pair(case: Case, i: int, *, width: float = 1.0) -> tuple[Transformer, Transformer]:
    """Draw the i-th target of one block and its random source at width times the theorem's widths, float64."""
    asked = theory.theorem11_hidden(*case, constant="measured")
    widths = source_widths([case.d] * (case.layers + 1), [asked.hidden_fc] * case.layers, width)
    hidden = hidden_for(asked.hidden_mha, case.d, width)
    return transformers(case, 1, hidden, widths, i)


def transformers(case: Case, blocks: int, hidden: int, widths: list[int], i: int) -> tuple[Transformer, Transformer]:
    """Draw a target with spectral norm 1 of every factor and a random source with these widths, float64."""
    target = Transformer(case.d, blocks, case.heads, 8, [case.d] * (case.layers - 1), seed=2 * i, dtype=torch.float64)
    source = Transformer(case.d, blocks, case.heads, hidden, widths[1:-1], seed=2 * i + 1, dtype=torch.float64)
    return draws.at_norm_one(target), source.requires_grad_(False)


def bounds(case: Case) -> list[float]:
    """Return a bound on the error over eps, for all inputs, of each pruned source."""
    ratios = []
    for i in range(SOURCES):
        target, source = pair(case, i)
        found = transformer(target, source, threads=1)
        (block,), (achieved,) = target.blocks, found.blocks
        assert isinstance(block, Block)
        ratios.append(block_bound(block, achieved.merged, achieved.layers, case.alpha) / case.epsilon)
    return ratios


def block_bound(target: Block, merged: Merged, layers: list[torch.Tensor], alpha: float) -> float:
    """Bound the error of a source's block for inputs of norm <= alpha, by the proof, from achieved errors.

    The attention's error passes through the network and the residual; the network's error is proportional to its input.
    """
    by_attention = certificate(target.attention.merged(), merged, alpha).bound.item()
    network_norm = alpha * (1 + spectral_norm(merged[1]).sum().item())
    errors = [spectral_norm(error).item() for error in layers]
    return 2 * by_attention + error_bound(errors, network_norm)


Spoil = Callable[[Transformer], None]


def errors(case: Case, *, width: float = 1.0, spoil: Spoil = leave) -> list[float]:
    """Return the error over eps on some inputs of each pruned source, after spoil has changed it in place."""
    pairs = (pair(case, i, width=width) for i in range(SOURCES // 2))
    found = sources.errors("theorem11/errors", pairs, masks, spoil, d=case.d, alpha=case.alpha)
    return [error / case.epsilon for error in found]


def masks(target: Transformer, source: Transformer) -> dict[str, torch.Tensor]:
    """Construct the masks to test."""
    return transformer(target, source, threads=1).masks


def scale(source: Transformer) -> None:
    """Replace 1/sqrt(n_K) by the target's 1/sqrt(8) in every block."""
    for block in source.blocks:
        assert isinstance(block, Block)
        wrong_scale(block.attention)


def flip(source: Transformer) -> None:
    """Prune one weight of the second layer of the first block's network."""
    block = source.blocks[0]
    assert isinstance(block, Block)
    draws.prune_largest(block.feed_forward.layers[1])
