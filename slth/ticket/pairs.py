"""Encode masks of weights that come in opposite pairs, of which some are kept or pruned together.

The mask of such a weight (`Recipe.pairs`) is encoded in two parts. The first is whether the two entries of each pair
are alike (both kept or both pruned), as changes along the axis of the pairs. The second is the mask of the first entry
of each pair, separately for pairs that are not alike and pairs that are. A mask that keeps exactly one entry of each
pair has a simpler encoding (`Weight.one_of_pair`).
"""

from __future__ import annotations

import torch

from slth.ticket.record import Weight


def in_pairs(weight: Weight) -> bool:
    """Return whether a weight's mask is encoded in this way."""
    if weight.recipe is None or weight.recipe.pairs is None or weight.traits or weight.one_of_pair:
        return False
    axis, sign = weight.recipe.pairs
    return sign < 0 and weight.shape[axis] % 2 == 0


def alike(weight: Weight, mask: torch.Tensor) -> torch.Tensor:
    """Return, for each pair, whether both or none of its entries are kept, given the flat mask."""
    first, second = _pairs(weight, mask)
    return first == second


def changes(weight: Weight, alike: torch.Tensor) -> list[torch.Tensor]:
    """Encode `alike`: its first entries along the axis, and where all others differ from the one before."""
    axis = _axis(weight)
    count = alike.shape[axis]
    return [alike.narrow(axis, 0, 1), alike.narrow(axis, 1, count - 1) ^ alike.narrow(axis, 0, count - 1)]


def change_sizes(weight: Weight) -> list[int]:
    """Return the sizes of the two tensors of :func:`changes`."""
    first = weight.size // weight.shape[_axis(weight)]
    return [first, weight.size // 2 - first]


def changed(weight: Weight, changes: list[torch.Tensor]) -> torch.Tensor:
    """Decode the two tensors of :func:`changes`, flattened, to `alike`."""
    axis, count = _axis(weight), weight.shape[_axis(weight)] // 2
    shapes = [[size if i == axis else each for i, each in enumerate(weight.shape)] for size in (1, count - 1)]
    flags = torch.cat([each.reshape(shape) for each, shape in zip(changes, shapes, strict=True)], axis)
    return (flags.cumsum(axis, dtype=torch.uint8) & 1).bool()


def pieces(weight: Weight, mask: torch.Tensor, alike: torch.Tensor) -> list[torch.Tensor]:
    """Return the masks of the first entries of pairs that are not alike, and of pairs that are."""
    first, _ = _pairs(weight, mask)
    return [first[~alike], first[alike]]


def joined(weight: Weight, pieces: list[torch.Tensor], alike: torch.Tensor) -> torch.Tensor:
    """Decode :func:`pieces` to the flat mask."""
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
