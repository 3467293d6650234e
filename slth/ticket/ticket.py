"""The ticket: taken from a wrapped model, applied to a plain one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slth import files
from slth.masking import traits
from slth.masking.forms import kept, times
from slth.modules import check_module
from slth.threads import together
from slth.ticket import describing, hub, inspecting, packing
from slth.ticket.making import (
    base_of,
    check_dense,
    check_masks,
    digest_by_name,
    digest_of,
    name_of,
    others,
    plain_of,
    tensors_of,
    weight_of,
    weight_under,
)
from slth.ticket.record import Plain, TicketError, Weight
from slth.wrapping import check_in_place, evaluation, handle, root

KIND, VERSIONS = "ticket", (1, 2, 3)


@dataclass(frozen=True, eq=False, repr=False)
class Ticket:
    """Everything to rebuild a pruned network but its code, and the base of weights that no seed makes.

    Attributes:
        weights, plain: the records of masked weights, and of all other tensors.
        tensors: as in the file (`slth.ticket.packing`).
        digest: of the whole network.
        built: how its module was built, as information, never executed (`slth.building`); None where nobody said so.

    Raises ValueError where built is no JSON object.
    """

    weights: tuple[Weight, ...]
    plain: tuple[Plain, ...]
    tensors: Mapping[str, torch.Tensor]
    digest: str
    built: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        packing.check_built(self.built)

    @classmethod
    def of(cls, model: nn.Module, *, built: Mapping[str, Any] | None = None) -> Ticket:
        """The ticket of a wrapped model, as evaluation sees it.

        A masked weight is stored as its seed where `slth.weights.inits` made it. Any other, of a trained or
        torch-initialised network, is left out: the ticket lies over the network that was wrapped, and holds a digest
        of what the masks keep of it (:attr:`over`). built: JSON, as `slth.building.built_of(model)` gives it.

        Raises TicketError for a masked weight that neither gives under its mask, ValueError where the model is not
        wrapped or built is no JSON object.
        """
        wrapped, module = handle(model), root(model)
        check_in_place(model)
        multipliers, value, rest = wrapped.multipliers(), evaluation(model), dict(others(module, wrapped))
        for path, tensor in rest.items():
            check_dense(path, tensor)
        pieces = {
            path: m.form.kind.pieces(multipliers[path].cpu(), m.form.axes)
            for path, m in wrapped.weights.items()
            if not m.form.prunes
        }
        weights, digest = together(
            lambda: tuple(
                weight_of(module, p, m, multipliers[p], pieces.get(p, ()), value(p)) for p, m in wrapped.weights.items()
            ),
            lambda: digest_by_name([*multipliers, *rest], lambda path: rest[path] if path in rest else value(path)),
        )
        plain = tuple(plain_of(module, path, tensor) for path, tensor in rest.items())
        flat = {path: kept(multiplier).cpu().flatten() for path, multiplier in multipliers.items()}
        factors = {path: m.factors.detach().cpu() for path, m in wrapped.weights.items() if m.factors is not None}
        buffers = {
            name: {
                path: held.flatten().cpu()
                for path, m in wrapped.weights.items()
                if (held := m.buffer(name)) is not None
            }
            for name in {trait.buffer for weight in weights for trait in weight.traits if trait.tensor}
        }
        stored = {p.path: rest[p.path].detach().cpu() for p in plain if p.stored}
        tensors = packing.packed(weights, flat, buffers, stored, pieces, factors)
        return cls(weights, plain, tensors, digest, built)

    @classmethod
    @torch.no_grad()
    def of_masks(
        cls, module: nn.Module, masks: Mapping[str, torch.Tensor], *, built: Mapping[str, Any] | None = None
    ) -> Ticket:
        """The ticket of a plain module, not changed here, under masks of its parameters: bool by name, True = kept.

        Weights and built: as in :meth:`of`; a weight that no seed makes and of which all is kept is stored as it is.
        Raises ValueError for masks that do not fit the module and where built is no JSON object, TicketError for
        tensors that a ticket cannot hold.
        """
        check_module(module)
        own = tensors_of(module)
        check_masks(module, masks)
        for path in masks:
            check_dense(path, own[path])
        here = {path: mask.to(own[path].device) for path, mask in masks.items()}
        records = [weight_under(module, path, mask) for path, mask in here.items()]
        weights = tuple(weight for weight in records if weight.recipe or weight.kept < weight.size) or (*records,)
        here = {weight.path: here[weight.path] for weight in weights}
        rest = {path: tensor for path, tensor in own.items() if path not in here}
        plain = tuple(plain_of(module, path, tensor) for path, tensor in rest.items())
        flat = {path: mask.flatten().cpu() for path, mask in here.items()}
        stored = {p.path: rest[p.path].cpu() for p in plain if p.stored}
        values = {path: times(own[path], mask) for path, mask in here.items()}
        return cls(weights, plain, packing.packed(weights, flat, {}, stored), digest_of(values | rest), built)

    @property
    def over(self) -> dict[str, str]:
        """The masked weights that no seed makes, by name, with the digest of what is kept of the base's."""
        return {w.path: w.base for w in self.weights if w.base is not None}

    @property
    def version(self) -> int:
        """The version of the file: 1 where every weight has a recipe, 2 over a base, 3 with other kinds or scales."""
        if not all(w.form.is_plain for w in self.weights):
            return 3
        return 2 if self.over else 1

    def to_bytes(self) -> bytes:
        """The file."""
        records = packing.Records(self.weights, self.plain, self.digest, self.built)
        return files.seal(KIND, self.version, self.tensors, packing.manifest_of(records))

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the file, whole or not at all, and return its size in bytes. Raises OSError where it cannot."""
        data = self.to_bytes()
        files.write(path, data)
        return len(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Ticket:
        """Read a file's content. Raises TicketError, with the reason, for what :meth:`to_bytes` did not make.

        Takes memory for the file alone, whatever it says of itself.
        """
        try:
            tensors, manifest = files.unseal(data, KIND, VERSIONS)
        except files.FileError as error:
            raise TicketError(f"no ticket: {error}") from error
        with packing.refusing():
            records = packing.records_of(manifest)
            packing.check(records.weights, records.plain, tensors)
        return cls(records.weights, records.plain, tensors, records.digest, records.built)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """Read a file. Raises TicketError as :meth:`from_bytes` does, with the path, and OSError where it cannot."""
        with open(path, "rb") as file:
            data = file.read()
        try:
            return cls.from_bytes(data)
        except TicketError as error:
            raise TicketError(f"{os.fspath(path)}: {error}") from error

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, method: str | None = None, losses: Mapping[str, float] | None = None
    ) -> Path:
        """Write ticket.safetensors, config.json and a model card into a folder, as the Hugging Face hub has them.

        method and losses: how it was found, and finite numbers by name, for config.json and the card.

        Returns the folder. Raises ValueError for others, OSError where it cannot be written.
        """
        return hub.save(self, folder, method=method, losses=losses)

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str], **options: Any) -> Ticket:
        """Read a folder of :meth:`save_pretrained`, or a repository "user/name" of the Hugging Face hub.

        options: of `huggingface_hub.hf_hub_download`, such as revision, token and cache_dir.

        Raises TicketError as :meth:`load` does, OSError where there is no such file, ModuleNotFoundError without
        huggingface_hub (`slth[hub]`), and what huggingface_hub raises of repositories.
        """
        return cls.load(hub.find(place, **options))

    def push_to_hub(
        self,
        repo: str,
        *,
        method: str | None = None,
        losses: Mapping[str, float] | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Put what :meth:`save_pretrained` writes into a repository "user/name" of the hub, made where there is none.

        Returns its address. Raises as :meth:`save_pretrained`, ModuleNotFoundError without huggingface_hub
        (`slth[hub]`), and what huggingface_hub raises.
        """
        return hub.push(self, repo, method=method, losses=losses, private=private, token=token)

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks by parameter name, bool, of the weights' shapes. Raises TicketError where the file's do not fit.

        Takes the memory that the file asks for: of a file that nobody vouches for, `apply` compares the shapes first.
        """
        return {path: kept(multiplier) for path, multiplier in self.multipliers().items()}

    def multipliers(self) -> dict[str, torch.Tensor]:
        """What weights are multiplied by, by parameter name: bool where a mask prunes and no more, else int8.

        A learned scale is not in them. Raises TicketError as :meth:`masks` does.
        """
        with packing.refusing():
            return packing.multipliers_of(self.weights, self.tensors)

    @torch.no_grad()
    def apply(self, module: nn.Module) -> nn.Module:
        """Make a plain module of the same names and shapes the ticket's network, on its own device; returns it.

        The module is in eval mode then, as the network was when its ticket was taken: call `.train()` to train it on.

        Raises TicketError, and changes nothing, where names, shapes or dtypes differ, where the module is not the base
        of weights that no seed makes, or where the rebuilt network's digest differs (a wrong seed, other bits).
        ValueError where the module is wrapped or none (a class, say).
        """
        check_module(module)
        own = tensors_of(module)
        self._check(own)
        with packing.refusing():
            built = self._rebuilt(own)
        if digest_of(built) != self.digest:
            raise TicketError(
                "the rebuilt network is not the ticket's, its digest differs: a wrong seed or other bits, or normal "
                "weights on a machine whose arithmetic differs"
            )
        for path, tensor in built.items():
            own[path].copy_(tensor)
        return module.eval()

    def __repr__(self) -> str:
        total, kept = self._counts()
        share = f"{kept:,} of {total:,} entries kept ({kept / max(total, 1):.4g})"
        base = f", {len(self.over)} over a base" if self.over else ""
        return f"<Ticket: {len(self.weights)} weights, {share}{base}, {len(self.to_bytes()):,} bytes>"

    def _counts(self) -> tuple[int, int]:
        """Entries of the masked weights, and how many of them are kept."""
        return sum(w.size for w in self.weights), sum(w.kept for w in self.weights)

    def describe(self) -> str:
        """What the ticket holds, for people."""
        return describing.describe(self)

    def summary(self) -> inspecting.Inspection:
        """What is kept and what is dead: :func:`slth.inspect`, which says what is raised."""
        return inspecting.inspect(self)

    def _check(self, own: Mapping[str, torch.Tensor]) -> None:
        for path, tensor in own.items():
            check_dense(path, tensor)
        here = {path: (tuple(t.shape), name_of(t.dtype)) for path, t in own.items()}
        there = {p.path: (p.shape, p.dtype) for p in self.plain}
        there |= {w.path: (w.shape, w.dtype) for w in self.weights}
        for path in sorted(here.keys() ^ there.keys()):
            where = "the ticket but not in the module" if path in there else "the module but not in the ticket"
            raise TicketError(f"{path} is in {where}: the module must be built as the one it was taken from")
        for path, (shape, dtype) in there.items():
            if here[path] != (shape, dtype):
                raise TicketError(f"{path}: is {here[path][1]} {here[path][0]}, must be {dtype} {shape}")

    def _rebuilt(self, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The network's tensors by name, each like the module's own."""
        multipliers = packing.multipliers_of(self.weights, self.tensors)
        buffers = packing.buffers_of(self.weights, multipliers, self.tensors)
        factors = packing.factors_of(self.weights, self.tensors)
        built = {
            w.path: _built(w, multipliers[w.path], buffers[w.path], factors.get(w.path), own[w.path])
            for w in self.weights
        }
        return built | {p.path: self._told(p, own[p.path]) for p in self.plain}

    def _told(self, plain: Plain, like: torch.Tensor) -> torch.Tensor:
        if plain.recipe is not None:
            return plain.recipe.tensor(plain.shape, like.device).to(like.dtype)
        if plain.value is not None:
            try:
                return torch.full_like(like, plain.value)
            except (RuntimeError, OverflowError) as error:  # a number that its dtype does not hold
                raise TicketError(f"{plain.path}: {plain.value!r} is no {plain.dtype}") from error
        return self.tensors[f"stored.{plain.path}"].to(like.device)


def _built(
    weight: Weight,
    multiplier: torch.Tensor,
    buffers: dict[str, torch.Tensor],
    factors: torch.Tensor | None,
    own: torch.Tensor,
) -> torch.Tensor:
    """A masked weight like the module's own, which it is itself where it lies over a base."""
    multiplier = multiplier.to(own.device)
    if weight.recipe is not None:
        value = traits.random_weight(weight.recipe, weight.traits, buffers, own)
    elif base_of(own, kept(multiplier)) == weight.base:
        value = own
    else:
        raise TicketError(
            f"{weight.path}: is not that of the ticket's base: no seed makes this weight, the module must be the very "
            "network that was pruned, or a copy of it"
        )
    masked = times(traits.shown(value, weight.traits, weight.parts), multiplier)
    return weight.form.scaled(masked, None if factors is None else factors.to(own.device))
