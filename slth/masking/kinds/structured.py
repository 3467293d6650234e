"""Kinds whose masks have a structure that hardware can exploit: whole blocks, or n of every m weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch

from slth.masking.kinds.base import Cuts, Kind, entropy, require_sizes
from slth.masking.layouts import Axes
from slth.numbers import as_int, put


@dataclass(frozen=True)
class Blocks(Kind):
    """Blocks of `rows` output units by `columns` inputs are pruned or kept as a whole, with one score each.

    A block of a convolution contains whole kernels. This takes at most 1 / (rows * columns) bits per weight. Raises
    ValueError unless both are ints >= 1.
    """

    key: ClassVar[str] = "blocks"

    rows: int = 4
    columns: int = 4

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            put(self, **{name: as_int(name, getattr(self, name), 1, meaning=f"{name} of a block")})

    def bits(self, keep: float) -> float:
        """Return the entropy of one choice per block, per weight; an upper bound for kernels."""
        return entropy(keep, 1 - keep) / (self.rows * self.columns)

    def check(self, shape: Sequence[int], axes: Axes, keep: float) -> None:
        """Raise ValueError unless the blocks divide the weight."""
        _require_axes(self, shape)
        if shape[axes.outputs] % self.rows or shape[axes.inputs] % self.columns:
            units = f"{shape[axes.outputs]} outputs and {shape[axes.inputs]} inputs"
            raise ValueError(f"{units}: must be divisible by rows={self.rows} and columns={self.columns}")

    def score_shape(self, shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
        """Return the shape of the scores: one per block."""
        return tuple(size // self._size(shape, i, axes) for i, size in enumerate(shape))

    def pooled(self, weight: torch.Tensor, axes: Axes) -> torch.Tensor:
        """Return the mean magnitude of each block."""
        return self._summed(weight.abs(), axes) / (weight.numel() // math.prod(self.score_shape(weight.shape, axes)))

    def multiplier(self, scores: torch.Tensor, cuts: Cuts, offset: int, axes: Axes) -> torch.Tensor:
        """Expand the mask of the blocks to weights; axes of kernels, which blocks contain whole, have size 1."""
        return self._spread(cuts[0].mask(scores, offset).to(torch.int8), axes)

    def slope(self, product: torch.Tensor, scores: torch.Tensor, axes: Axes) -> torch.Tensor:
        """Sum the products over each block."""
        return super().slope(self._summed(product, axes), scores, axes)

    def pieces(self, multiplier: torch.Tensor, axes: Axes) -> list[torch.Tensor]:
        """Return one bit per block, that of its first weight."""
        for axis in range(multiplier.dim()):
            step = self._size(multiplier.shape, axis, axes)
            multiplier = multiplier.index_select(axis, torch.arange(0, multiplier.shape[axis], step))
        return [multiplier.flatten() != 0]

    def joined(self, shape: Sequence[int], pieces: Sequence[torch.Tensor], axes: Axes) -> torch.Tensor:
        """Expand the bits of the blocks to multipliers."""
        grid = self.score_shape(shape, axes)
        require_sizes(pieces, [math.prod(grid)])
        return self._spread(pieces[0].reshape(grid).to(torch.int8), axes).expand(tuple(shape)).contiguous()

    def _size(self, shape: Sequence[int], axis: int, axes: Axes) -> int:
        """The size of a block along an axis."""
        sizes = {axes.outputs: self.rows, axes.inputs: self.columns}
        return sizes.get(axis, shape[axis] if axis > max(axes.outputs, axes.inputs) else 1)

    def _spread(self, grid: torch.Tensor, axes: Axes) -> torch.Tensor:
        wide = grid.repeat_interleave(self.rows, axes.outputs)
        return wide.repeat_interleave(self.columns, axes.inputs)

    def _summed(self, tensor: torch.Tensor, axes: Axes) -> torch.Tensor:
        for axis in reversed(range(tensor.dim())):
            size = self._size(tensor.shape, axis, axes)
            tensor = tensor.unflatten(axis, (-1, size)).sum(axis + 1)
        return tensor


@dataclass(frozen=True)
class NOfM(Kind):
    """Of every m consecutive weights along the inputs, the n with the largest score magnitude are kept (2 of 4, say).

    This takes log2(m choose n) / m bits per weight. keep must be n / m. Ties go to the first weight. Raises ValueError
    unless both are ints with 1 <= n < m.
    """

    key: ClassVar[str] = "n_of_m"

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        put(self, m=as_int("m", self.m, 2, meaning="weights of which n are kept"))
        put(self, n=as_int("n", self.n, 1, meaning="weights kept of m"))
        if self.n >= self.m:
            raise ValueError(f"n={self.n}: must be an int from 1 to {self.m - 1}, weights kept of m={self.m}")

    @property
    def shares(self) -> tuple[float, ...]:
        """Empty: scores compete only within m consecutive weights."""
        return ()

    def bits(self, keep: float) -> float:
        """Return log2(m choose n) / m."""
        return math.log2(math.comb(self.m, self.n)) / self.m

    def check(self, shape: Sequence[int], axes: Axes, keep: float) -> None:
        """Raise ValueError unless m divides the inputs and keep is n / m."""
        _require_axes(self, shape)
        if shape[axes.inputs] % self.m:
            raise ValueError(f"{shape[axes.inputs]} inputs: must be divisible by m={self.m}")
        if Fraction(str(keep)) != Fraction(self.n, self.m) and keep != self.n / self.m:
            raise ValueError(f"keep={keep}: must be {self.n / self.m}, n={self.n} of m={self.m}")

    def multiplier(self, scores: torch.Tensor, cuts: Cuts, offset: int, axes: Axes) -> torch.Tensor:
        """Keep the n largest scores of every m."""
        grouped = self._grouped(scores.abs(), axes)
        best = grouped.argsort(dim=-1, descending=True, stable=True)[..., : self.n]
        kept = torch.zeros(grouped.shape, dtype=torch.int8, device=scores.device).scatter(-1, best, 1)
        return kept.flatten(-2).movedim(-1, axes.inputs)

    def pieces(self, multiplier: torch.Tensor, axes: Axes) -> list[torch.Tensor]:
        """Return the bits at each place of m, separated by how many weights remain to be kept: a chain of choices."""
        kept = self._grouped(multiplier, axes).flatten(0, -2) != 0
        left = self.n - (kept.cumsum(-1) - kept.long())  # weights that remain to be kept, before each place
        return [kept[left[:, i] == many, i] for i, many in self._contexts()]

    def joined(self, shape: Sequence[int], pieces: Sequence[torch.Tensor], axes: Axes) -> torch.Tensor:
        """Replay the chain of choices to get the multipliers."""
        blank = torch.zeros(tuple(shape), dtype=torch.int8, device="cpu")
        grouped = self._grouped(blank, axes)
        kept = torch.zeros(grouped.flatten(0, -2).shape, dtype=torch.bool, device="cpu")
        left = torch.full((len(kept),), self.n, device="cpu")
        choices = dict(zip(self._contexts(), pieces, strict=True))
        for i in range(self.m):
            kept[:, i] = left >= self.m - i  # groups that must keep all that follow
            for many in range(1, min(self.n, self.m - i - 1) + 1):
                here = left == many
                require_sizes([choices[i, many]], [int(here.sum())])
                kept[here, i] = choices[i, many]
            left -= kept[:, i].long()
        return kept.to(torch.int8).reshape(grouped.shape).flatten(-2).movedim(-1, axes.inputs).contiguous()

    def _contexts(self) -> list[tuple[int, int]]:
        """(place, number of weights that remain to be kept) wherever there is a choice."""
        return [(i, many) for i in range(self.m) for many in range(1, min(self.n, self.m - i - 1) + 1)]

    def _grouped(self, tensor: torch.Tensor, axes: Axes) -> torch.Tensor:
        """Reshape to (..., inputs / m, m)."""
        grouped: torch.Tensor = tensor.movedim(axes.inputs, -1).unflatten(-1, (-1, self.m))
        return grouped


def _require_axes(kind: Kind, shape: Sequence[int]) -> None:
    if len(shape) < 2:
        raise ValueError(f"shape {tuple(shape)}: must have two axes or more for {kind}")
