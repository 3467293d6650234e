"""Masks of weights in opposite pairs of which some are kept or pruned together.

Of such a weight (`Recipe.pairs`) a mask is told in two: whether both of a pair are kept or pruned alike, and where that
changes along the axis of the pairs; and the bits of the first of each pair, those of pairs that are not alike and those
of the others. Where exactly one of each pair is kept, a weight is told more simply (`Weight.one_of_pair`).
"""

from __future__ import annotations

import torch

from slth.ticket.record import Weight


def in_pairs(weight: Weight) -> bool:
    """Whether a weight's mask is told as this file says."""
    if weight.recipe is None or weight.recipe.pairs is None or weight.traits or weight.one_of_pair:
        return False
    axis, sign = weight.recipe.pairs
    return sign < 0 and weight.shape[axis] % 2 == 0


def alike(weight: Weight, mask: torch.Tensor) -> torch.Tensor:
    """Whether both of a pair are kept, or neither, half the weight's shape; mask is flat."""
    first, second = _pairs(weight, mask)
    return first == second


def changes(weight: Weight, alike: torch.Tensor) -> list[torch.Tensor]:
    """`alike` of the first along the axis, and where that of all others differs from the one before."""
    axis = _axis(weight)
    count = alike.shape[axis]
    return [alike.narrow(axis, 0, 1), alike.narrow(axis, 1, count - 1) ^ alike.narrow(axis, 0, count - 1)]


def change_sizes(weight: Weight) -> list[int]:
    """Of the two of :func:`changes`."""
    first = weight.size // weight.shape[_axis(weight)]
    return [first, weight.size // 2 - first]


def changed(weight: Weight, changes: list[torch.Tensor]) -> torch.Tensor:
    """What :func:`changes` was made of, whose two are flat here."""
    axis, count = _axis(weight), weight.shape[_axis(weight)] // 2
    shapes = [[size if i == axis else each for i, each in enumerate(weight.shape)] for size in (1, count - 1)]
    flags = torch.cat([each.reshape(shape) for each, shape in zip(changes, shapes, strict=True)], axis)
    return (flags.cumsum(axis, dtype=torch.uint8) & 1).bool()


def pieces(weight: Weight, mask: torch.Tensor, alike: torch.Tensor) -> list[torch.Tensor]:
    """The bits of the first of pairs: of those that are not alike, and of those that are."""
    first, _ = _pairs(weight, mask)
    return [first[~alike], first[alike]]


def whole(weight: Weight, pieces: list[torch.Tensor], alike: torch.Tensor) -> torch.Tensor:
    """The mask, flat, of its pieces."""
    first = torch.empty_like(alike)
    first[~alike], first[alike] = pieces
    return torch.stack((first, first ^ ~alike), dim=_axis(weight) + 1).flatten()


def _pairs(weight: Weight, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    axis = _axis(weight)
    first, second = mask.reshape(weight.shape).unflatten(axis, (-1, 2)).unbind(axis + 1)
    return first, second


def _axis(weight: Weight) -> int:
    assert weight.recipe is not None
    assert weight.recipe.pairs is not None
    return weight.recipe.pairs[0]
