"""Convert a ticket to the tensors and the manifest of a sealed file, and back.

Reading has two steps. The records are read first, which takes no more memory than the file and its manifest. Masks are
unpacked only after the records are known to fit the module: a file of a few bytes can describe masks larger than the
memory of any machine.
"""

from __future__ import annotations

import itertools
import json
import reprlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from slth.masking import kinds, traits
from slth.masking.forms import kept
from slth.masking.layouts import Axes
from slth.masking.parameters import Part
from slth.masking.scales import Scale
from slth.ticket import bits, pairs
from slth.ticket.making import name_of
from slth.ticket.record import DIGEST, Plain, TicketError, Weight
from slth.weights.recipes import Draw, Recipe

Tensors = Mapping[str, torch.Tensor]
_PAIRS = "pairs"  # the tensor that encodes which pairs are alike (`slth.ticket.pairs`)
#: The keys of a weight's entry other than traits.
_OF_WEIGHTS = {"path", "shape", "dtype", "kept", "recipe", "zero_rows", "pairs", "one_of_pair", "base", "parts"}
_OF_WEIGHTS |= {"mask", "axes", "pieces", "scale"}
_FACTORS = "factors"  # the tensor of the factors of all scales, float32


@contextmanager
def refusing() -> Iterator[None]:
    """Convert errors caused by a file's content to TicketError."""
    try:
        yield
    except TicketError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, zlib.error) as error:
        raise TicketError(f"no ticket: its manifest does not fit ({type(error).__name__}: {error})") from error


# ---------------------------------------------------------------- tensors


def packed(
    weights: Sequence[Weight],
    masks: Tensors,
    buffers: Mapping[str, Tensors],
    stored: Tensors,
    pieces: Mapping[str, Sequence[torch.Tensor]] = MappingProxyType({}),
    factors: Tensors = MappingProxyType({}),
) -> dict[str, torch.Tensor]:
    """Return the tensors of the file; all arguments are flat tensors.

    Args:
        weights: the records of the masked weights.
        masks: bool, by path.
        buffers: uint8, by a trait's buffer and path.
        stored: tensors that are stored without change, by path.
        pieces: the encodings of masks that do more than prune, by path.
        factors: float32, by path.
    """
    alike = {w.path: pairs.alike(w, masks[w.path]) for w in weights if pairs.in_pairs(w)}
    flags = [piece for w in weights for piece in pieces.get(w.path) or _encoded(w, masks[w.path], alike.get(w.path))]
    raw, coded = bits.pack(flags), bits.encode(flags)
    tensors = {"coded": coded} if coded.numel() < raw.numel() else {"masks": raw}
    if alike:
        tensors[_PAIRS] = bits.encode(
            [each for w in weights if w.path in alike for each in pairs.changes(w, alike[w.path])]
        )
    for trait, having in _with_tensors(weights).items():
        numbers = torch.cat([buffers[trait.buffer][w.path][masks[w.path]] for w in having])
        compressed = zlib.compress(numbers.numpy().tobytes(), 9)
        tensors[trait.tensor] = torch.frombuffer(bytearray(compressed), dtype=torch.uint8)
    if having := [w for w in weights if w.scale]:
        tensors[_FACTORS] = torch.cat([factors[w.path] for w in having])
    return tensors | {f"stored.{path}": tensor for path, tensor in stored.items()}


def check(weights: Sequence[Weight], plain: Sequence[Plain], tensors: Tensors) -> None:
    """Raise TicketError unless the tensors match the records."""
    names = {"coded" if "coded" in tensors else "masks"} | {f"stored.{p.path}" for p in plain if p.stored}
    names |= {trait.tensor for trait in _with_tensors(weights)} | {_PAIRS for w in weights if pairs.in_pairs(w)}
    count = sum(w.scale.count for w in weights if w.scale)
    names |= {_FACTORS} if count else set()
    if odd := sorted(names ^ tensors.keys()):
        raise TicketError(f"no ticket: {odd[0]!r} is {'missing' if odd[0] in names else 'unexpected'}")
    if count and (tensors[_FACTORS].dtype, tuple(tensors[_FACTORS].shape)) != (torch.float32, (count,)):
        raise TicketError(f"no ticket: factors must be float32 ({count},), as its scales say")
    for p in plain:
        if p.stored:
            held = tensors[f"stored.{p.path}"]
            if (tuple(held.shape), name_of(held.dtype)) != (p.shape, p.dtype):
                raise TicketError(f"{p.path}: is stored with another shape or dtype than the manifest says")


