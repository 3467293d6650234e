"""One matrix hidden in stages, a single one or as many as rounding to its own dtype takes, or by a code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import nn

from slth.construct.codes import Code
from slth.construct.networks.coded import encoded
from slth.construct.networks.hidden import Hidden
from slth.construct.networks.stages import Stage, Units, fitted, solve
from slth.construct.subset_sum import BoolArray, FloatArray

COARSE = 16  # candidates of a stage, of several: 2^(n/2) steps an entry are then few
FINE = 24  # candidates of a stage at most
_LEAST = 8  # candidates of a stage
_SPARE = 4  # bits that a stage lacks to what its candidates could tell
_MOST = 24  # stages


@dataclass(frozen=True)
class Options:
    """How matrices are hidden: see :func:`slth.construct.module`."""

    candidates: int
    exact: bool
    code: Code | None
    seed: int
    threads: int | None


@dataclass(frozen=True)
class Staged:
    """A matrix (inputs, outputs) in stages.

    unreachable: entries that lie outside what a stage's candidates span; most: candidates of an entry at most.
    """

    stages: tuple[Stage, ...]
    unreachable: int
    most: int

    @property
    def bits(self) -> int:
        """Of the masks: one a candidate of every entry that takes part in a stage."""
        return sum(stage.bits for stage in self.stages)

    @property
    def sizes(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        return self.stages[0].units.sizes

    def plan(self) -> list[Any]:
        """[candidates, scale] of each stage."""
        return [[stage.units.candidates, stage.units.scale] for stage in self.stages]

    def merged(self) -> FloatArray:
        """The matrix that the stages add up to, float64."""
        return reduce(np.add, (stage.product() for stage in self.stages))

    def masks(self) -> dict[str, torch.Tensor]:
        """The mask of each stage's second factor; first factors are kept whole."""
        return {f"{stage.units.name}.second": stage.mask() for stage in self.stages}

    def record(self, stages: nn.Module) -> None:
        """Nothing: the plan says the scales."""

    def factors(self) -> tuple[torch.Tensor, ...]:
        """First and second of each stage."""
        return tuple(factor for stage in self.stages for factor in stage.factors())

    def product(self, factors: Sequence[torch.Tensor]) -> FloatArray:
        """The matrix that pruned factors make, float64."""
        total = torch.zeros(self.sizes, dtype=torch.float64)
        for stage, first, second in zip(self.stages, factors[::2], factors[1::2], strict=True):
            total += stage.units.scale * torch.einsum("ki,kio->io", first.double(), second.double())  # exact
        return total.numpy()


def hide(name: str, matrix: torch.Tensor, options: Options) -> Hidden:
    """Hide a matrix (inputs, outputs) in random weights that are named after it.

    Raises ValueError where exact and entries of it cannot be met.
    """
    if options.code is not None:
        return encoded(name, matrix, options.code, seed=options.seed, threads=options.threads)
    return _exactly(name, matrix, options) if options.exact else _evenly(name, matrix, options)


def rounded(merged: FloatArray, dtype: torch.dtype) -> torch.Tensor:
    """Merged values in the dtype of a parameter, the nearest."""
    values = torch.from_numpy(merged)
    return values.to(dtype) if dtype.is_floating_point else values.round().clamp(-128, 127).to(dtype)


def _evenly(name: str, matrix: torch.Tensor, options: Options) -> Staged:
    """All candidates for every entry, in as few stages of equal parts as may be."""
    target = matrix.double().numpy()
    count = -(-options.candidates // FINE)
    total, stages, unreachable = np.zeros_like(target), [], 0
    for j in range(count):
        candidates = (options.candidates + j) // count
        left = target - total
        used = left != 0
        units = fitted(Units(f"{name}.{j}", options.seed, candidates, _sizes(target)), left, used, power=4)
        stage, beyond = solve(units, left, used, options.threads)
        total += stage.product()
        stages.append(stage)
        unreachable = max(unreachable, beyond)
    return Staged(tuple(stages), unreachable, options.candidates)


def _exactly(name: str, matrix: torch.Tensor, options: Options) -> Staged:
    """Stages until every entry rounds to its own value; an entry takes part in those that it needs.

    A stage has as many candidates as what is left needs, and leaves entries to the next one that are small enough for
    it: a small weight is made of the finer stages alone.
    """
    target, room = matrix.double().numpy(), _room(matrix)
    total, taken = np.zeros_like(target), np.zeros(target.shape, np.int64)
    stages: list[Stage] = []
    while (open_ := _open(total, matrix)).any() or not stages:
        if len(stages) == _MOST:
            raise ValueError(
                f"exact=True: {int(open_.sum())} entries of {name} do not round to their own {matrix.dtype} after "
                f"{_MOST} stages"
            )
        left = target - total
        candidates = _candidates(left[open_], room[open_], options.candidates)
        units = fitted(Units(f"{name}.{len(stages)}", options.seed, candidates, _sizes(target)), left, open_, power=8)
        used = open_ & (np.abs(left) > units.scale * 2.0 ** (_SPARE - candidates))
        stage, _ = solve(units, left, used, options.threads)
        total += stage.product()
        taken += candidates * used
        stages.append(stage)
    return Staged(tuple(stages), 0, int(taken.max()))


def _open(total: FloatArray, matrix: torch.Tensor) -> BoolArray:
    """The entries that do not round to their own value."""
    differ: BoolArray = (rounded(total, matrix.dtype) != matrix).numpy()
    return differ


def _candidates(left: FloatArray, room: FloatArray, most: int) -> int:
    """As many as what is left needs to fall within the room around the entries' values."""
    if not left.size:
        return 1
    bits = np.ceil(np.log2(np.abs(left).max() / np.median(room)))
    return int(np.clip(bits + _SPARE, min(_LEAST, most), most))


def _room(matrix: torch.Tensor) -> FloatArray:
    """How far from each entry the numbers lie at least that round to another one: half a unit in its last place."""
    if not matrix.dtype.is_floating_point:
        return np.full(matrix.shape, 0.5)
    _, exponent = np.frexp(matrix.double().numpy())
    return np.asarray(np.ldexp(torch.finfo(matrix.dtype).eps / 4, exponent))


def _sizes(target: FloatArray) -> tuple[int, int]:
    inputs, outputs = target.shape
    return inputs, outputs
