"""Hide one matrix: in one stage, in as many stages as it takes to be exact in its dtype, or by a code."""

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

COARSE = 16  # candidates per stage if there are several stages: few of the 2^(n/2) steps per entry
FINE = 24  # most candidates per stage
_LEAST = 8  # fewest candidates per stage
_SPARE = 4  # bits of precision that a stage falls short of its number of candidates
_MOST = 24  # most stages


@dataclass(frozen=True)
class Options:
    """Options for hiding matrices: see :func:`slth.construct.module`."""

    candidates: int
    exact: bool
    code: Code | None
    seed: int
    threads: int | None


@dataclass(frozen=True)
class Staged:
    """A matrix (inputs, outputs) hidden in stages.

    unreachable: number of entries outside the range of a stage's candidates; most: the most candidates of an entry.
    """

    stages: tuple[Stage, ...]
    unreachable: int
    most: int

    @property
    def bits(self) -> int:
        """The bits of the masks: one per candidate of every entry that takes part in a stage."""
        return sum(stage.bits for stage in self.stages)

    @property
    def sizes(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        return self.stages[0].units.sizes

    def plan(self) -> list[Any]:
        """Return [candidates, scale] of each stage."""
        return [[stage.units.candidates, stage.units.scale] for stage in self.stages]

    def merged(self) -> FloatArray:
        """Return the sum of all stages, float64."""
        return reduce(np.add, (stage.product() for stage in self.stages))

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the mask of each stage's second factor; first factors are not pruned."""
        return {f"{stage.units.name}.second": stage.mask() for stage in self.stages}

    def record(self, stages: nn.Module) -> None:
        """Do nothing: the scales of stages are part of the plan."""

    def factors(self) -> tuple[torch.Tensor, ...]:
        """Return the first and second factor of each stage."""
        return tuple(factor for stage in self.stages for factor in stage.factors())

    def product(self, factors: Sequence[torch.Tensor]) -> FloatArray:
        """Compute the matrix of pruned factors, float64."""
        total = torch.zeros(self.sizes, dtype=torch.float64)
        for stage, first, second in zip(self.stages, factors[::2], factors[1::2], strict=True):
            total += stage.units.scale * torch.einsum("ki,kio->io", first.double(), second.double())  # exact
        return total.numpy()


def hide(name: str, matrix: torch.Tensor, options: Options) -> Hidden:
    """Hide a matrix (inputs, outputs) in random weights that are named after it.

    Raises ValueError if `options.exact` is set and some entries cannot be made exact.
    """
    if options.code is not None:
        return encoded(name, matrix, options.code, seed=options.seed, threads=options.threads)
    return _exactly(name, matrix, options) if options.exact else _evenly(name, matrix, options)


def rounded(merged: FloatArray, dtype: torch.dtype) -> torch.Tensor:
    """Round merged values to the nearest in the dtype of a parameter."""
    values = torch.from_numpy(merged)
    return values.to(dtype) if dtype.is_floating_point else values.round().clamp(-128, 127).to(dtype)


def _evenly(name: str, matrix: torch.Tensor, options: Options) -> Staged:
    """Use all candidates for every entry, in as few stages of equal size as possible."""
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
    """Add stages until every entry rounds to its value in the matrix; each entry takes part in the stages it needs.

    A stage has as many candidates as the remaining errors need. Entries that are small enough for the next stage skip
    it, so that small weights use the finer stages alone.
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
    """Tell which entries do not round to their value in the matrix."""
    differ: BoolArray = (rounded(total, matrix.dtype) != matrix).numpy()
    return differ


def _candidates(left: FloatArray, room: FloatArray, most: int) -> int:
    """Return how many candidates the remaining errors need to fall below the tolerances `room`."""
    if not left.size:
        return 1
    bits = np.ceil(np.log2(np.abs(left).max() / np.median(room)))
    return int(np.clip(bits + _SPARE, min(_LEAST, most), most))


def _room(matrix: torch.Tensor) -> FloatArray:
    """Return each entry's rounding tolerance, half a unit in the last place: nearer numbers round to the entry."""
    if not matrix.dtype.is_floating_point:
        return np.full(matrix.shape, 0.5)
    _, exponent = np.frexp(matrix.double().numpy())
    return np.asarray(np.ldexp(torch.finfo(matrix.dtype).eps / 4, exponent))


def _sizes(target: FloatArray) -> tuple[int, int]:
    inputs, outputs = target.shape
    return inputs, outputs