def factors_of(weights: Sequence[Weight], tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the factors of scales (float32) by path."""
    scales = {w.path: w.scale.count for w in weights if w.scale}
    return dict(zip(scales, tensors[_FACTORS].split(list(scales.values())), strict=True)) if scales else {}


def multipliers_of(weights: Sequence[Weight], tensors: Tensors) -> dict[str, torch.Tensor]:
    """Decode the multipliers by path, of the weights' shapes: bool if the mask only prunes, else int8.

    Raises TicketError or ValueError if the bits do not fit the records.
    """
    alike = _alike(weights, tensors)
    sizes = [_sizes(w, alike.get(w.path)) for w in weights]
    flat = list(itertools.chain(*sizes))
    flags = iter(bits.decode(tensors["coded"], flat) if "coded" in tensors else bits.unpack(tensors["masks"], flat))
    pieces = [list(itertools.islice(flags, len(own))) for own in sizes]
    masks = {w.path: _decoded(w, own, alike.get(w.path)) for w, own in zip(weights, pieces, strict=True)}
    for w in weights:
        if int(masks[w.path].count_nonzero()) != w.kept:
            raise TicketError(f"{w.path}: its mask keeps {int(masks[w.path].count_nonzero())}, must keep {w.kept}")
    return {w.path: masks[w.path].reshape(w.shape) for w in weights}


def buffers_of(weights: Sequence[Weight], masks: Tensors, tensors: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """Decode the searches' buffers by path and name: uint8 of the weights' shapes, 0 where pruned.

    Raises TicketError if a tensor does not have one number per kept entry.
    """
    buffers: dict[str, dict[str, torch.Tensor]] = {w.path: {} for w in weights}
    for trait, having in _with_tensors(weights).items():
        total = sum(w.kept for w in having)
        data = zlib.decompressobj().decompress(tensors[trait.tensor].numpy().tobytes(), total + 1)
        if len(data) != total:
            raise TicketError(f"{trait.tensor} has {len(data)} numbers: must be {total}, one for each weight kept")
        numbers = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).split([w.kept for w in having])
        for w, own in zip(having, numbers, strict=True):
            blank = torch.zeros(w.shape, dtype=torch.uint8, device="cpu")
            buffers[w.path][trait.buffer] = blank.masked_scatter(kept(masks[w.path]), own)
    return buffers


def _with_tensors(weights: Sequence[Weight]) -> dict[type[traits.Trait], list[Weight]]:
    """Trait -> weights that have it, for the traits with a tensor in the file."""
    having: dict[type[traits.Trait], list[Weight]] = {}
    for w in weights:
        for trait in w.traits:
            if trait.tensor:
                having.setdefault(type(trait), []).append(w)
    return having


def _alike(weights: Sequence[Weight], tensors: Tensors) -> dict[str, torch.Tensor]:
    """Path -> which pairs are alike, for the weights in pairs."""
    having = [w for w in weights if pairs.in_pairs(w)]
    sizes = [size for w in having for size in pairs.change_sizes(w)]
    flags = bits.decode(tensors[_PAIRS], sizes) if having else []
    return {w.path: pairs.changed(w, flags[2 * i : 2 * i + 2]) for i, w in enumerate(having)}


def _encoded(weight: Weight, mask: torch.Tensor, alike: torch.Tensor | None) -> list[torch.Tensor]:
    """The bits of a mask, flat, in one or two pieces, without those that follow from a trait or from a pair."""
    if alike is not None:
        return pairs.pieces(weight, mask, alike)
    if axis := _axis_of_pairs(weight):
        firsts = torch.arange(0, weight.shape[axis[0]], 2)
        return [mask.reshape(weight.shape).index_select(axis[0], firsts).flatten()]
    places = _known(weight)
    return [mask if places is None else mask[~(places[0] | places[1])]]


def _sizes(weight: Weight, alike: torch.Tensor | None) -> list[int]:
    """The number of bits in each piece: of :func:`_encoded`, or of the kind of the mask."""
    if not weight.form.prunes:
        return list(weight.pieces)
    if alike is not None:
        return [int((~alike).sum()), int(alike.sum())]
    places = _known(weight)
    if places is None:
        return [weight.size // 2 if weight.one_of_pair else weight.size]
    return [int((~(places[0] | places[1])).sum())]


def _decoded(weight: Weight, pieces: list[torch.Tensor], alike: torch.Tensor | None) -> torch.Tensor:
    """The flat multipliers of a weight, from its pieces of bits."""
    if not weight.form.prunes:
        return weight.kind.joined(weight.shape, pieces, weight.axes).flatten()
    if alike is not None:
        return pairs.joined(weight, pieces, alike)
    if axis := _axis_of_pairs(weight):
        first = pieces[0].reshape([size // 2 if k == axis[0] else size for k, size in enumerate(weight.shape)])
        return torch.stack((first, ~first), dim=axis[0] + 1).flatten()
    places = _known(weight)
    if places is None:
        return pieces[0]
    pruned, locked = places
    mask = locked.clone()
    mask[~(pruned | locked)] = pieces[0]
    return mask


def _axis_of_pairs(weight: Weight) -> tuple[int, ...]:
    """(axis,) along which exactly one entry of each pair is kept; () otherwise."""
    return weight.recipe.pairs[:1] if weight.one_of_pair and weight.recipe and weight.recipe.pairs else ()


def _known(weight: Weight) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(pruned, locked), flat, of a trait that determines them; else None."""
    for trait in weight.traits:
        places = trait.places(torch.Size(weight.shape), weight.parts, weight.path)
        if places is not None:
            return places[0].flatten(), places[1].flatten()
    return None


# ---------------------------------------------------------------- manifest


class Records(NamedTuple):
    """The content of a ticket besides its tensors; built: how the network's module was built, None if unknown."""

    weights: tuple[Weight, ...]
    plain: tuple[Plain, ...]
    digest: str
    built: Mapping[str, Any] | None = None


def manifest_of(records: Records) -> dict[str, Any]:
    """Convert the records to JSON."""
    manifest = {
        "weights": [_weight_to_json(w) for w in records.weights],
        "plain": [_plain_to_json(p) for p in records.plain],
        "digest": records.digest,
    }
    return manifest if records.built is None else manifest | {"built": records.built}


def records_of(manifest: Mapping[str, Any]) -> Records:
    """Read the records from a manifest. Raises TicketError, or another error, if the manifest is malformed."""
    weights = tuple(_weight_from_json(entry) for entry in manifest["weights"])
    plain = tuple(_plain_from_json(entry) for entry in manifest["plain"])
    digest = manifest["digest"]
    if not weights or len({w.path for w in weights} | {p.path for p in plain}) < len(weights) + len(plain):
        raise TicketError("no ticket: must have at least one weight, and no name twice")
    if not DIGEST.fullmatch(digest):
        raise TicketError("no ticket: its digest is malformed")
    built = manifest.get("built")
    check_built(built)
    return Records(weights, plain, digest, built)


def check_built(built: object) -> None:
    """Raise ValueError unless built is None or a JSON object."""
    if built is None:
        return
    if not isinstance(built, Mapping):
        raise ValueError(f"built={reprlib.repr(built)}: must be an object of JSON")
    try:
        json.dumps(dict(built), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"built={reprlib.repr(built)}: must be an object of JSON ({error})") from error


def _weight_to_json(weight: Weight) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": weight.path,
        "shape": weight.shape,
        "dtype": weight.dtype,
        "kept": weight.kept,
        **weight.form.entry(),
        **({"base": weight.base} if weight.recipe is None else _recipe_to_json(weight.recipe)),
    }
    if weight.one_of_pair:
        entry["one_of_pair"] = True
    if not weight.form.prunes:
        entry |= {"axes": [weight.axes.outputs, weight.axes.inputs], "pieces": weight.pieces}
    if len(weight.parts) > 1:
        entry["parts"] = [weight.parts[0].dim, *(part.role for part in weight.parts)]
    return entry | {trait.key: trait.to_json() for trait in weight.traits}


