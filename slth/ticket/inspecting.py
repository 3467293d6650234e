"""Inspect a ticket or a wrapped model: the shares kept, dead heads and units, and the overlap of two tickets.

    found = slth.inspect(ticket)           # or a wrapped model
    print(found)                           # layers by projections, dead heads and units
    pandas.DataFrame(found.columns())      # tidy: a row for each projection and head
    slth.plots.kept_share(pandas.DataFrame(found.columns()))

An applied ticket is a plain module. All tools that read or patch activations work on it, such as
`register_forward_hook`:

    net = ticket.apply(build())
    cache = {}
    net.transformer.h[0].attn.register_forward_hook(lambda m, x, y: cache.update(attention=y[0]))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from slth.masking.parameters import Part
from slth.numbers import as_int
from slth.ticket.anatomy import PROJECTIONS, Matrix, dead_heads, hidden_units, matrices
from slth.wrapping import handle, root

if TYPE_CHECKING:
    from slth.ticket.ticket import Ticket

_HEADS = ("n_head", "num_attention_heads", "num_heads", "heads")  # names in configs and modules


@dataclass(frozen=True)
class Share:
    """The share kept of one head of a projection, or of a matrix without heads.

    Attributes:
        weight, layer, role, head: its place. layer is the first number in the weight's name, None without one; head is
            None if there are no heads or their number is unknown.
        kept, size: the numbers of kept and of all entries.
        units: the number of its inputs if the role is "output" or "out", else of its outputs.
        dead_units: the number of units without a kept entry.
    """

    weight: str
    layer: int | None
    role: str
    head: int | None
    kept: int
    size: int
    units: int
    dead_units: int

    @property
    def share(self) -> float:
        """The share kept, in [0, 1]."""
        return self.kept / self.size


@dataclass(frozen=True)
class Overlap:
    """The overlap of two tickets in one head of a projection, or in a matrix without heads: place and entries kept."""

    weight: str
    layer: int | None
    role: str
    head: int | None
    kept: int
    kept_other: int
    both: int
    size: int

    @property
    def overlap(self) -> float:
        """Intersection over union, in [0, 1]; NaN if both keep nothing."""
        return _over_union(self.both, self.kept, self.kept_other)

    @property
    def by_chance(self) -> float:
        """The overlap of random masks that keep as much: their mean intersection is kept * kept_other / size."""
        return _over_union(self.kept * self.kept_other / self.size, self.kept, self.kept_other)


def _over_union(both: float, one: int, other: int) -> float:
    return both / (one + other - both) if one + other else math.nan


@dataclass(frozen=True)
class Inspection:
    """The shares kept in a network, and its dead heads and units.

    Attributes:
        rows: one share per head of each projection, and per other matrix, in the order of the weights.
        dead_heads: indices by name of the attention. All values or all outputs of such a head are pruned: its output
            does not depend on the tokens.
        dead_units: indices of hidden units of the feed-forward networks, by name of the weight before them. Such a unit
            has no incoming or no outgoing weight.
    """

    rows: tuple[Share, ...]
    dead_heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dead_units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def columns(self) -> dict[str, list[Any]]:
        """Return the rows as columns, including `share`, for `pandas.DataFrame`."""
        return _columns(Share, self.rows, "share")

    def shares(self, *by: str) -> dict[tuple[Any, ...], float]:
        """Return the share kept for each combination of fields of the rows: `shares("layer", "role")`."""
        kept: dict[tuple[Any, ...], list[int]] = {}
        for row in self.rows:
            sums = kept.setdefault(tuple(getattr(row, name) for name in by), [0, 0])
            sums[0] += row.kept
            sums[1] += row.size
        return {key: count / size for key, (count, size) in kept.items()}

    def __str__(self) -> str:
        lines = _table(self.shares("layer", "role"))
        for what, dead in (("heads", self.dead_heads), ("units", self.dead_units)):
            count = sum(map(len, dead.values()))
            lines.append(f"dead {what}: {count or 'none'}")
            lines += [f"  {name}: {_some(indices)}" for name, indices in dead.items()]
        return "\n".join(lines)


def inspect(of: Ticket | nn.Module, *, heads: int | None = None) -> Inspection:
    """Compute the shares kept, and find dead heads and units, in a ticket or a wrapped model.

    Args:
        of: a ticket or a wrapped model.
        heads: the number of heads of each attention whose projections are matrices (out, in) or (in, out). None: that
            in the model's config, or in the ticket's record of how its module was built; without these, projections
            are not split into heads. Stacks (heads, in, out) need no number.

    Raises:
        ValueError: if heads is not an int >= 1 or does not divide a projection, or if a module is not wrapped.
        TicketError: if the masks in a ticket's file do not fit.
    """
    network = _matrices(of, heads)
    heads_of: dict[str, tuple[int, ...]] = {}
    for attention, head in dead_heads(network):
        heads_of[attention] = (*heads_of.get(attention, ()), head)
    units = {m.weight: tuple(dead.nonzero()[:, 0].tolist()) for m, dead in hidden_units(network) if dead.any()}
    rows = (_share(m, h, mask) for m in network for h, mask in _heads(m))
    return Inspection(tuple(rows), heads_of, units)


def overlap(one: Ticket | nn.Module, other: Ticket | nn.Module, *, heads: int | None = None) -> tuple[Overlap, ...]:
    """Compute the overlap of two tickets, or wrapped models, for the same rows as :func:`inspect`.

    Raises ValueError as :func:`inspect` does, and for weights with different names or shapes.
    """
    pairs = _matrices(one, heads), _matrices(other, heads)
    places = [[(m.weight, m.role, tuple(m.mask.shape)) for m in network] for network in pairs]
    for here, there in zip(*places, strict=False):
        if here != there:
            raise ValueError(f"other: has {there} where the first has {here}; must have the same weights")
    if len(places[0]) != len(places[1]):
        raise ValueError(f"other: has {len(places[1])} matrices, must have {len(places[0])} as the first")
    return tuple(
        Overlap(m.weight, m.layer, m.role, h, int(a.sum()), int(b.sum()), int((a & b).sum()), a.numel())
        for m, n in zip(*pairs, strict=True)
        for (h, a), (_, b) in zip(_heads(m), _heads(n), strict=True)
    )


def columns(rows: Iterable[Overlap]) -> dict[str, list[Any]]:
    """Return the rows of :func:`overlap` as columns, including `overlap` and `by_chance`, for `pandas.DataFrame`."""
    return _columns(Overlap, tuple(rows), "overlap", "by_chance")


# ---------------------------------------------------------------- masks


def _matrices(of: Ticket | nn.Module, heads: int | None) -> list[Matrix]:
    parts: Mapping[str, Sequence[Part]]
    if isinstance(of, nn.Module):
        wrapped = handle(of)
        masks, parts = wrapped.masks(), {path: masked.parts for path, masked in wrapped.weights.items()}
        known = _known_heads(getattr(root(of), "config", None), root(of))
    else:
        masks, parts = of.masks(), {weight.path: weight.parts for weight in of.weights}
        built = of.built or {}
        known = _known_heads(built.get("config"), built.get("arguments"))
    return list(matrices(masks, parts, known if heads is None else as_int("heads", heads, 1)))


def _known_heads(*places: Any) -> int | None:
    for place in places:
        for name in _HEADS:
            value = place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _heads(matrix: Matrix) -> list[tuple[int | None, torch.Tensor]]:
    """(head, its mask (in, out)) for each head."""
    return [(h if matrix.stacked else None, mask) for h, mask in enumerate(matrix.mask)]


def _share(matrix: Matrix, head: int | None, mask: torch.Tensor) -> Share:
    alive = mask.any(1 if matrix.role in ("output", "out") else 0)
    dead = int((~alive).sum())
    return Share(matrix.weight, matrix.layer, matrix.role, head, int(mask.sum()), mask.numel(), alive.numel(), dead)


# ---------------------------------------------------------------- text and columns


def _columns(kind: Any, rows: Sequence[Any], *more: str) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in (*(f.name for f in fields(kind)), *more)}


def _table(shares: Mapping[tuple[Any, ...], float]) -> list[str]:
    """A line per layer and a column per role, after a line for each role that occurs once or outside of layers."""
    times = Counter(role for _, role in shares)
    alone = {(layer, role) for layer, role in shares if layer is None or times[role] == 1}
    lines = [f"{_place(*key)}: {shares[key]:.4f} kept" for key in shares if key in alone]
    layers = sorted({layer for layer, role in shares if (layer, role) not in alone})
    roles = list(dict.fromkeys(role for layer, role in shares if (layer, role) not in alone))
    roles.sort(key=lambda role: PROJECTIONS.index(role) if role in PROJECTIONS else len(PROJECTIONS))
    if layers:
        wide = [max(8, len(role)) for role in roles]
        lines.append("layer " + " ".join(f"{role:>{w}}" for role, w in zip(roles, wide, strict=True)))
    for layer in layers:
        cells = [shares.get((layer, role)) for role in roles]
        words = ["-" if cell is None else f"{cell:.4f}" for cell in cells]
        lines.append(f"{layer:>5} " + " ".join(f"{word:>{w}}" for word, w in zip(words, wide, strict=True)))
    return lines


def _place(layer: int | None, role: str) -> str:
    return role if layer is None or role == str(layer) else f"layer {layer}, {role}"


def _some(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:12]))
    return f"{shown} and {len(indices) - 12} more" if len(indices) > 12 else shown
