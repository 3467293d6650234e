"""What is in a ticket, or in a wrapped model: how much is kept where, what is dead, and how two tickets overlap.

    found = slth.inspect(ticket)           # or a wrapped model
    print(found)                           # layers by projections, dead heads and units
    pandas.DataFrame(found.columns())      # tidy: a row for each projection and head
    slth.plots.kept_share(pandas.DataFrame(found.columns()))

A ticket that was applied is a plain module. Everything that reads activations or patches them works on it, as
`register_forward_hook` does:

    net = ticket.apply(build())
    cache = {}
    net.transformer.h[0].attn.register_forward_hook(lambda m, x, y: cache.update(attention=y[0]))
"""

from __future__ import annotations

import math
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

_HEADS = ("n_head", "num_attention_heads", "num_heads", "heads")  # names that configs and modules have for it


@dataclass(frozen=True)
class Share:
    """How much is kept of one head of a projection, or of a matrix without heads.

    Attributes:
        weight, layer, role, head: where it is; layer is the first number in the weight's name, None without one, head
            None where there are none, or where nobody said how many.
        kept, size: entries.
        units: of its own: inputs of a projection "output" or "out", else outputs.
        dead_units: those with no entry kept.
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
        """In [0, 1]."""
        return self.kept / self.size


@dataclass(frozen=True)
class Overlap:
    """How two tickets overlap in one head of a projection, or in a matrix without heads: entries, and where it is."""

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
        """Intersection over union, in [0, 1]; NaN where both keep nothing."""
        return _over_union(self.both, self.kept, self.kept_other)

    @property
    def by_chance(self) -> float:
        """The same of random masks that keep as much, whose mean intersection is kept * kept_other / size."""
        return _over_union(self.kept * self.kept_other / self.size, self.kept, self.kept_other)


def _over_union(both: float, one: int, other: int) -> float:
    return both / (one + other - both) if one + other else math.nan


@dataclass(frozen=True)
class Inspection:
    """What is kept, row by row in the order of the weights; what is dead.

    Attributes:
        rows: a share for each projection and head, and each other matrix.
        dead_heads: by the name of the attention. Values or outputs of such a head are all pruned: what it adds does
            not depend on the tokens.
        dead_units: of the networks between attentions, by the name of the weight before them. Such a unit has no
            incoming or no outgoing weight.
    """

    rows: tuple[Share, ...]
    dead_heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dead_units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def columns(self) -> dict[str, list[Any]]:
        """The rows as columns, with their share: what `pandas.DataFrame` takes."""
        return _columns(Share, self.rows, "share")

    def shares(self, *by: str) -> dict[tuple[Any, ...], float]:
        """The share kept by fields of the rows, over all that have the same: `shares("layer", "role")`."""
        kept: dict[tuple[Any, ...], list[int]] = {}
        for row in self.rows:
            sums = kept.setdefault(tuple(getattr(row, name) for name in by), [0, 0])
            sums[0] += row.kept
            sums[1] += row.size
        return {key: some / size for key, (some, size) in kept.items()}

    def __str__(self) -> str:
        lines = _table(self.shares("layer", "role"))
        for what, dead in (("heads", self.dead_heads), ("units", self.dead_units)):
            count = sum(map(len, dead.values()))
            lines.append(f"dead {what}: {count or 'none'}")
            lines += [f"  {name}: {_some(indices)}" for name, indices in dead.items()]
        return "\n".join(lines)


def inspect(of: Ticket | nn.Module, *, heads: int | None = None) -> Inspection:
    """What is kept and what is dead in a ticket or a wrapped model.

    heads: of each attention whose projections are matrices (out, in) or (in, out); None: as the model's config says, or
    what the ticket says of how its module was built, else projections are not cut into heads. Stacks (heads, in, out)
    say it themselves. Raises ValueError for heads that are no int >= 1 or divide no projection, and for a module that
    is not wrapped; TicketError where the masks of a ticket's file do not fit.
    """
    found = _matrices(of, heads)
    heads_of: dict[str, tuple[int, ...]] = {}
    for attention, head in dead_heads(found):
        heads_of[attention] = (*heads_of.get(attention, ()), head)
    units = {m.weight: tuple(dead.nonzero()[:, 0].tolist()) for m, dead in hidden_units(found) if dead.any()}
    rows = (_share(m, h, mask) for m in found for h, mask in _heads(m))
    return Inspection(tuple(rows), heads_of, units)


def overlap(one: Ticket | nn.Module, other: Ticket | nn.Module, *, heads: int | None = None) -> tuple[Overlap, ...]:
    """How two tickets, or wrapped models, overlap, row by row as :func:`inspect` has them.

    Raises ValueError as :func:`inspect` does, and for weights of other names or shapes.
    """
    pairs = _matrices(one, heads), _matrices(other, heads)
    places = [[(m.weight, m.role, tuple(m.mask.shape)) for m in found] for found in pairs]
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
    """The rows of :func:`overlap` as columns, with `overlap` and `by_chance`: what `pandas.DataFrame` takes."""
    return _columns(Overlap, tuple(rows), "overlap", "by_chance")


# ---------------------------------------------------------------- masks


def _matrices(of: Ticket | nn.Module, heads: int | None) -> list[Matrix]:
    parts: Mapping[str, Sequence[Part]]
    if isinstance(of, nn.Module):
        wrapped = handle(of)
        masks, parts = wrapped.masks(), {path: masked.parts for path, masked in wrapped.weights.items()}
        said = _known_heads(getattr(root(of), "config", None), root(of))
    else:
        masks, parts = of.masks(), {weight.path: weight.parts for weight in of.weights}
        built = of.built or {}
        said = _known_heads(built.get("config"), built.get("arguments"))
    return list(matrices(masks, parts, said if heads is None else as_int("heads", heads, 1)))


def _known_heads(*places: Any) -> int | None:
    for place in places:
        for name in _HEADS:
            value = place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _heads(matrix: Matrix) -> list[tuple[int | None, torch.Tensor]]:
    """(head, its mask (in, out))."""
    return [(h if matrix.stacked else None, mask) for h, mask in enumerate(matrix.mask)]


def _share(matrix: Matrix, head: int | None, mask: torch.Tensor) -> Share:
    alive = mask.any(1 if matrix.role in ("output", "out") else 0)
    dead = int((~alive).sum())
    return Share(matrix.weight, matrix.layer, matrix.role, head, int(mask.sum()), mask.numel(), alive.numel(), dead)


# ---------------------------------------------------------------- in words


def _columns(kind: Any, rows: Sequence[Any], *more: str) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in (*(f.name for f in fields(kind)), *more)}


def _table(shares: Mapping[tuple[Any, ...], float]) -> list[str]:
    """A line for each layer, a column for each role; what is in no layer comes first, by itself."""
    lines = [f"{role}: {share:.4f} kept" for (layer, role), share in shares.items() if layer is None]
    layers = sorted({layer for layer, _ in shares if layer is not None})
    roles = list(dict.fromkeys(role for layer, role in shares if layer is not None))
    roles.sort(key=lambda role: PROJECTIONS.index(role) if role in PROJECTIONS else len(PROJECTIONS))
    if layers:
        wide = [max(8, len(role)) for role in roles]
        lines.append("layer " + " ".join(f"{role:>{w}}" for role, w in zip(roles, wide, strict=True)))
    for layer in layers:
        cells = [shares.get((layer, role)) for role in roles]
        words = ["-" if cell is None else f"{cell:.4f}" for cell in cells]
        lines.append(f"{layer:>5} " + " ".join(f"{word:>{w}}" for word, w in zip(words, wide, strict=True)))
    return lines


def _some(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:12]))
    return f"{shown} and {len(indices) - 12} more" if len(indices) > 12 else shown
