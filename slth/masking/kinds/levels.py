"""Kinds in which each weight has its own multiplier: pruned or kept, with a sign, or several times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from slth.masking.kinds.base import Cuts, Kind, by_sign, entropy, require_sizes
from slth.masking.layouts import Axes
from slth.numbers import as_int, put

_MOST = 100  # levels, far below what an int8 holds


class _Levels(Kind):
    """A multiplier from 0 to `depth`: the number of nested masks that keep the weight.

    The masks are cut from the same scores by magnitude: if the first mask keeps n weights, the second keeps
    n (depth - 1) / depth, and so on in equal steps.
    """

    @property
    def depth(self) -> int:
        """The number of nested masks."""
        return 1

    @property
    def shares(self) -> tuple[float, ...]:
        """One share per nested mask."""
        return tuple((self.depth - i) / self.depth for i in range(self.depth))

    def bits(self, keep: float) -> float:
        """Return the entropy of a multiplier: 0 has probability 1 - keep, the levels have equal shares of keep."""
        return entropy(1 - keep, *[keep / self.depth] * self.depth)

    def multiplier(self, scores: torch.Tensor, cuts: Cuts, offset: int, axes: Axes) -> torch.Tensor:
        """Count the masks that keep each weight."""
        first, *others = [cut.mask(scores, offset) for cut in cuts]
        total = first.to(torch.int8)
        for mask in others:
            total = total + mask
        return total

    def pieces(self, multiplier: torch.Tensor, axes: Axes) -> list[torch.Tensor]:
        """Return whether the first mask keeps each weight, whether the second keeps each of those, and so on."""
        rest, pieces = multiplier.flatten().abs(), []
        for level in range(1, self.depth + 1):
            kept = rest >= level
            pieces.append(kept)
            rest = rest[kept]
        return pieces

    def joined(self, shape: Sequence[int], pieces: Sequence[torch.Tensor], axes: Axes) -> torch.Tensor:
        """Add the nested masks to multipliers."""
        out = torch.zeros(math.prod(shape), dtype=torch.int8, device="cpu")
        require_sizes(pieces, [out.numel(), *(int(p.sum()) for p in pieces[: self.depth - 1])])
        where = torch.arange(out.numel(), device="cpu")
        for piece in pieces:
            where = where[piece]
            out[where] += 1
        return out.reshape(tuple(shape))


@dataclass(frozen=True)
class Prune(_Levels):
    """A weight is pruned or kept: at most 1 bit per weight (Ramanujan et al. 2020, arXiv 1911.13299)."""

    key: ClassVar[str] = "prune"


@dataclass(frozen=True)
class _Deep(_Levels):
    """`levels` nested masks, an int from 1 to _MOST."""

    levels: int = 1

    def __post_init__(self) -> None:
        put(self, levels=as_int("levels", self.levels, 1, _MOST, "the number of nested masks"))

    @property
    def depth(self) -> int:
        """The number of nested masks, `levels`."""
        return self.levels


@dataclass(frozen=True)
class Nested(_Deep):
    """The sum of nested masks: multicoated supermasks (Okoshi et al. 2022, ICML), at most log2(levels + 1) bits each.

    A weight takes that many bits if keep is levels / (levels + 1), so that all multipliers are equally likely: 1.58
    with 2 levels, 2 with 3. Raises ValueError unless levels is an int from 1 to 100.
    """

    key: ClassVar[str] = "nested"

    levels: int = 2


@dataclass(frozen=True)
class Signed(_Deep):
    """A weight is pruned, or kept with either sign, up to `levels` times: at most 1.58 bits per weight with one level.

    The magnitude of a score determines whether and how often its weight is kept, the sign of the score determines the
    sign. The gradient of the score is gradient * weight, that of weight * score. A signed mask of w is an ordinary mask
    of the pair (w, -w) that keeps one or none. The number of bits is largest if keep is 2 levels / (2 levels + 1). With
    keep=1 and one level, only signs are learned, at 1 bit per weight. Raises ValueError unless levels is an int from 1
    to 100.
    """

    key: ClassVar[str] = "signed"

    def bits(self, keep: float) -> float:
        """Return the bits of the level, and 1 bit for the sign of each kept weight."""
        return super().bits(keep) + keep

    def multiplier(self, scores: torch.Tensor, cuts: Cuts, offset: int, axes: Axes) -> torch.Tensor:
        """Return the level times the score's sign."""
        return super().multiplier(scores, cuts, offset, axes) * by_sign(scores)

    def slope(self, product: torch.Tensor, scores: torch.Tensor, axes: Axes) -> torch.Tensor:
        """Return weight * gradient, whatever the score's sign."""
        return product

    def pieces(self, multiplier: torch.Tensor, axes: Axes) -> list[torch.Tensor]:
        """Return the pieces of the levels, and whether each kept weight is negated."""
        kept = multiplier.flatten()
        return [*super().pieces(multiplier, axes), kept[kept != 0] < 0]

    def joined(self, shape: Sequence[int], pieces: Sequence[torch.Tensor], axes: Axes) -> torch.Tensor:
        """Join the levels and the signs to multipliers."""
        out = super().joined(shape, pieces[:-1], axes).flatten()
        where = out.nonzero().flatten()
        require_sizes(pieces[-1:], [where.numel()])
        negative = where[pieces[-1]]
        out[negative] = -out[negative]
        return out.reshape(tuple(shape))
