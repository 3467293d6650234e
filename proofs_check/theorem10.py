"""Theorem 10: a feed-forward network hidden in a random one of twice the depth.

Claim. Target W_1, ReLU, ..., W_L of spectral norms <= 1 and widths d_1 .. d_(L+1); source of 2L layers, ReLU between
them, entries U[-1, 1]. If n_l >= d_l C log(4 L d_l d_(l+1) / eps), then with probability >= 1 - eps masks exist for
which the error is at most exp(alpha eps / 2) - 1 for inputs of norm <= alpha, alpha >= 1.

There are two tests. First, with pairs of layers x+ P + x- N whose entries have errors within those of the proof,
a_l = eps/(4 L d_l d_(l+1)), the error is at most the bound. The tight bound is
alpha (prod (1 + a_l sqrt(d_l d_(l+1))) - 1), which is attained (half of it fails) and never above
alpha (exp(eps/4) - 1). So half of the printed bound, and even the bound with eps/2 for eps, still hold, and the control
uses a third. Second, random sources of these widths, with C twice the constant measured for Lemma 7 (see Lemma 2),
reach such layers; their error is bounded for all inputs by the same product of achieved errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from proofs_check import draws, sources
from proofs_check.check import Check, Control, Statement, exists, missing, worst
from proofs_check.search import FEW, ascend, distance
from proofs_check.sources import leave, source_widths
from slth import theory
from slth.construct import feed_forward
from slth.construct.certificates import spectral_norm
from slth.models.transformer import FeedForward


class Case(NamedTuple):
    """A setting: d_1 .. d_(L+1), alpha, eps."""

    widths: tuple[int, ...]
    alpha: float
    epsilon: float

    @property
    def layers(self) -> int:
        """L."""
        return len(self.widths) - 1

    def accuracies(self) -> list[float]:
        """The error of an entry of each layer that the proof allows."""
        return [theory.theorem10_accuracy(*pair, self.layers, self.epsilon) for pair in pairwise(self.widths)]


GIVEN = [
    Case((1, 1), 1.0, 0.1),
    Case((1, 1, 1, 1), 3.0, 0.3),
    Case((2, 2, 2), math.sqrt(2), 0.1),
    Case((4, 4, 4, 4, 4), 2.0, 0.01),
    Case((2, 5, 3), 2.0, 0.9),
]
DRAWN = [Case((2, 2, 2), math.sqrt(2), 0.2), Case((3, 2), 2.0, 0.2), Case((2, 3, 3, 2), 2.0, 0.3)]
SOURCES = 40  # random sources per setting; controls use half as many
Bound = Callable[[Case], float]


def check(share: float = 1.0) -> Statement:
    """Test the theorem."""
    each = draws.count(160, share)
    given = {case: worst_given(case, each) for case in GIVEN}
    no_layers = {case: worst_given(case, FEW, times=case.layers) for case in GIVEN}
    no_widths = {case: worst_given(case, FEW, times=4 * max(case.widths) ** 2) for case in GIVEN}
    total, one = len(GIVEN) * each, DRAWN[0]
    return Statement(
        "Theorem 10: feed-forward network",
        (
            Check("layers at the accuracy of the proof: exp(alpha eps / 2) - 1", total, worst(given, printed)),
            Check("tight: alpha (prod (1 + a_l sqrt(d_l d_(l+1))) - 1)", total, worst(given, tight)),
            *(
                exists(f"sources, widths {case.widths}, eps={case.epsilon}", bounds(case), case.epsilon)
                for case in DRAWN
            ),
        ),
        (
            Control("a third of the bound", worst(given, lambda case: printed(case) / 3)),
            Control("without alpha: exp(eps / 2) - 1", worst(given, lambda case: math.expm1(case.epsilon / 2))),
            Control("the tight form halved", worst(given, lambda case: tight(case) / 2)),
            Control("entries without L", worst(no_layers, printed)),
            Control("entries without 4 d_l d_(l+1)", worst(no_widths, printed)),
            missing("a quarter of the widths", errors(one, width=0.25), one.epsilon),
            missing("source entries halved after solving", errors(one, spoil=halve), one.epsilon),
            missing("one bit of a mask flipped", errors(one, spoil=flip), one.epsilon),
        ),
    )


def printed(case: Case) -> float:
    """Right side of the theorem."""
    return theory.theorem10_error(case.alpha, case.epsilon)


def tight(case: Case) -> float:
    """Right side of our tight form."""
    errors = [a * math.sqrt(m * n) for a, (m, n) in zip(case.accuracies(), pairwise(case.widths), strict=True)]
    return error_bound(errors, case.alpha)


def error_bound(errors: Sequence[float], alpha: float) -> float:
    """Bound a network's error for inputs of norm <= alpha from its pairs' errors for inputs of norm 1.

    Each pair adds its error times the norm of its input, which grows from pair to pair by 1 + error at most.
    """
    return alpha * math.expm1(math.fsum(map(math.log1p, errors)))


# given errors


def worst_given(case: Case, cases: int, *, times: float = 1.0) -> float:
    """Return the largest error that a search over inputs, targets and errors, at `times` the accuracy, finds."""
    name = f"theorem10/{case}"
    accuracies = [times * a for a in case.accuracies()]

    def value(x: torch.Tensor, **matrices: torch.Tensor) -> torch.Tensor:
        wanted = near = draws.ball(x, case.alpha)[:, None]  # (cases, 1, d_1)
        for i, accuracy in enumerate(accuracies):
            w = draws.contraction(matrices[f"w{i}"])
            if i:
                wanted, near = wanted.relu(), near.relu()
            wanted, near = wanted @ w, split(near, w, matrices[f"p{i}"], matrices[f"n{i}"], accuracy)
        return distance(near, wanted)

    shapes: dict[str, tuple[int, ...]] = {"x": case.widths[:1]}
    for i, shape in enumerate(pairwise(case.widths)):
        shapes |= {f"{role}{i}": shape for role in "wpn"}
    return ascend(value, draws.all_starts(name, cases, shapes))


def split(x: torch.Tensor, w: torch.Tensor, p: torch.Tensor, n: torch.Tensor, accuracy: float) -> torch.Tensor:
    """Compute a pair of layers, x+ P + x- N, where P and -N differ from w by at most accuracy, from raw p and n."""
    return x.relu() @ (w + draws.box(p, accuracy)) - (-x).relu() @ (w + draws.box(n, accuracy))


# random sources


def pair(case: Case, i: int, *, width: float = 1.0) -> tuple[FeedForward, FeedForward]:
    """Draw the i-th target and its random source at width times the theorem's widths, float64."""
    target = draws.at_norm_one(FeedForward(case.widths, seed=2 * i, dtype=torch.float64))
    asked = theory.theorem10_hidden(case.widths, case.epsilon, constant="measured")
    source = FeedForward(source_widths(case.widths, asked, width), seed=2 * i + 1, dtype=torch.float64)
    return target, source.requires_grad_(False)


