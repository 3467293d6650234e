"""Lemma 2: a linear map hidden in a random ReLU network of two layers.

Claim. Target W (d1 x d2) of spectral norm <= 1; source ReLU(x first) second, entries U[-1, 1], width n. If
n >= d1 C log(2 d1 d2 / eps), then with probability >= 1 - eps masks exist for which the source is within eps of x W for
every input of norm <= 1.

A ReLU splits each input into halves: the source computes x+ P + x- N with P near W and N near -W. There are two tests.
First, if the errors of the entries of P and N are at most those of the proof, eps/(2 d1 d2), the error is at most eps.
It is even at most eps/(2 sqrt(d1 d2)), which is attained, so half of the claim still holds and its control uses a
third. Second, random sources reach such P and N. Their width uses twice the constant C measured for Lemma 7, since each
half of an input has half of the hidden units; see `slth.theory.lemma2_hidden`.

The error of a source is bounded for all inputs: in each orthant it is linear in |x|, so the largest spectral norm over
the 2^d1 orthants is a bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from proofs_check import draws
from proofs_check.check import Check, Control, Statement, exists, missing, worst
from proofs_check.search import FEW, ascend, distance
from slth import theory
from slth.construct.certificates import spectral_norm
from slth.construct.relu import relu_linear


class Case(NamedTuple):
    """A setting: d1, d2, eps."""

    d_in: int
    d_out: int
    epsilon: float


GIVEN = [Case(1, 1, 0.1), Case(2, 3, 0.5), Case(4, 4, 0.01), Case(8, 2, 0.1)]
DRAWN = [Case(2, 2, 0.2), Case(2, 4, 0.3), Case(4, 4, 0.3)]
SOURCES = 60  # random sources per setting; controls use half as many
Bound = Callable[[Case], float]


def check(share: float = 1.0) -> Statement:
    """Test the lemma."""
    each = draws.count(160, share)
    given = {case: worst_given(case, each) for case in GIVEN}
    coarse = {case: worst_given(case, FEW, times=2 * case.d_in * case.d_out) for case in GIVEN}
    one = DRAWN[0]
    return Statement(
        "Lemma 2: ReLU network for a linear map",
        (
            Check("P, N at the accuracy of the proof: eps", len(given) * each, worst(given, lambda c: c.epsilon)),
            Check("tight: eps / (2 sqrt(d1 d2))", len(given) * each, worst(given, tight)),
            *(
                exists(
                    f"sources, d1={case.d_in}, d2={case.d_out}, eps={case.epsilon}", drawn(case, SOURCES), case.epsilon
                )
                for case in DRAWN
            ),
        ),
        (
            Control("a third of eps", worst(given, lambda case: case.epsilon / 3)),
            Control("the tight form halved", worst(given, lambda case: tight(case) / 2)),
            Control("entries at eps instead of eps/(2 d1 d2)", worst(coarse, lambda case: case.epsilon)),
            missing("a quarter of the width", drawn(one, SOURCES // 2, width=0.25), one.epsilon),
            missing("only positive inputs served", drawn(one, SOURCES // 2, negative=False), one.epsilon),
            missing("one bit of the second mask flipped", drawn(one, SOURCES // 2, flip=True), one.epsilon),
        ),
    )


def tight(case: Case) -> float:
    """Return the tight bound: the norm of a matrix whose entries all equal the accuracy."""
    return theory.lemma2_accuracy(*case) * math.sqrt(case.d_in * case.d_out)


def worst_given(case: Case, cases: int, *, times: float = 1.0) -> float:
    """Return the largest error that a search over inputs and errors of P and N, at `times` the accuracy, finds."""
    accuracy = times * theory.lemma2_accuracy(*case)

    def value(x: torch.Tensor, p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        x = draws.ball(x, 1.0)[:, None]  # (cases, 1, d1)
        error = x.relu() @ draws.box(p, accuracy) + (-x).relu() @ draws.box(n, accuracy)
        return distance(error, torch.zeros_like(error))

    matrix = (case.d_in, case.d_out)
    return ascend(value, draws.all_starts(f"lemma2/{case}", cases, {"x": matrix[:1], "p": matrix, "n": matrix}))


def drawn(case: Case, sources: int, *, width: float = 1.0, negative: bool = True, flip: bool = False) -> list[float]:
    """Return error over eps, a bound for all inputs of norm <= 1, of masks found in random sources.

    Every other target is a corner: a diagonal of signs. width: share of the lemma's width. negative: keep the units for
    negative inputs. flip: prune one kept weight afterwards.
    """
    hidden = theory.lemma2_hidden(*case, constant="measured")
    hidden = max(2 * case.d_in, round(width * hidden))
    ratios = []
    for i in range(sources):
        name = f"lemma2/{case}/{i}"
        wanted = target(case, i, name)
        first = draws.uniform(f"{name}/first", case.d_in, hidden)
        second = draws.uniform(f"{name}/second", hidden, case.d_out)
        found = relu_linear(wanted.numpy(), first.numpy(), second.numpy(), threads=1)
        first = first * torch.from_numpy(found.mask_first)
        second = second * torch.from_numpy(found.mask_second)
        if flip:
            draws.prune_largest(second)
        positive_part = first.relu() @ second - wanted
        negative_part = ((-first).relu() @ second if negative else 0.0) + wanted
        ratios.append(orthant_norm(positive_part, negative_part) / case.epsilon)
    return ratios


def target(case: Case, i: int, name: str) -> torch.Tensor:
    """Draw a target (d1, d2) of spectral norm 1."""
    w = draws.uniform(f"{name}/target", case.d_in, case.d_out)
    w = w.sign() * torch.eye(case.d_in, case.d_out, dtype=torch.float64) if i % 2 else w
    return w / spectral_norm(w)


def orthant_norm(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Bound |x+ positive + x- negative| for |x| <= 1 by the largest spectral norm over the orthants."""
    choices = torch.tensor(list(itertools.product([True, False], repeat=len(positive))))
    rows = torch.where(choices[..., None], positive, negative)  # (2^d1, d1, d2)
    return spectral_norm(rows).max().item()
