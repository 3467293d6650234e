"""Stages: a matrix as a sum of pruned random products, the coarsest first, each solved for the remaining error.

A stage is Lemma 7 of arXiv 2511.04217 with units in pairs: h[k, i] = a[k, i] x[i], y[o] = scale sum_(k, i) b[k, i, o]
h[k, i]. Unit (k, i) has the input i, so an entry (i, o) has the candidates a[k, i] b[k, i, o]. The two units of a pair
have opposite b. A mask of b that keeps one of each pair gives the entry a signed sum of candidates, which is centred at
0; a mask that keeps neither gives 0.

a are random signs, and b are odd points of a 24-bit lattice on (-1, 1). So sums of candidates are exact in float64 in
any order, and as the scale is a power of two, products are the same bits on every device. More than 24 candidates per
stage add no precision to this lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from slth.construct import subset_sum
from slth.construct.subset_sum import BoolArray, FloatArray
from slth.weights.recipes import Draw, Recipe

_TOGETHER = 1 << 16  # entries solved at a time, with 8 bytes per candidate


@dataclass(frozen=True)
class Units:
    """The random product of a stage, before pruning.

    name: prefix of the names of its weights, which end in "first" and "second"; candidates: candidates per entry, one
    for each pair of units; sizes: (inputs, outputs); scale: a power of two.
    """

    name: str
    seed: int
    candidates: int
    sizes: tuple[int, int]
    scale: float = 1.0

    @property
    def first(self) -> Recipe:
        """The recipe of a (units, inputs), with twice as many units as candidates."""
        return Recipe((Draw("sign", 1.0, self.seed, f"{self.name}.first"),), pairs=(0, 1))

    @property
    def second(self) -> Recipe:
        """The recipe of b (units, inputs, outputs)."""
        return Recipe((Draw("uniform", 1.0, self.seed, f"{self.name}.second"),), pairs=(0, -1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of b, (units, inputs, outputs)."""
        return (2 * self.candidates, *self.sizes)

    def drawn(self) -> tuple[FloatArray, FloatArray]:
        """Draw a (candidates, inputs), float64, and b (candidates, inputs, outputs), float32, each pair once."""
        inputs, outputs = self.sizes
        first = self.first.draws[0].tensor((self.candidates, inputs))
        second = self.second.draws[0].tensor((self.candidates, inputs, outputs))
        return first.double().numpy(), second.numpy()


@dataclass(frozen=True)
class Stage:
    """A random product and its mask as packed bits.

    plus (candidates, inputs, outputs): whether the first unit of a pair is kept, else the second; used (inputs,
    outputs): whether an entry takes part. Both are flat, packed eight per byte.
    """

    units: Units
    plus: npt.NDArray[np.uint8]
    used: npt.NDArray[np.uint8]

    def mask(self) -> torch.Tensor:
        """Return the mask of b, bool (units, inputs, outputs)."""
        units = self.units
        plus = _unpacked(self.plus, (units.candidates, *units.sizes))
        return torch.from_numpy(np.stack((plus, ~plus & _unpacked(self.used, units.sizes)), 1).reshape(units.shape))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a (units, inputs) and b (units, inputs, outputs), 0 where pruned, float32."""
        units = self.units
        second = units.second.tensor(units.shape)
        return units.first.tensor(units.shape[:2]), second.masked_fill_(~self.mask(), 0.0)

    def product(self) -> FloatArray:
        """Compute the pruned product (inputs, outputs), scale included, float64."""
        first, second = self.units.drawn()
        plus, used = _unpacked(self.plus, second.shape), _unpacked(self.used, self.units.sizes)
        total = np.zeros(self.units.sizes)
        for a, b, kept in zip(first, second, plus, strict=True):
            total += a[:, None] * np.where(kept, b, np.where(used, -b, 0.0))
        return total * self.units.scale

    @property
    def bits(self) -> int:
        """The bits of the mask: one per candidate of the entries that take part."""
        return self.units.candidates * int(np.bitwise_count(self.used).sum())


def solve(units: Units, target: FloatArray, used: BoolArray, threads: int | None = None) -> tuple[Stage, int]:
    """Find the stage nearest to target (inputs, outputs) at entries with used = True, and count unreachable entries."""
    first, second = units.drawn()
    plus = np.zeros(second.shape, np.bool_)
    rows = max(1, _TOGETHER // units.sizes[1])
    unreachable = 0
    for start in range(0, units.sizes[0], rows):
        part = slice(start, start + rows)
        here = used[part]
        candidates = np.moveaxis(first[:, part, None] * second[:, part], 0, -1)[here]
        wanted = target[part][here] / units.scale
        unreachable += int((np.abs(wanted) > np.abs(candidates).sum(-1)).sum())
        signs = subset_sum.solve(2.0 * candidates, wanted + candidates.sum(-1), threads=threads)  # sums of +-candidates
        plus[:, part][:, here] = signs.masks.T
    return Stage(units, np.packbits(plus), np.packbits(used)), unreachable


def fitted(units: Units, target: FloatArray, used: BoolArray, power: int) -> Units:
    """Choose the scale of units, a power of two, for the least error at the used entries of target.

    For sums that are normal with standard deviation s, the error at a target of t s is proportional to exp(t^2 / 2)
    times the scale. The scale minimises the mean of this error to the given power; a higher power gives large errors
    more weight. It is 1 if all targets are 0.
    """
    _, second = units.drawn()
    spread = np.sqrt(np.square(second).sum(0, dtype=np.float64))[used]
    sizes = np.abs(target[used]) / spread
    if not sizes.any():
        return units
    scales = [float(2.0**exponent) for exponent in np.floor(np.log2(sizes.max())) + np.arange(-2, 4)]
    losses = [power * np.log(scale) + _log_mean_exp(0.5 * power * (sizes / scale) ** 2) for scale in scales]
    return replace(units, scale=scales[int(np.argmin(losses))])


def _log_mean_exp(values: FloatArray) -> float:
    largest = values.max()
    return float(largest + np.log(np.exp(values - largest).mean()))


def _unpacked(packed: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> BoolArray:
    return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).view(np.bool_)
