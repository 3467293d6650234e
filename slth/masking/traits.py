"""Traits: changes to a masked weight, besides its mask, that a search makes and that state_dicts and tickets store.

A search that needs only scores, a gate and buffers (`Masked.put`) needs no trait: its weights are the drawn ones under
the mask. Any other search defines a trait, in its own file, for what a ticket must store to rebuild the network:
numbers that it chose, mask bits that follow from a seed, or the number of times that an entry was redrawn. Masks and
tickets use traits only through this base class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from slth.masking.parameters import Part
from slth.plugins import import_defining
from slth.weights.recipes import Recipe

if TYPE_CHECKING:
    from slth.masking.masked import Masked

ORIGIN = "origin"  # the key of the place from which a user's own search was loaded
_BY_KEY: dict[str, type[Trait]] = {}


@dataclass(frozen=True)
class Trait:
    """Base of all traits; the fields (JSON) are stored. A subclass is registered when it is defined.

    Attributes:
        key: the trait's name in a ticket and in the entry of a state_dict.
        buffer: the name of its buffer in the mask, "" for none.
        kind: the name of masks with this buffer in a state_dict.
        tensor: the tensor of a ticket's file that holds the buffer (uint8) of the kept entries, "" for none. If there
            is one, :meth:`drawn` computes the random weight.
        altered: how the kept weights were changed, such as "redrawn"; "" if they are the recipe's own, so that
            `slth.serve` can draw them from their seeds.
        words: the weights that :meth:`seen` recognises, for an error: "their signs".
    """

    key: ClassVar[str]
    buffer: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    tensor: ClassVar[str] = ""
    altered: ClassVar[str] = ""
    words: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        _BY_KEY[cls.key] = cls

    @property
    def note(self) -> str:
        """The words for the weight in a ticket's description."""
        return self.altered or self.key

    # of a mask

    @classmethod
    def of(cls, masked: Masked, mask: torch.Tensor) -> Self | None:
        """Return the trait of a weight that is stored with a mask (bool, its shape); None if it has none."""
        trait = masked.traits.get(cls.key)
        return trait if isinstance(trait, cls) else None

    @classmethod
    def detected(cls, value: torch.Tensor, drawn: torch.Tensor, parts: Sequence[Part]) -> Self | None:
        """Return a trait that may turn the drawn weight into this value (of the masked weight).

        None if the trait changes no weight. The caller checks the result.
        """
        return None

    @classmethod
    def entry(cls, masked: Masked) -> dict[str, Any]:
        """Return {key: fields as JSON} for the entry of a state_dict; {} without the trait."""
        return {cls.key: masked.traits[cls.key].to_json()} if cls.key in masked.traits else {}

    @classmethod
    def reset(cls, masked: Masked) -> None:
        """Reset the buffer after the whole weight was redrawn from another seed."""

    @classmethod
    def leave(cls, masked: Masked) -> None:
        """Undo changes to the scores that another search could not use; called before the trait is removed."""

    # of a ticket

    def to_json(self) -> Any:
        """Return the fields as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Any) -> Self | None:
        """Read the result of :meth:`to_json`. Raises ValueError or TypeError for anything else."""
        return cls(**stored)

    def check(self, parts: Sequence[Part]) -> None:
        """Raise ValueError if a weight with these parts cannot have the trait."""

    def places(self, shape: torch.Size, parts: Sequence[Part], path: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return (pruned, locked), bool on the CPU: entries whose mask bits need not be stored; None without any."""
        return None

    def drawn(self, recipe: Recipe, buffer: torch.Tensor) -> torch.Tensor:
        """Draw the random weight (float32) for a trait with a `tensor`; `buffer` has its shape, 0 where pruned."""
        raise NotImplementedError

    def shown(self, drawn: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
        """Return the values of kept entries, from the drawn weight; the same tensor if the trait changes no weight."""
        return drawn


def known() -> dict[str, type[Trait]]:
    """Return all traits by key, those of slth's own searches first."""
    import_defining()
    return _BY_KEY


def buffers() -> list[str]:
    """Return the names of buffers that belong to traits."""
    return list(dict.fromkeys(trait.buffer for trait in known().values() if trait.buffer))


def unclaimed(names: Sequence[str]) -> list[str]:
    """Return the names of buffers, among these, that belong to no trait."""
    return [name for name in names if name not in buffers()]


def entry(masked: Masked) -> dict[str, Any]:
    """Return the entries of all traits for a state_dict."""
    entries: dict[str, Any] = {}
    for trait in known().values():
        entries |= trait.entry(masked)
    return entries


def kind_of(buffer: str) -> str:
    """Return the name, in a state_dict, of a mask with this buffer."""
    return next((trait.kind for trait in known().values() if trait.buffer == buffer), buffer)


def from_entry(entry: Mapping[str, Any], other_keys: Set[str]) -> dict[str, Trait]:
    """Read the traits, by key, from an entry of a ticket or state_dict; `other_keys` are ignored.

    Raises ValueError for an unknown key, and as :meth:`Trait.from_json` does.
    """
    if odd := sorted(entry.keys() - other_keys - known().keys()):
        raise ValueError(f"has {odd[0]!r}, which no search that is loaded knows: load it first, {how_to_load(entry)}")
    stored = {key: trait.from_json(entry[key]) for key, trait in known().items() if entry.get(key) is not None}
    return {key: trait for key, trait in stored.items() if trait is not None}


def how_to_load(entry: Mapping[str, Any]) -> str:
    """Return, for errors, how to load the user's own search that an entry comes from."""
    origin = entry.get(ORIGIN)
    place = origin.get("place") if isinstance(origin, Mapping) else None
    return f"as slth.search.method({place or 'my_file.py:Name'!r}) does"


def random_weight(
    recipe: Recipe, traits: Sequence[Trait], buffers: dict[str, torch.Tensor], like: torch.Tensor
) -> torch.Tensor:
    """Draw the random weight under a mask, with the shape, dtype and device of `like`; buffers are by name."""
    value = next((t.drawn(recipe, buffers[t.buffer].to(like.device)) for t in traits if t.tensor), None)
    return (recipe.tensor(like.shape, like.device) if value is None else value).to(like.dtype)


def shown(drawn: torch.Tensor, traits: Sequence[Trait], parts: Sequence[Part]) -> torch.Tensor:
    """Return the values of kept entries, from the random weight, by all traits."""
    for trait in traits:
        drawn = trait.shown(drawn, parts)
    return drawn
