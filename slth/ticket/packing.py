"""A ticket as the tensors and the manifest of a sealed file."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from slth import bits
from slth.freezing import Freezing
from slth.recipes import Draw, Recipe
from slth.targets import Part
from slth.ticket.making import name_of
from slth.ticket.record import Plain, TicketError, Weight

#: weights, plain, masks, generations, stored, digest: the fields of a ticket.
Contents = tuple[
    tuple[Weight, ...],
    tuple[Plain, ...],
    dict[str, torch.Tensor],
    dict[str, torch.Tensor],
    dict[str, torch.Tensor],
    str,
]


def packed(
    weights: Sequence[Weight],
    plain: Sequence[Plain],
    masks: Mapping[str, torch.Tensor],
    generations: Mapping[str, torch.Tensor],
    stored: Mapping[str, torch.Tensor],
    digest: str,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, manifest) of the file."""
    told = [_asked(w, masks[w.path]) for w in weights]
    raw, coded = bits.pack(told), bits.encode(told)
    tensors = {"coded": coded} if coded.numel() < raw.numel() else {"masks": raw}
    redrawn = [w for w in weights if w.redrawn]
    if redrawn:
        counts = torch.cat([generations[w.path][masks[w.path]] for w in redrawn])
        tensors["generations"] = torch.frombuffer(
            bytearray(zlib.compress(counts.numpy().tobytes(), 9)), dtype=torch.uint8
        )
    tensors |= {f"stored.{path}": tensor for path, tensor in stored.items()}
    manifest = {
        "weights": [_weight_to_json(w) for w in weights],
        "plain": [_plain_to_json(p) for p in plain],
        "digest": digest,
    }
    return tensors, manifest


def unpacked(tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, Any]) -> Contents:
    """What :func:`packed` was given. Raises TicketError, or another error of a manifest that does not fit."""
    weights = tuple(_weight_from_json(entry) for entry in manifest["weights"])
    plain = tuple(_plain_from_json(entry) for entry in manifest["plain"])
    places = [_frozen(w) for w in weights]
    sizes = [
        math.prod(w.shape) if p is None else int((~(p[0] | p[1])).sum()) for w, p in zip(weights, places, strict=True)
    ]
    told = bits.decode(tensors["coded"], sizes) if "coded" in tensors else bits.unpack(tensors["masks"], sizes)
    masks = {w.path: _whole(p, mask) for w, p, mask in zip(weights, places, told, strict=True)}
    for w in weights:
        if int(masks[w.path].sum()) != w.kept:
            raise TicketError(f"{w.path}: its mask keeps {int(masks[w.path].sum())}, must keep {w.kept}")
    stored = {p.path: tensors[f"stored.{p.path}"] for p in plain if p.value is None and p.recipe is None}
    for p in plain:
        if p.path in stored and (tuple(stored[p.path].shape), name_of(stored[p.path].dtype)) != (p.shape, p.dtype):
            raise TicketError(f"{p.path}: is stored with another shape or dtype than the manifest says")
    generations = _generations(weights, masks, tensors.get("generations"))
    return (weights, plain, masks, generations, stored, str(manifest["digest"]))


def _asked(weight: Weight, mask: torch.Tensor) -> torch.Tensor:
    """The bits that do not follow from the freezing."""
    places = _frozen(weight)
    return mask if places is None else mask[~(places[0] | places[1])]


def _whole(places: tuple[torch.Tensor, torch.Tensor] | None, told: torch.Tensor) -> torch.Tensor:
    if places is None:
        return told
    pruned, locked = places
    mask = locked.clone()
    mask[~(pruned | locked)] = told
    return mask


def _frozen(weight: Weight) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(pruned, locked), flat."""
    if weight.freezing is None:
        return None
    pruned, locked = weight.freezing.places(torch.Size(weight.shape), weight.parts, weight.path)
    return pruned.flatten(), locked.flatten()


def _generations(
    weights: Sequence[Weight], masks: Mapping[str, torch.Tensor], packed: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    redrawn = [w for w in weights if w.redrawn]
    if not redrawn:
        return {}
    if packed is None:
        raise TicketError("the numbers of redraws are missing")
    total = sum(w.kept for w in redrawn)
    data = zlib.decompressobj().decompress(packed.numpy().tobytes(), total + 1)
    if len(data) != total:
        raise TicketError(f"there are {len(data)} numbers of redraws: must be {total}, one for each weight kept")
    counts = torch.frombuffer(bytearray(data), dtype=torch.uint8).split([w.kept for w in redrawn])
    out = {}
    for w, count in zip(redrawn, counts, strict=True):
        out[w.path] = torch.zeros(math.prod(w.shape), dtype=torch.uint8)
        out[w.path][masks[w.path]] = count
    return out


def _weight_to_json(weight: Weight) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": weight.path,
        "shape": weight.shape,
        "kept": weight.kept,
        "recipe": _recipe_to_json(weight.recipe),
    }
    if len(weight.parts) > 1:
        entry["parts"] = [weight.parts[0].dim, *(part.role for part in weight.parts)]
    if weight.levels is not None:
        entry["levels"] = weight.levels
    if weight.freezing is not None:
        entry["freezing"] = asdict(weight.freezing)
    if weight.redrawn:
        entry["redrawn"] = True
    return entry


def _weight_from_json(entry: dict[str, Any]) -> Weight:
    parts: tuple[Part, ...] = (Part(),)
    if "parts" in entry:
        dim, *roles = entry["parts"]
        parts = tuple(Part(i, len(roles), int(dim), str(role)) for i, role in enumerate(roles))
    return Weight(
        path=str(entry["path"]),
        shape=_shape(entry["shape"]),
        kept=int(entry["kept"]),
        recipe=_recipe_from_json(entry["recipe"]),
        parts=parts,
        levels=tuple(float(level) for level in entry["levels"]) if "levels" in entry else None,
        freezing=Freezing(**entry["freezing"]) if "freezing" in entry else None,
        redrawn=bool(entry.get("redrawn", False)),
    )


def _plain_to_json(plain: Plain) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": plain.path, "shape": plain.shape, "dtype": plain.dtype}
    if plain.value is not None:
        entry["value"] = plain.value
    if plain.recipe is not None:
        entry["recipe"] = _recipe_to_json(plain.recipe)
    return entry


def _plain_from_json(entry: dict[str, Any]) -> Plain:
    plain = Plain(str(entry["path"]), _shape(entry["shape"]), str(entry["dtype"]), value=entry.get("value"))
    return replace(plain, recipe=_recipe_from_json(entry["recipe"])) if "recipe" in entry else plain


def _recipe_to_json(recipe: Recipe) -> list[Any]:
    return [recipe.dim, *([d.distribution, d.scale, d.seed, d.name, d.stream] for d in recipe.draws)]


def _recipe_from_json(entry: list[Any]) -> Recipe:
    dim, *draws = entry
    return Recipe(
        tuple(Draw(str(d), float(s), int(seed), str(n), int(stream)) for d, s, seed, n, stream in draws), int(dim)
    )


def _shape(entry: list[Any]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and size >= 0 for size in entry):
        raise TicketError(f"shape {entry!r}: must be a list of ints >= 0")
    return tuple(entry)
