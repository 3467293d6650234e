"""A matrix hidden by a structured code (`slth.construct.codes`): one mask of units per block of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from slth.construct.codes import BlockProduct, Code, block_sums, encode, spread
from slth.construct.subset_sum import FloatArray

_SHAPE = ("bits", "block", "pairs", "orthogonal", "scale")  # the options of a code that a source depends on


@dataclass(frozen=True)
class Coded:
    """A matrix hidden in its own pruned :class:`BlockProduct`.

    name: prefix of the names of the block product's weights; scale: its recorded scales, bfloat16; mask: the mask of
    its units, flat, packed eight per byte; matrix: the matrix of the pruned product, float64.
    """

    name: str
    seed: int
    code: Code
    scale: torch.Tensor
    mask: npt.NDArray[np.uint8]
    matrix: FloatArray
    unreachable: int
    bits: int

    @property
    def most(self) -> int:
        """The units of a block, or its pairs of units."""
        return self.code.vectors

    @property
    def sizes(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        inputs, outputs = self.matrix.shape
        return inputs, outputs

    def plan(self) -> list[Any]:
        """Return the options of the code, as the only stage."""
        return [{name: value for name, value in asdict(self.code).items() if name in _SHAPE}]

    def merged(self) -> FloatArray:
        """Return the matrix, float64."""
        return self.matrix

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the mask of the first factor (inputs, blocks, units); the second factor is not pruned."""
        inputs, outputs = self.sizes
        shape = inputs, -(-outputs // int(self.code.block or 1)), -1
        kept = np.unpackbits(self.mask).view(np.bool_)
        size = inputs * shape[1] * self.code.vectors * (1 + self.code.pairs)
        return {f"{self.name}.first": torch.from_numpy(kept[:size].reshape(shape))}

    def record(self, stages: nn.Module) -> None:
        """Write the scales into the source's block product."""
        stages.get_buffer("0.scale").copy_(self.scale)

    def factors(self) -> tuple[torch.Tensor, ...]:
        """Return the masked first factor, and the second."""
        source = BlockProduct(*self.sizes, self.code, seed=self.seed, name=self.name)
        (mask,) = self.masks().values()
        return source.first.detach() * mask, source.second.detach()

    def product(self, factors: Sequence[torch.Tensor]) -> FloatArray:
        """Compute the matrix of pruned factors, float64."""
        first, second = factors
        return block_sums(first, second, spread(self.scale, self.code, self.matrix.shape[1])).numpy()


def encoded(name: str, matrix: torch.Tensor, code: Code, *, seed: int, threads: int | None) -> Coded:
    """Hide a matrix (inputs, outputs) in a block product whose weights are named after the matrix."""
    name = f"{name}.0"
    construction = encode(matrix.double(), code, seed=seed, name=name, threads=threads)
    assert isinstance(construction.source, BlockProduct)
    return Coded(
        name=name,
        seed=seed,
        code=code,
        scale=construction.source.scale,
        mask=np.packbits(construction.masks["first"].numpy()),
        matrix=construction.merged.numpy(),
        unreachable=construction.unreachable,
        bits=round(construction.bits * construction.entries),
    )
