"""What a search makes of a masked weight beside its mask, and how a state_dict and a ticket store it.

A search that needs nothing but scores, a gate and buffers of its own (`Masked.put`) needs no trait: its weights are the
drawn ones under the mask. Another one says by a trait, in its own file, what a ticket must hold so that the network can
be rebuilt: numbers that it chose, entries whose bits follow from a seed, how often an entry was drawn anew. Masks and
tickets know traits by this base alone.
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

ORIGIN = "origin"  # the key of where a search of the user's own was loaded from
_BY_KEY: dict[str, type[Trait]] = {}


@dataclass(frozen=True)
class Trait:
    """One thing that a search made of a weight; its fields (JSON) are stored. A subclass is known once it is defined.

    key: the trait's name in a ticket, and in a state_dict's entry where its fields are stored. buffer: the tensor
    beside the scores that it belongs to, "" for none; kind: what a state_dict calls masks that have it. tensor: the
    tensor in a ticket file that holds the buffer (uint8) of the kept entries, "" for none; with one, :meth:`drawn`
    says what the random weight is. altered: what has become of the kept weights, as "redrawn"; "" where these are the
    recipe's own, so that `slth.serve` can make them from their seeds.
    """

    key: ClassVar[str]
    buffer: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    tensor: ClassVar[str] = ""
    altered: ClassVar[str] = ""
    words: ClassVar[str] = ""  # for what `seen` recognises, in an error: "their signs"

    def __init_subclass__(cls) -> None:
        _BY_KEY[cls.key] = cls

    @property
    def note(self) -> str:
        """What a ticket's description says of the weight."""
        return self.altered or self.key

    # of a mask

    @classmethod
    def of(cls, masked: Masked, mask: torch.Tensor) -> Self | None:
        """The trait of a weight that is stored under a mask (bool, its shape), None where it has none."""
        trait = masked.traits.get(cls.key)
        return trait if isinstance(trait, cls) else None

    @classmethod
    def seen(cls, value: torch.Tensor, drawn: torch.Tensor, parts: Sequence[Part]) -> Self | None:
        """The trait by which the drawn weight may be shown as this value under a mask.

        None if the trait changes no weight. The caller compares the result.
        """
        return None

    @classmethod
    def entry(cls, masked: Masked) -> dict[str, Any]:
        """What a state_dict's entry says of the trait, by its key."""
        return {cls.key: masked.traits[cls.key].to_json()} if cls.key in masked.traits else {}

    @classmethod
    def reset(cls, masked: Masked) -> None:
        """Follow suit where a whole weight has been drawn anew, from another seed."""

    @classmethod
    def leave(cls, masked: Masked) -> None:
        """Undo in the scores what another search could not go on from; the trait and its buffer go after it."""

    # of a ticket

    def to_json(self) -> Any:
        """The fields as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Any) -> Self | None:
        """The trait that :meth:`to_json` told of. Raises ValueError or TypeError for anything else."""
        return cls(**told)

    def check(self, parts: Sequence[Part]) -> None:
        """Raise ValueError where a weight of these parts cannot have the trait."""

    def places(self, shape: torch.Size, parts: Sequence[Part], path: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(pruned, locked): entries whose mask bits are known without being stored, bool of the shape, on the CPU."""
        return None

    def drawn(self, recipe: Recipe, buffer: torch.Tensor) -> torch.Tensor:
        """The random weight, float32, of a trait with a `tensor`: `buffer` has its shape and is 0 where pruned."""
        raise NotImplementedError

    def shown(self, drawn: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
        """What the network has where an entry is kept; the very tensor where the trait changes no weight."""
        return drawn


def known() -> dict[str, type[Trait]]:
    """All traits by key, those of slth's own searches first."""
    import_defining()
    return _BY_KEY


def buffers() -> list[str]:
    """Names of the buffers that belong to traits."""
    return list(dict.fromkeys(trait.buffer for trait in known().values() if trait.buffer))


def unclaimed(names: Sequence[str]) -> list[str]:
    """Those of the buffers that belong to no trait."""
    return [name for name in names if name not in buffers()]


def entry(masked: Masked) -> dict[str, Any]:
    """What a state_dict's entry says of all traits."""
    told: dict[str, Any] = {}
    for trait in known().values():
        told |= trait.entry(masked)
    return told


def kind_of(buffer: str) -> str:
    """What a state_dict calls a mask that has this buffer."""
    return next((trait.kind for trait in known().values() if trait.buffer == buffer), buffer)


def from_entry(entry: Mapping[str, Any], other_keys: Set[str]) -> dict[str, Trait]:
    """The traits in an entry of a ticket or state_dict, by key; `other_keys`: the keys of what else it says.

    Raises ValueError for a key that nothing knows, and as :meth:`Trait.from_json` does.
    """
    if odd := sorted(entry.keys() - other_keys - known().keys()):
        raise ValueError(f"has {odd[0]!r}, which no search that is loaded knows: load it first, {how_to_load(entry)}")
    stored = {key: trait.from_json(entry[key]) for key, trait in known().items() if entry.get(key) is not None}
    return {key: trait for key, trait in stored.items() if trait is not None}


def how_to_load(entry: Mapping[str, Any]) -> str:
    """How the search of the user's own is loaded that an entry comes from."""
    origin = entry.get(ORIGIN)
    place = origin.get("place") if isinstance(origin, Mapping) else None
    return f"as slth.search.method({place or 'my_file.py:Name'!r}) does"


def random_weight(
    recipe: Recipe, traits: Sequence[Trait], buffers: dict[str, torch.Tensor], like: torch.Tensor
) -> torch.Tensor:
    """The random weight under a mask, in the shape, dtype and on the device of `like`; buffers by trait's buffer."""
    value = next((t.drawn(recipe, buffers[t.buffer].to(like.device)) for t in traits if t.tensor), None)
    return (recipe.tensor(like.shape, like.device) if value is None else value).to(like.dtype)


def shown(drawn: torch.Tensor, traits: Sequence[Trait], parts: Sequence[Part]) -> torch.Tensor:
    """What the network has where an entry is kept, given the random weight."""
    for trait in traits:
        drawn = trait.shown(drawn, parts)
    return drawn
