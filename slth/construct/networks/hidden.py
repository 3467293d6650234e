"""The interface of a hidden matrix: masks of random weights, and the matrix that the kept ones add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from slth.construct.subset_sum import FloatArray


class Hidden(Protocol):
    """A matrix (inputs, outputs) hidden in random weights, which the source holds under the linear map's name.

    unreachable: number of entries outside the range of their candidates' sums; most: the most candidates of an entry;
    bits: bits of the masks, and of scales that only the ticket records.
    """

    @property
    def unreachable(self) -> int: ...  # noqa: D102

    @property
    def most(self) -> int: ...  # noqa: D102

    @property
    def bits(self) -> int: ...  # noqa: D102

    @property
    def sizes(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        ...

    def plan(self) -> list[Any]:
        """Return the source's arguments for each stage, as JSON values."""
        ...

    def merged(self) -> FloatArray:
        """Return the matrix that the pruned weights add up to, float64."""
        ...

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the masks by the names of their weights in the source."""
        ...

    def record(self, stages: nn.Module) -> None:
        """Write the scales into the source's stages of this map."""
        ...

    def factors(self) -> tuple[torch.Tensor, ...]:
        """Return the masked weights, float32, 0 where pruned."""
        ...

    def product(self, factors: Sequence[torch.Tensor]) -> FloatArray:
        """Compute the matrix of :meth:`factors`: the same bits as :meth:`merged`."""
        ...
