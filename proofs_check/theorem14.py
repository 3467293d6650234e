"""Theorem 14 (Theorem 6 in the main text): a transformer of B blocks hidden in a random one.

Claim. Blocks as in Theorem 11, inputs of norm <= alpha. Inputs of block b of the target have norms of at most beta_b =
alpha (4 H sqrt d)^(b-1). With P_b the product of 16 H sqrt(d) beta_j^2 over the later blocks, the error of the source
may be A_b = eps/(2^(B-b) P_b) after block b, and that of a block itself, on inputs of norm 2 beta_b, E_b = A_1 for the
first block and A_b / 2 for the others. The widths are those of Theorem 11 at that norm and E_b. Then with probability
>= 1 - (1055/1984) eps masks exist for which the error after the last block is at most eps.

The printed proof uses Lemma 13 without its factor 2, and at norm beta_b for inputs that are only bounded by 2 beta_b.
After correction, the propagated error is below 0.79 of the allowed one, so the widths remain valid. The tests are: this
recursion on a grid; one step of it, by a search over blocks and inputs at the allowed norms and distances; two and
three blocks whose matrices have errors within the budget, by a search over everything; and random sources of one and
two blocks at the theorem's widths (more blocks would need more bits than float64 has), bounded for all inputs from
their achieved errors.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch

from proofs_check import draws, sources, theorem11
from proofs_check.check import Check, Control, Statement, exists, missing
from proofs_check.search import FEW, ascend, distance
from proofs_check.sources import hidden_for, leave, source_widths
from proofs_check.theorem9 import SCALE
from proofs_check.theorem11 import LENGTH, Accuracy, Spoil, transformers
from slth import theory
from slth.construct import TransformerConstruction, transformer
from slth.models.transformer import Block, Transformer
from slth.theory import Theorem14Block


class Case(NamedTuple):
    """A setting: d, H, L, alpha, eps, B."""

    d: int
    heads: int
    layers: int
    alpha: float
    epsilon: float
    blocks: int

    @property
    def budget(self) -> tuple[Theorem14Block, ...]:
        """The norms and errors that the proof allows for each block."""
        return theory.theorem14_budget(self.d, self.heads, self.alpha, self.epsilon, self.blocks)


GIVEN = [
    Case(1, 1, 1, 1.0, 0.1, 2),
    Case(1, 1, 1, 1.0, 0.5, 3),
    Case(2, 1, 2, math.sqrt(2), 0.9, 2),
    Case(2, 2, 1, 2.0, 0.1, 2),
]
DRAWN = [Case(2, 1, 1, math.sqrt(2), 0.2, 1), Case(2, 1, 1, math.sqrt(2), 0.3, 2)]
SOURCES = 30  # random sources per setting; controls use half as many
GRID = [
    Case(d, heads, 1, math.sqrt(d) * times, epsilon, blocks)
    for d, heads, times, epsilon, blocks in itertools.product(
        (1, 2, 3, 8, 64, 1024), (1, 2, 8, 32), (1.0, 1.5, 30.0), (1e-6, 0.1, 0.999), (2, 3, 4, 6)
    )
]


def check(share: float = 1.0) -> Statement:
    """Test the theorem."""
    each = draws.count(120, share)
    one = DRAWN[1]
    norms = {case: worst_norm(case, each) for case in GIVEN}
    total = len(GIVEN) * each
    return Statement(
        "Theorem 14 (6): transformer",
        (
            Check("recursion: corrected Lemma 13 at A_(b-1) against A_b / 2", len(GRID), max(map(recursion, GRID))),
            Check("failures: sum of E_b against (1055/1984) eps", len(GRID), max(map(failure, GRID))),
            Check("norms of the last block's inputs against beta_B", total, max(norms.values())),
            Check("a step: norm beta_B, distance A_(B-1), error E_B", total, max(worst_step(c, each) for c in GIVEN)),
            Check("all blocks at the accuracy of the proof: eps", total, max(worst_given(c, each) for c in GIVEN)),
            *(exists(f"sources, {title(case)}", bounds(case), case.epsilon) for case in DRAWN),
        ),
        (
            Control("recursion with P of 8 H sqrt(d) beta^2", max(recursion(case, spread=2.0) for case in GRID)),
            Control("failures without P", max(failure(case, without_growth=True) for case in GRID)),
            Control("norms against alpha", max(norms[c] * c.budget[-1].input_norm / c.alpha for c in GIVEN)),
            Control(
                "a step with P of 16 H sqrt(d), without beta^2",
                max(worst_step(case, each, spread=case.budget[-1].input_norm ** 2) for case in GIVEN),
            ),
            Control("all blocks, without P", max(worst_given(case, FEW, without_growth=True) for case in GIVEN)),
            missing("a tenth of the widths", errors(one, width=0.1), one.epsilon),
            missing(SCALE, errors(one, spoil=theorem11.scale), one.epsilon),
            missing("one bit of the first network's mask flipped", errors(one, spoil=theorem11.flip), one.epsilon),
        ),
    )


def title(case: Case) -> str:
    """Describe the setting in words."""
    return f"B={case.blocks}, d={case.d}, eps={case.epsilon}"


# the recursion


def recursion(case: Case, *, spread: float = 1.0) -> float:
    """Return the largest inherited error of a block over A_b / 2, over all blocks from the second on.

    spread: factor on the distance of source and target before each block.
    """
    worst = 0.0
    for before, step in itertools.pairwise(case.budget):
        norms = (step.input_norm, step.source_norm)
        inherited = theory.lemma13_block(spread * before.drift, case.d, case.heads, *norms)
        worst = max(worst, inherited / (step.drift / 2) if before.drift > 0 else 0.0)  # 0: underflow
    return worst


def failure(case: Case, *, without_growth: bool = False) -> float:
    """Return the failure probability over the paper's bound."""
    if without_growth:
        total = sum(block.error * block.growth for block in case.budget)
    else:
        total = theory.theorem14_failure(case.d, case.heads, case.alpha, case.epsilon, case.blocks)
    return total / (1055 / 1984 * case.epsilon)


