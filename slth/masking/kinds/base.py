"""The base class of the kinds of masks.

A kind computes multipliers from scores, small ints of the weight's shape: a weight is multiplied by its multiplier, so
that it is pruned where that is 0. A kind also defines which scores compete, the gradient of the scores, and how a
ticket stores the multipliers. It is immutable and has no state: its fields are its options.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from slth.kernels import Cut
from slth.masking.layouts import Axes

#: One cut for each of a kind's `shares`.
Cuts = Sequence[Cut]


@dataclass(frozen=True)
class Kind:
    """Base of all kinds of masks; a subclass is a frozen dataclass whose fields are numbers.

    key: its name in `slth.masking.kinds.KINDS` and in a ticket.
    """

    key: ClassVar[str]

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the number kept at which a group's scores are cut: 1, then descending.

        Empty if the kind compares scores by itself.
        """
        return (1.0,)

    @abstractmethod
    def bits(self, keep: float) -> float:
        """Return the bits per weight that encode its multiplier at this share kept: the entropy of the multipliers."""

    # of a weight

    def check(self, shape: Sequence[int], axes: Axes, keep: float) -> None:
        """Raise ValueError if a weight of this shape, or with this share kept, cannot have such a mask."""

    def score_shape(self, shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
        """Return the shape of the scores of a weight with this shape."""
        return tuple(shape)

    def pooled(self, weight: torch.Tensor, axes: Axes) -> torch.Tensor:
        """Return the weight of each score, of the scores' shape: the mean magnitude if a score has several weights."""
        return weight

    @abstractmethod
    def multiplier(self, scores: torch.Tensor, cuts: Cuts, offset: int, axes: Axes) -> torch.Tensor:
        """Compute the multipliers (int8, broadcastable to the weight) from the scores of a weight or an equal part.

        cuts: one for each of `shares`; offset: the index in the group of the first score.
        """

    def slope(self, product: torch.Tensor, scores: torch.Tensor, axes: Axes) -> torch.Tensor:
        """Compute the straight-through gradient of the scores from product = weight * gradient (the weight's shape)."""
        return product * torch.where(scores < 0, -1.0, 1.0)

    # of a ticket

    @abstractmethod
    def pieces(self, multiplier: torch.Tensor, axes: Axes) -> list[torch.Tensor]:
        """Encode the multipliers of a weight as flat bool tensors; :meth:`joined` decodes them."""

    @abstractmethod
    def joined(self, shape: Sequence[int], pieces: Sequence[torch.Tensor], axes: Axes) -> torch.Tensor:
        """Decode :meth:`pieces` to multipliers, int8 of this shape. Raises ValueError for pieces that do not fit."""

    def to_json(self) -> list[Any]:
        """Return [key, options] as JSON."""
        return [self.key, asdict(self)]

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in asdict(self).items())
        return f"{self.key}({options})" if options else self.key


def entropy(*shares: float) -> float:
    """Return the entropy in bits of a choice with these probabilities.

    >>> entropy(0.5, 0.5)
    1.0
    """
    return -math.fsum(p * math.log2(p) for p in shares if p > 0)


def by_sign(scores: torch.Tensor) -> torch.Tensor:
    """Return -1 where a score is below 0, else 1 (int8)."""
    return torch.where(scores < 0, -1, 1).to(torch.int8)


def require_sizes(pieces: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
    """Raise ValueError unless pieces have these sizes."""
    if [piece.numel() for piece in pieces] != list(sizes):
        raise ValueError(f"pieces of {[piece.numel() for piece in pieces]} bits, must be {list(sizes)}")
