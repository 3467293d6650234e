"""Lemma 7 (Lemma 4 in the main text): a matrix hidden in the product of two random ones.

Claim. Target W (d1 x d2) with entries in [-1, 1]; factors (d1 x n) and (n x d2), entries U[-1, 1]. If
n >= d1 C log(d1 d2 / eps), then with probability >= 1 - eps masks exist for which the product of the masked factors is
within eps/(d1 d2) of W in every entry. C is universal, and the paper gives no value; here it is the one measured at
d1 = d2 in {2, 4, 8, 16} and eps in {0.3, 0.1, 0.03} (at d1 = d2 = 1 and eps = 0.1 it is slightly too small).

Targets are random, at the corners (every |w| = 1, which few candidates hardly reach) and of spectral norm 1 (Lemma 4).
Every mask is found by exact subset sums, so a failure is due to the block-structured masks of the proof, and not to the
solver.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from proofs_check import draws
from proofs_check.check import Statement, exists, missing
from slth import theory
from slth.construct import linear


class Case(NamedTuple):
    """A setting: d1, d2, eps."""

    d_in: int
    d_out: int
    epsilon: float


DRAWS = {  # with more draws, a failure probability nearer to epsilon can be confirmed
    Case(2, 1, 0.1): 2000,
    Case(2, 2, 0.3): 2000,
    Case(2, 2, 0.1): 1000,
    Case(2, 5, 0.3): 100,
    Case(3, 3, 0.1): 200,
    Case(4, 4, 0.3): 100,
}
TARGETS = ("uniform", "corners", "norm 1")


class Trial(NamedTuple):
    """Target, masked factors, each (draws, ., .) float64, and the accuracy of an entry."""

    wanted: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    accuracy: float

    def ratios(self) -> list[float]:
        """Return the largest error of an entry over the allowed one, for each draw."""
        errors = (self.first @ self.second - self.wanted).abs().amax((-2, -1))
        return (errors / self.accuracy).tolist()


def check(share: float = 1.0) -> Statement:
    """Test the lemma. The number of sources does not depend on share, since confidence bounds need all of them."""
    trials = {(case, kind): trial(case, kind, count) for case, count in DRAWS.items() for kind in TARGETS}
    one = Case(2, 5, 0.3)

    return Statement(
        "Lemma 7 (4): product of two random matrices",
        tuple(
            exists(f"sources, d1={case.d_in}, d2={case.d_out}, eps={case.epsilon}, {kind}", t.ratios(), case.epsilon)
            for (case, kind), t in trials.items()
        ),
        (
            missing("a quarter of the width", trial(one, "corners", 60, width=0.25).ratios(), one.epsilon),
            missing("entries U[-1/2, 1/2]", trial(one, "corners", 60, scale=0.5).ratios(), one.epsilon),
            missing("one bit of the second mask flipped", flipped(trials[one, "corners"]).ratios(), one.epsilon),
            missing("the first factor not masked", trial(one, "corners", 60, structure=False).ratios(), one.epsilon),
        ),
    )


def target(case: Case, kind: str, count: int, name: str) -> torch.Tensor:
    """Draw targets (count, d1, d2) with entries in [-1, 1]."""
    w = draws.uniform(f"{name}/target", count, case.d_in, case.d_out)
    if kind == "corners":
        return w.sign()
    return w if kind == "uniform" else w / torch.linalg.matrix_norm(w, ord=2, keepdim=True)


def trial(
    case: Case, kind: str, count: int, *, width: float = 1.0, scale: float = 1.0, structure: bool = True
) -> Trial:
    """Solve for masks of many random factors.

    width: share of the lemma's width. scale: of the random entries. structure: whether the first factor gets its mask.
    """
    name = f"lemma7/{case}/{kind}"
    hidden = max(case.d_in, round(width * theory.lemma7_hidden(*case, constant="measured")))
    wanted = target(case, kind, count, name)
    first = scale * draws.uniform(f"{name}/first", count, case.d_in, hidden)
    second = scale * draws.uniform(f"{name}/second", count, hidden, case.d_out)
    found = linear(wanted.numpy(), first.numpy(), second.numpy())
    if structure:
        first = first * torch.from_numpy(found.mask_first)
    second = second * torch.from_numpy(np.ascontiguousarray(found.mask_second))
    return Trial(wanted, first, second, theory.lemma7_accuracy(*case))


def flipped(t: Trial) -> Trial:
    """Prune one kept weight of the second factor in each draw."""
    second = t.second.clone()
    for factor in second:
        draws.prune_largest(factor)
    return t._replace(second=second)
