"""Lemma 7 for chains: a matrix hidden in two random ones with random diagonals between them, as in linear KHA.

Claim. The product of L numbers U[-1, 1] has the density (-ln |x|)^(L-1) / (2 (L-1)!), whose minimum on [-1/2, 1/2] is
at the ends; the uniform part there has mass .347, .120, .028 for L = 2, 3, 4. With C proportional to one over that
mass, n >= d1 C log(d1 d2 / eps) hidden units suffice for Lemma 7 with L - 2 diagonals U[-1, 1] between the factors.
U[-1, 1] times a normal number, which is the limit of explicit attention (MEA) for many components, has a uniform part
too, by another formula.

Integrals of densities are compared with shares of draws, by the bound of Dvoretzky, Kiefer, Wolfowitz and Massart, and
uniform parts with these integrals. Sources are pruned twice: first the surplus, which leaves the ENOUGH units of a
block with the largest product of first factor and diagonals, then by the subset sums.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from proofs_check import draws
from proofs_check.check import Check, Control, Statement, exists, missing
from proofs_check.sources import ENOUGH
from slth import theory
from slth.construct import linear
from slth.construct.factors import blocks


class Case(NamedTuple):
    """A setting: d1, d2, eps."""

    d_in: int
    d_out: int
    epsilon: float


SHARES = 20_000  # draws of a product to compare with its density
CELLS = 999  # cells of the uniform part
DRAWN = (Case(2, 2, 0.3), Case(2, 1, 0.3))
SOURCES = 40
MANY = 16  # uniform numbers whose sum approximates a normal one
DELTA = 1e-9  # probability that a share exceeds its bound


def check(share: float = 1.0) -> Statement:
    """Test the claim. Sources and draws do not depend on share, since confidence bounds need all of them."""
    one = DRAWN[0]
    drawn = {(case, factors): trial(case, factors) for case in DRAWN for factors in (3, 4)}
    return Statement(
        "Lemma 7 for chains (linear KHA, MEA)",
        (
            *(Check(f"density of {n} factors", SHARES, off_shares(n, n)) for n in (1, 2, 3, 4)),
            *(Check(f"uniform part of {n} factors", CELLS, off_part(n)) for n in (2, 3, 4)),
            Check("uniform part of a normal factor", SHARES, off_normal_part(1.0)),
            *(
                exists(f"sources, L={n}, d1={case.d_in}, d2={case.d_out}, eps={case.epsilon}", ratios, case.epsilon)
                for (case, n), ratios in drawn.items()
            ),
        ),
        (
            Control("the density of 3 factors for 2", off_shares(3, 2)),
            Control("the density of 3 factors for 4", off_shares(3, 4)),
            Control("a part that is uniform on [-3/4, 3/4]", off_part(3, reach=0.75)),
            Control("the part of 2 factors for 3", off_part(3, mass=theory.uniform_part(2))),
            Control("the part of a normal factor, halved", off_normal_part(0.5)),
            missing("4 factors at the width of 2", trial(one, 4, constant_for=2), one.epsilon),
            missing("one bit of the second mask flipped", trial(one, 3, flip=True), one.epsilon),
            missing("the diagonal of T and all beside it", trial(one, 3, dense=True), one.epsilon),
        ),
    )


# densities


def products(factors: int) -> torch.Tensor:
    """Draw products of U[-1, 1], (SHARES,) float64."""
    return draws.uniform(f"chains/products/{factors}", factors, SHARES).prod(0)


def integral(size: torch.Tensor, factors: int) -> torch.Tensor:
    """Compute the probability of |product| <= size, in (0, 1]: size times the sum over k < L of (-ln size)^k / k!.

    -ln |x| is a Gamma variable.
    """
    return size * torch.stack([(-size.log()) ** k / math.factorial(k) for k in range(factors)]).sum(0)


def off_shares(drawn: int, claimed: int) -> float:
    """Return the largest distance of shares of draws from the integral of a density, over the DKWM bound."""
    size = products(drawn).abs().sort().values
    above = torch.arange(1, SHARES + 1) / SHARES - integral(size, claimed)
    distance = torch.maximum(above, 1 / SHARES - above).max().item()
    return distance / math.sqrt(math.log(2 / DELTA) / (2 * SHARES))


def off_part(factors: int, *, reach: float = 0.5, mass: float | None = None) -> float:
    """Return the mass of a uniform part on [-reach, reach], by default the theory's, over the largest possible mass.

    That is CELLS times the probability of the least likely cell of the interval.
    """
    mass = theory.uniform_part(factors) if mass is None else mass
    ends = torch.linspace(1e-12, reach, CELLS + 1, dtype=torch.float64)
    return mass / (CELLS * integral(ends, factors).diff().min().item())


def off_normal_part(times: float) -> float:
    """Return the distance of the theory's part, times a factor, from draws of sums, over Hoeffding's bound.

    Given a key k, U[-1, 1] times k has the density 1 / (2 |k|) at 1/2 if |k| > 1/2, else 0.
    """
    key = draws.uniform("chains/normal", MANY, SHARES).sum(0).abs() / math.sqrt(MANY)
    found = torch.where(key > 0.5, 0.5 / key, 0.0).mean().item()
    distance = abs(found - times * theory.normal_part(1 / math.sqrt(3)))
    return distance / math.sqrt(math.log(2 / DELTA) / (2 * SHARES))


# sources


def trial(
    case: Case, factors: int, *, constant_for: int | None = None, flip: bool = False, dense: bool = False
) -> list[float]:
    """Return the largest error of an entry over the allowed one, for each source.

    Every other target is a corner, all |w| = 1. constant_for: the number of factors for the width. flip: prune one kept
    weight afterwards. dense: use a full matrix as the last diagonal.
    """
    asked = theory.chain_hidden(*case, factors=constant_for or factors, constant="measured")
    ratios = []
    for i in range(SOURCES):
        name = f"chains/{case}/{factors}/{i}"
        first = draws.uniform(f"{name}/first", case.d_in, asked)
        diagonals = draws.uniform(f"{name}/diagonals", factors - 2, asked)
        second = draws.uniform(f"{name}/second", asked, case.d_out)
        kept = largest(first * diagonals.prod(0), ENOUGH)
        first, diagonals, second = first[:, kept], diagonals[:, kept], second[kept]
        wanted = draws.uniform(f"{name}/target", case.d_in, case.d_out)
        wanted = wanted.sign() if i % 2 else wanted
        chain = first * diagonals.prod(0)
        found = linear(wanted.numpy(), chain.numpy(), second.numpy(), threads=1)
        second = second * torch.from_numpy(found.mask_second)
        if flip:
            draws.prune_largest(second)
        first = first * torch.from_numpy(found.mask_first)
        mixing = torch.diag(diagonals.prod(0))
        if dense:
            mixing = mixing + draws.uniform(f"{name}/beside", *mixing.shape) * (1 - torch.eye(len(mixing)))
        error = (first @ mixing @ second - wanted).abs().max().item()
        ratios.append(error / theory.lemma7_accuracy(*case))
    return ratios


def largest(chain: torch.Tensor, most: int) -> torch.Tensor:
    """Return ascending indices of the `most` units with the largest products in each block of chain (d1, n)."""
    kept = []
    for row, part in zip(chain.abs(), blocks(chain.shape[1], len(chain)), strict=True):
        units = row[part]
        kept.append(part.start + units.topk(min(most, chain.shape[1] // len(chain))).indices.sort().values)
    return torch.cat(kept)
