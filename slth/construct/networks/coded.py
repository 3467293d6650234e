"""One matrix hidden by a structured code (`slth.construct.codes`): a mask of whole units for each block of weights."""

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

_SHAPE = ("bits", "block", "pairs", "orthogonal", "scale")  # what a source depends on, of a code


@dataclass(frozen=True)
class Coded:
    """A matrix as the pruned units of a :class:`BlockProduct` of its own.

    name: that of the block product's weights; scale: as it records them, bfloat16; mask: of its units, flat, eight to
    a byte; matrix: what they add up to, float64.
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
        """Units, or pairs of them, of a block."""
        return self.code.vectors

    @property
    def sizes(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        inputs, outputs = self.matrix.shape
        return inputs, outputs

    def plan(self) -> list[Any]:
        """The code, as the only stage."""
        return [{name: value for name, value in asdict(self.code).items() if name in _SHAPE}]

    def merged(self) -> FloatArray:
        """The matrix, float64."""
        return self.matrix

    def masks(self) -> dict[str, torch.Tensor]:
        """The mask of the first factor (inputs, blocks, units); the second is kept whole."""
        inputs, outputs = self.sizes
        shape = inputs, -(-outputs // int(self.code.block or 1)), -1
        kept = np.unpackbits(self.mask).view(np.bool_)
        size = inputs * shape[1] * self.code.vectors * (1 + self.code.pairs)
        return {f"{self.name}.first": torch.from_numpy(kept[:size].reshape(shape))}

    def record(self, stages: nn.Module) -> None:
        """Write the scales into the source's block product."""
        stages.get_buffer("0.scale").copy_(self.scale)

    def factors(self) -> tuple[torch.Tensor, ...]:
        """The first factor under its mask, and the second."""
        source = BlockProduct(*self.sizes, self.code, seed=self.seed, name=self.name)
        (mask,) = self.masks().values()
        return source.first.detach() * mask, source.second.detach()

    def product(self, factors: Sequence[torch.Tensor]) -> FloatArray:
        """The matrix that pruned factors make, float64."""
        first, second = factors
        return block_sums(first, second, spread(self.scale, self.code, self.matrix.shape[1])).numpy()


def encoded(name: str, matrix: torch.Tensor, code: Code, *, seed: int, threads: int | None) -> Coded:
    """Hide a matrix (inputs, outputs) in a block product whose weights are named after it."""
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