# given errors


def all_blocks(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the inputs and of the raw matrices of every block, by names that end in its number."""
    shapes = theorem11.matrices(block_case(case))
    numbered = {f"{role}{b}": shape for b in range(case.blocks) for role, shape in shapes.items()}
    inputs: tuple[int, ...] = (LENGTH, case.d)
    return {"x": inputs} | numbered


def block_case(case: Case) -> theorem11.Case:
    """Return the setting of one of its blocks."""
    return theorem11.Case(*case[:5])


def raw_of(raw: dict[str, torch.Tensor], b: int) -> dict[str, torch.Tensor]:
    """Return the raw matrices of block b, by role."""
    return {name.removesuffix(str(b)): tensor for name, tensor in raw.items() if name.endswith(str(b))}


EXACT = Accuracy(0.0, 0.0, 0.0)


def worst_norm(case: Case, cases: int) -> float:
    """Return the largest norm of the last block's inputs over beta_B."""
    name = f"theorem14/norm/{case}"
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool)

    def value(x: torch.Tensor, **raw: torch.Tensor) -> torch.Tensor:
        x = draws.ball(x, case.alpha)
        for b in range(case.blocks - 1):
            x = theorem11.block(x, raw_of(raw, b), EXACT, mask, source=False)
        return distance(x, torch.zeros_like(x))

    return ascend(value, draws.all_starts(name, cases, all_blocks(case))) / case.budget[-1].input_norm


def worst_step(case: Case, cases: int, *, spread: float = 1.0) -> float:
    """Return the largest error after the last block over eps, by a search over that block and its possible inputs.

    spread: factor on the distance of source and target before the block.
    """
    name = f"theorem14/step/{case}"
    last, before = case.budget[-1], spread * case.budget[-2].drift
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool)

    def value(x: torch.Tensor, move: torch.Tensor, **raw: torch.Tensor) -> torch.Tensor:
        x = draws.ball(x, last.input_norm)
        x, moved = (theorem11.block(z, raw, EXACT, mask, source=False) for z in (x, x + draws.ball(move, before)))
        return distance(x, moved) + last.error

    shapes = theorem11.shapes(block_case(case))
    shapes["move"] = shapes["x"]
    return ascend(value, draws.all_starts(name, cases, shapes)) / case.epsilon


def worst_given(case: Case, cases: int, *, without_growth: bool = False) -> float:
    """Return the largest final error over eps, by a search over inputs, targets and allowed errors of each block."""
    name = f"theorem14/given/{case}"
    mask = draws.attention_mask(f"{name}/mask", cases, LENGTH, LENGTH)
    allowed = [
        theorem11.accuracy(
            block_case(case)._replace(
                alpha=block.source_norm, epsilon=block.error * (block.growth if without_growth else 1.0)
            )
        )
        for block in case.budget
    ]

    def value(x: torch.Tensor, **raw: torch.Tensor) -> torch.Tensor:
        wanted = near = draws.ball(x, case.alpha)
        for b, accuracy in enumerate(allowed):
            part = raw_of(raw, b)
            wanted = theorem11.block(wanted, part, accuracy, mask, source=False)
            near = theorem11.block(near, part, accuracy, mask, source=True)
        return distance(near, wanted)

    return ascend(value, draws.all_starts(name, cases, all_blocks(case))) / case.epsilon


# random sources


def pair(case: Case, i: int, *, width: float = 1.0) -> tuple[Transformer, Transformer]:
    """Draw the i-th target and its random source at width times the theorem's widths of the widest block, float64."""
    asked = [max(widths) for widths in zip(*theory.theorem14_hidden(*case, constant="measured"), strict=True)]
    widths = source_widths([case.d] * (case.layers + 1), [asked[1]] * case.layers, width)
    return transformers(block_case(case), case.blocks, hidden_for(asked[0], case.d, width), widths, i)


def bounds(case: Case) -> list[float]:
    """Return a bound on the final error over eps, for all inputs, of each pruned source."""
    ratios = []
    for i in range(SOURCES):
        target, source = pair(case, i)
        ratios.append(final_bound(case, target, transformer(target, source, threads=1)) / case.epsilon)
    return ratios


def final_bound(case: Case, target: Transformer, found: TransformerConstruction) -> float:
    """Bound the final error by the recursion from achieved errors; input norms grow by 2 (H + 1) per block."""
    drift, norm = 0.0, case.alpha
    for block, errors in zip(target.blocks, found.blocks, strict=True):
        assert isinstance(block, Block)
        own = theorem11.block_bound(block, errors.merged, errors.layers, norm + drift)
        drift = own + theory.tanh_block(drift, case.heads, norm, norm + drift)
        norm *= 2 * (case.heads + 1)
    return drift


def errors(case: Case, *, width: float = 1.0, spoil: Spoil = leave) -> list[float]:
    """Return the error over eps on some inputs of each pruned source, after spoil has changed it in place."""
    pairs = (pair(case, i, width=width) for i in range(SOURCES // 2))
    found = sources.errors("theorem14/errors", pairs, theorem11.masks, spoil, d=case.d, alpha=case.alpha)
    return [error / case.epsilon for error in found]