def _weight_from_json(entry: dict[str, Any]) -> Weight:
    parts: tuple[Part, ...] = (Part(),)
    if "parts" in entry:
        dim, *roles = entry["parts"]
        parts = tuple(Part(i, len(roles), _whole_number(dim), str(role)) for i, role in enumerate(roles))
    return Weight(
        path=_text(entry["path"]),
        shape=_shape(entry["shape"]),
        dtype=_text(entry["dtype"]),
        kept=_whole_number(entry["kept"]),
        recipe=_recipe_from_json(entry) if "recipe" in entry or "base" not in entry else None,
        parts=parts,
        traits=tuple(traits.from_entry(entry, _OF_WEIGHTS).values()),
        base=_text(entry["base"]) if "base" in entry else None,
        one_of_pair=bool(entry.get("one_of_pair")),
        scale=Scale.from_json(entry["scale"]) if "scale" in entry else None,
        **(_kind_from_json(entry) if "mask" in entry else {}),
    )


def _kind_from_json(entry: dict[str, Any]) -> dict[str, Any]:
    outputs, inputs = map(_whole_number, entry["axes"])
    pieces = tuple(_whole_number(bits) for bits in entry["pieces"])
    return {"kind": kinds.of_json(entry["mask"]), "axes": Axes(outputs, inputs), "pieces": pieces}


