"""What a ticket says about each tensor of a network."""

from __future__ import annotations

from dataclasses import dataclass

from slth.freezing import Freezing
from slth.recipes import Recipe
from slth.targets import Part


class TicketError(ValueError):
    """A ticket that cannot be made, read or applied; the message has the reason."""


@dataclass(frozen=True)
class Weight:
    """A masked weight: kept entries are those of its recipe, or with `levels` their signs times a level by part."""

    path: str
    shape: tuple[int, ...]
    kept: int
    recipe: Recipe
    parts: tuple[Part, ...]
    levels: tuple[float, ...] | None = None
    freezing: Freezing | None = None
    redrawn: bool = False


@dataclass(frozen=True)
class Plain:
    """Any other parameter or buffer: all `value`, or as its recipe says, or (neither) stored."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    value: float | None = None
    recipe: Recipe | None = None
