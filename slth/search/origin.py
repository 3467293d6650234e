"""Record where a user's search class was loaded from. Nothing is loaded from this record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from slth import plugins
from slth.masking.traits import ORIGIN, Trait
from slth.search.base import Search
from slth.wrapping import handle


@dataclass(frozen=True)
class Origin(Trait):
    """The place from which the search was loaded, such as my_file.py:Momentum."""

    key: ClassVar[str] = ORIGIN

    place: str

    def __post_init__(self) -> None:
        if not isinstance(self.place, str) or not self.place.isprintable():
            raise ValueError(f"place={self.place!r}: must be printable text")

    @property
    def note(self) -> str:
        """The words for such a weight in a ticket's description."""
        return f"found by {self.place}"


def note_origin(model: nn.Module, search: Search) -> str | None:
    """Store the place of a search in the masks that it trains. Returns the place, None for slth's own searches."""
    place = plugins.place_of(type(search))
    for masked in handle(model).weights.values():
        masked.traits = {key: trait for key, trait in masked.traits.items() if key != Origin.key}
        if place is not None:
            masked.add(Origin(place))
    return place
