"""What a mask may make of one weight: the base of all kinds.

A kind turns scores into multipliers, small ints of the weight's shape: a weight is pruned where its multiplier is 0,
and multiplied by it elsewhere. It also says which scores compete, what gradient they get, and how a ticket stores the
multipliers. A kind is immutable and has no state: its fields are its options, and all that varies is in the scores.
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

#: One cut for each of a kind's `shares`, and the index in its group of the first score.
Cuts = Sequence[Cut]


@dataclass(frozen=True)
class Kind:
    """Base of all mask kinds; a subclass is a frozen dataclass whose fields are numbers.

    key: its name in `slth.masking.kinds.KINDS` and in a ticket. shares: scores are cut at these shares of the number
    of weights kept, the first of which is 1; empty where a kind compares scores by itself.
    """

    key: ClassVar[str]

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of keep at which the scores of a group are cut, descending."""
        return (1.0,)

    @abstractmethod
    def bits(self, keep: float) -> float:
        """Bits a weight that say which multiplier it has, at this share kept; the entropy where all are as likely."""

    # of a weight

    def check(self, shape: Sequence[int], axes: Axes, keep: float) -> None:
        """Raise ValueError where a weight of this shape, or one with this share kept, cannot have such a mask."""

    def score_shape(self, shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
        """The shape of the scores of a weight of this shape."""
        return tuple(shape)

    def pooled(self, weight: torch.Tensor, axes: Axes) -> torch.Tensor:
        """Weight -> the weight behind each score, of the scores' shape: the mean magnitude where these are several."""
        return weight

    @abstractmethod
    def multiplier(self, scores: torch.Tensor, cuts: Cuts, offset: int, axes: Axes) -> torch.Tensor:
        """Scores of a weight or an equal part -> its multipliers, int8 of a shape that broadcasts to the weight's.

        cuts: one for each of `shares`; offset: the index in the group of the first score.
        """

    def slope(self, product: torch.Tensor, scores: torch.Tensor, axes: Axes) -> torch.Tensor:
        """The straight-through gradient of the scores: product is weight * gradient, of the weight's shape."""
        return product * torch.where(scores < 0, -1.0, 1.0)

    # of a ticket

    @abstractmethod
    def pieces(self, multiplier: torch.Tensor, axes: Axes) -> list[torch.Tensor]:
        """Multipliers of a weight -> flat bool tensors that together say all of them."""

    @abstractmethod
    def joined(self, shape: Sequence[int], pieces: Sequence[torch.Tensor], axes: Axes) -> torch.Tensor:
        """The multipliers, int8 of this shape, of :meth:`pieces`. Raises ValueError for pieces that do not fit."""

    def to_json(self) -> list[Any]:
        """The kind as JSON: its key, then its options."""
        return [self.key, asdict(self)]

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in asdict(self).items())
        return f"{self.key}({options})" if options else self.key


def entropy(*shares: float) -> float:
    """Bits of a choice of which these are the probabilities.

    >>> entropy(0.5, 0.5)
    1.0
    """
    return -math.fsum(p * math.log2(p) for p in shares if p > 0)


def by_sign(scores: torch.Tensor) -> torch.Tensor:
    """-1 where a score is below 0, else 1: int8."""
    return torch.where(scores < 0, -1, 1).to(torch.int8)


def require_sizes(pieces: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
    """Raise ValueError unless pieces have these sizes."""
    if [piece.numel() for piece in pieces] != list(sizes):
        raise ValueError(f"pieces of {[piece.numel() for piece in pieces]} bits, must be {list(sizes)}")