def bounds(case: Case) -> list[float]:
    """Return a bound on the error over the printed one, for all inputs, of each pruned source."""
    ratios = []
    for i in range(SOURCES):
        found = feed_forward(*pair(case, i), threads=1)
        errors = [spectral_norm(error).item() for error in found.errors.values()]
        ratios.append(error_bound(errors, case.alpha) / printed(case))
    return ratios


Spoil = Callable[[FeedForward], None]


def errors(case: Case, *, width: float = 1.0, spoil: Spoil = leave) -> list[float]:
    """Return the error over the printed bound on some inputs of each pruned source, after spoil has changed it."""
    pairs = (pair(case, i, width=width) for i in range(SOURCES // 2))
    found = sources.errors("theorem10/errors", pairs, masks, spoil, d=case.widths[0], alpha=case.alpha)
    return [error / printed(case) for error in found]


def masks(target: FeedForward, source: FeedForward) -> dict[str, torch.Tensor]:
    """Construct the masks to test."""
    return feed_forward(target, source, threads=1).masks


def halve(source: FeedForward) -> None:
    """Halve the first layer's weights, to U[-1/2, 1/2]."""
    source.layers[0].mul_(0.5)


def flip(source: FeedForward) -> None:
    """Prune one weight of the second layer."""
    draws.prune_largest(source.layers[1])