def _plain_to_json(plain: Plain) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": plain.path, "shape": plain.shape, "dtype": plain.dtype}
    if plain.value is not None:
        entry["value"] = plain.value
    if plain.recipe is not None:
        entry |= _recipe_to_json(plain.recipe)
    return entry


def _plain_from_json(entry: dict[str, Any]) -> Plain:
    plain = Plain(_text(entry["path"]), _shape(entry["shape"]), _text(entry["dtype"]))
    if "value" in entry:
        plain = replace(plain, value=_number(entry["value"]))
    return replace(plain, recipe=_recipe_from_json(entry)) if "recipe" in entry else plain


def _recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "recipe": [recipe.dim, *([d.distribution, d.scale, d.seed, d.name, d.stream] for d in recipe.draws)]
    }
    if recipe.zero_rows:
        entry["zero_rows"] = recipe.zero_rows
    if recipe.pairs is not None:
        entry["pairs"] = recipe.pairs
    return entry


def _recipe_from_json(entry: dict[str, Any]) -> Recipe:
    dim, *draws = entry["recipe"]
    parts = tuple(
        Draw(_text(d), _number(s), _whole_number(seed), _text(n), _whole_number(stream))
        for d, s, seed, n, stream in draws
    )
    for draw in parts:
        draw.tensor((0,))  # raises if it is invalid
    rows = tuple(_whole_number(row) for row in entry.get("zero_rows", ()))
    pairs = None
    if "pairs" in entry:
        axis, sign = map(_whole_number, entry["pairs"])
        pairs = axis, sign
    return Recipe(parts, _whole_number(dim), rows, pairs)


def _shape(entry: object) -> tuple[int, ...]:
    if not isinstance(entry, list):
        raise TypeError(f"shape {reprlib.repr(entry)}: must be a list")
    shape = tuple(_whole_number(size) for size in entry)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {reprlib.repr(entry)}: must be of sizes >= 0")
    return shape


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{reprlib.repr(value)}: must be text")
    return value


def _whole_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{reprlib.repr(value)}: must be an int")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{reprlib.repr(value)}: must be a number")
    return value
