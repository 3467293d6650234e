"""What any way of hiding one matrix makes: masks of random weights, and the matrix that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from slth.construct.subset_sum import FloatArray


class Hidden(Protocol):
    """A matrix (inputs, outputs) hidden in random weights, which stand in the source under the map's name.

    unreachable: entries beyond what their candidates span; most: candidates of an entry at most; bits: of the masks,
    and of scales that only the ticket records.
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
        """What the source is told of each stage behind its sizes, JSON."""
        ...

    def merged(self) -> FloatArray:
        """The matrix that the pruned weights add up to, float64."""
        ...

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks by the names of their weights in the source."""
        ...

    def record(self, stages: nn.Module) -> None:
        """Write the scales into the source's stages of this map."""
        ...

    def factors(self) -> tuple[torch.Tensor, ...]:
        """The pruned weights, float32, 0 where pruned."""
        ...

    def product(self, factors: Sequence[torch.Tensor]) -> FloatArray:
        """What :meth:`factors` add up to: the same bits as :meth:`merged`."""
        ...
