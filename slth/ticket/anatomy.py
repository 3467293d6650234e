"""Find the parts of a network in its masks: layers, attention projections, heads and hidden units.

They are recognised by names and shapes, so that a ticket needs no module for it: stacks (heads, in, out) of
`slth.attention`, GPT-2's `c_attn`, `c_fc` and `c_proj` (in, out), separate or fused projections (out, in) of torch and
Hugging Face, entries (in, out) of a ParameterList, and matrices (out, in) otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from slth.masking.parameters import Part

PROJECTIONS = ("query", "key", "value", "output")
_INPUTS_FIRST = {"c_attn", "c_proj", "c_fc"}
_OUTPUTS = {"c_proj", "out_proj", "o_proj", "dense"}  # in a module whose name contains "att"
_FEED_FORWARD = {"c_fc": "in", "c_proj": "out"}


@dataclass(frozen=True)
class Matrix:
    """One projection, or one matrix, of a masked weight.

    Attributes:
        weight: the name of the weight.
        role: "query", "key", "value" or "output" in an attention, "in" or "out" in GPT-2's feed-forward network, else
            its own name.
        mask: bool (heads, in, out), with one head if there are none or their number is unknown.
        stacked: whether the heads are known.
    """

    weight: str
    role: str
    mask: torch.Tensor
    stacked: bool

    @property
    def layer(self) -> int | None:
        """The first number in its name, None without one."""
        return next((int(part) for part in self.weight.split(".") if part.isdecimal()), None)

    @property
    def parent(self) -> str:
        """The name of the module around its layer: a feed-forward network or an attention."""
        return _split(self.weight)[0]


def matrices(
    masks: Mapping[str, torch.Tensor], parts: Mapping[str, Sequence[Part]], heads: int | None
) -> Iterator[Matrix]:
    """Yield the matrices of all weights with two or more axes.

    Args:
        masks: bool, by name of the weight.
        parts: the parts of each weight, by name.
        heads: the number of query heads of each attention, None if unknown. Keys and values have heads of the same
            width, so that narrower ones have fewer heads.

    Raises:
        ValueError: if heads does not divide a projection.
    """
    widths: dict[str, int] = {}
    for weight, mask in masks.items():
        if mask.dim() < 2:
            continue
        for part in parts[weight]:
            parent, name = _split(weight)
            role = part.role or _role(parent, name)
            known = mask.dim() == 3 and role in PROJECTIONS
            stack = part.of(mask) if known else _matrix(part.of(mask), weight, part)[None]
            if heads is not None and role in PROJECTIONS and not known:
                axis = 1 if role == "output" else 2
                size = stack.shape[axis]
                width = widths.setdefault(parent, size // heads)  # the first projection is the query's
                if not width or size % width or (role == "query" and size % heads):
                    raise ValueError(f"heads={heads}: must divide the {size} features of {weight} into equal heads")
                stack, known = torch.cat(stack.split(width, axis)), True
            yield Matrix(weight, role, stack, known)


def _matrix(mask: torch.Tensor, weight: str, part: Part) -> torch.Tensor:
    """The mask of a weight, or of an equal part, as a matrix (in, out)."""
    name = _split(weight)[1]
    in_a_list = name.isdecimal() and weight.endswith(name)
    inputs_first = part.dim == 1 if part.count > 1 else name in _INPUTS_FIRST or in_a_list
    return mask if inputs_first and mask.dim() == 2 else mask.flatten(1).T


def _split(weight: str) -> tuple[str, str]:
    """(the parent of the layer, the layer's name); a parameter not called "weight" counts as a layer itself."""
    path, _, leaf = weight.rpartition(".")
    if leaf != "weight":
        return path, leaf
    parent, _, name = path.rpartition(".")
    return parent, name


def _role(parent: str, name: str) -> str:
    if name in _OUTPUTS and "att" in parent.rpartition(".")[2].lower():
        return "output"
    return _FEED_FORWARD.get(name, name)


def hidden_units(network: Sequence[Matrix]) -> Iterator[tuple[Matrix, torch.Tensor]]:
    """Yield (matrix, dead) for the hidden units after a matrix; dead is bool (units,).

    A unit is dead if it has no incoming or no outgoing weight. Units are hidden between two matrices that follow each
    other in one module of a layer, outside of attentions, with fitting sizes.
    """
    inside = [m for m in network if m.role not in PROJECTIONS and m.layer is not None and len(m.mask) == 1]
    for one, other in pairwise(inside):
        if one.parent == other.parent and one.mask.shape[2] == other.mask.shape[1]:
            yield one, ~(one.mask[0].any(0) & other.mask[0].any(1))


def dead_heads(network: Sequence[Matrix]) -> Iterator[tuple[str, int]]:
    """Yield (attention, head) if all values or all outputs of a head are pruned: it adds nothing that depends on x."""
    attentions: dict[str, dict[str, torch.Tensor]] = {}
    for matrix in network:
        if matrix.role in PROJECTIONS and matrix.stacked:
            attentions.setdefault(matrix.parent, {})[matrix.role] = matrix.mask.flatten(1).any(1)
    for attention, alive in attentions.items():
        count = max(map(len, alive.values()))
        for head in range(count):
            if not all(alive[r][head * len(alive[r]) // count] for r in ("value", "output") if r in alive):
                yield attention, head
