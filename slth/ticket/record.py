"""The record of each tensor of a network in a ticket."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from slth.masking.forms import Form
from slth.masking.kinds import PRUNE, Kind
from slth.masking.layouts import MATRIX, Axes
from slth.masking.parameters import Part
from slth.masking.scales import Scale
from slth.masking.traits import Trait
from slth.weights.recipes import Recipe

DIGEST = re.compile("[0-9a-f]{64}")  # SHA-256
_MOST_AXES, _MOST_ENTRIES = 64, (1 << 63) - 1  # torch's limits for a tensor


class TicketError(ValueError):
    """A ticket cannot be made, read or applied; the message says why."""


@dataclass(frozen=True)
class Weight:
    """The record of a masked weight. Raises TicketError for values that no tensor can have.

    Attributes:
        path, shape, dtype: of the weight.
        kept: the number of kept entries.
        recipe: how the kept entries are drawn, before the changes in `traits`; None for a weight over a base.
        parts: the equal parts of the weight.
        traits: changes to the kept entries by a search.
        base: for a weight that no recipe gives (of a trained network, say), the digest of the kept entries
            (:func:`slth.ticket.making.base_of`). The ticket is applied to the base, a module with this weight.
        one_of_pair: whether exactly one entry of each of the recipe's pairs is kept, so that a pair takes one bit.
        kind, axes, scale: the form of the mask; the factors of a scale are in the file.
        pieces: the number of bits in each piece of the mask's encoding, if it does more than prune.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    kept: int
    recipe: Recipe | None
    parts: tuple[Part, ...]
    traits: tuple[Trait, ...] = ()
    base: str | None = None
    one_of_pair: bool = False
    kind: Kind = PRUNE
    axes: Axes = MATRIX
    scale: Scale | None = None
    pieces: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check(self.path, self.shape)
        if not 0 <= self.kept <= self.size or not self.size:
            raise TicketError(f"{self.path}: keeps {self.kept} of {self.size} entries, must keep 0 to all of some")
        if (self.recipe is None) == (self.base is None):
            raise TicketError(f"{self.path}: must have either a recipe or the digest of a base")
        if self.base is not None and not DIGEST.fullmatch(self.base):
            raise TicketError(f"{self.path}: the digest of its base is malformed")
        split = [(len(self.parts), self.parts[0].dim)]
        if self.recipe is not None:
            split.append((len(self.recipe.draws), self.recipe.dim))
        for count, dim in split:
            if not count or not 0 <= dim < len(self.shape) or self.shape[dim] % count:
                raise TicketError(f"{self.path}: {count} parts along axis {dim} of {self.shape}, must be equal ones")
        if self.recipe and any(not 0 <= row < self.shape[0] for row in self.recipe.zero_rows):
            raise TicketError(f"{self.path}: rows {self.recipe.zero_rows} are 0, must be of its {self.shape[0]}")
        if self.recipe and self.recipe.pairs is not None:
            axis, sign = self.recipe.pairs
            if not 0 <= axis < len(self.shape) or sign not in (-1, 1):
                raise TicketError(f"{self.path}: pairs {self.recipe.pairs}, must be an axis of {self.shape} and a sign")
        pairs = self.recipe.pairs if self.recipe else None
        if self.one_of_pair and (pairs is None or self.shape[pairs[0]] % 2 or 2 * self.kept != self.size):
            raise TicketError(
                f"{self.path}: keeps one of each pair, must then have pairs, and keep half of its entries"
            )
        try:
            for trait in self.traits:
                trait.check(self.parts)
            self._check_kind()
        except ValueError as error:
            raise TicketError(f"{self.path}: {error}") from error

    def _check_kind(self) -> None:
        """Raise ValueError for a kind or a scale that does not fit the shape."""
        if self.scale is not None:
            self.scale.check(self.shape)
        if self.form.prunes:
            return
        if not all(0 <= axis < len(self.shape) for axis in (self.axes.outputs, self.axes.inputs)):
            raise ValueError(f"axes {self.axes}: must be of {self.shape}")
        self.kind.check(self.shape, self.axes, self.kept / self.size)
        if self.one_of_pair or any(not 0 <= bits <= self.size for bits in self.pieces):
            raise ValueError(f"pieces of {self.pieces} bits: must be of 0 to {self.size}, and no pairs")

    @property
    def form(self) -> Form:
        """The form of its mask."""
        return Form(self.shape, self.kind, self.axes, self.scale)

    @property
    def size(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Plain:
    """The record of any other parameter or buffer: the constant `value`, or drawn by `recipe`, or else stored."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    value: float | None = None
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        _check(self.path, self.shape)

    @property
    def stored(self) -> bool:
        """Whether the tensor itself is in the file."""
        return self.value is None and self.recipe is None


def _check(path: str, shape: tuple[int, ...]) -> None:
    if not path.isprintable():
        raise TicketError(f"name {path!r}: must be printable, as people will read it")
    if len(shape) > _MOST_AXES or math.prod(shape) > _MOST_ENTRIES:
        raise TicketError(f"{path}: {len(shape)} axes and more entries than a tensor can have")
