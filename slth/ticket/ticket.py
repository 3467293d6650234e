"""The ticket: made from a wrapped model, applied to a plain one."""

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
    """Everything needed to rebuild a pruned network, except its code and a base of weights that no seed gives.

    Attributes:
        weights, plain: the records of masked weights, and of all other tensors.
        tensors: the tensors of the file (`slth.ticket.packing`).
        digest: of the whole network.
        built: how its module was built, for information, never executed (`slth.building`); None if unknown.

    Raises ValueError if built is not a JSON object.
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
        """Make the ticket of a wrapped model, as it is in eval mode.

        A masked weight that `slth.weights.inits` drew is stored as its seed. Any other, of a trained or
        torch-initialised network, is not stored: the ticket lies over the network that was wrapped (its base), and
        holds a digest of the kept entries (:attr:`over`).

        Args:
            model: a wrapped model.
            built: a JSON object, such as the result of `slth.building.built_of(model)`.

        Raises:
            TicketError: if a masked weight is neither its seed's nor the base's under its mask.
            ValueError: if the model is not wrapped or built is not a JSON object.
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
        """Make the ticket of a plain module, which is not changed, under masks of its parameters.

        Weights are stored as in :meth:`of`, except that a weight that no seed gives and that is kept entirely is stored
        itself.

        Args:
            module: a plain module.
            masks: bool by parameter name, True = kept.
            built: as in :meth:`of`.

        Raises:
            ValueError: if masks do not fit the module, or built is not a JSON object.
            TicketError: for tensors that a ticket cannot store.
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
        """Name -> digest of the base's kept entries, for masked weights that no seed gives."""
        return {w.path: w.base for w in self.weights if w.base is not None}

    @property
    def version(self) -> int:
        """The version of the file: 1 if every weight has a recipe, 2 over a base, 3 with other kinds or scales."""
        if not all(w.form.is_plain for w in self.weights):
            return 3
        return 2 if self.over else 1

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        records = packing.Records(self.weights, self.plain, self.digest, self.built)
        return files.seal(KIND, self.version, self.tensors, packing.manifest_of(records))

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the file atomically and return its size in bytes. Raises OSError if it cannot be written."""
        data = self.to_bytes()
        files.write(path, data)
        return len(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Ticket:
        """Read the content of a file. Raises TicketError, with the reason, if :meth:`to_bytes` did not write it.

        Takes no more memory than the file, whatever sizes it claims.
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
        """Read a file. Raises TicketError, with the path, as :meth:`from_bytes`, and OSError if it cannot be read."""
        with open(path, "rb") as file:
            data = file.read()
        try:
            return cls.from_bytes(data)
        except TicketError as error:
            raise TicketError(f"{os.fspath(path)}: {error}") from error

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, method: str | None = None, losses: Mapping[str, float] | None = None
    ) -> Path:
        """Write ticket.safetensors, config.json and a model card into a folder, as for the Hugging Face hub.

        Args:
            folder: is created if needed.
            method: how the ticket was found, a line of text for config.json and the card.
            losses: finite numbers by name, for config.json and the card.

        Returns:
            The folder.

        Raises:
            ValueError: for another method or losses.
            OSError: if a file cannot be written.
        """
        return hub.save(self, folder, method=method, losses=losses)

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str], **options: Any) -> Ticket:
        """Read a folder of :meth:`save_pretrained`, or a repository "user/name" of the Hugging Face hub.

        options: for `huggingface_hub.hf_hub_download`, such as revision, token and cache_dir.

        Raises TicketError as :meth:`load` does, OSError if there is no such file, ModuleNotFoundError without
        huggingface_hub (`slth[hub]`), and the errors of huggingface_hub.
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
        """Upload the files of :meth:`save_pretrained` to a repository "user/name" of the hub, created if needed.

        Returns its address. Raises as :meth:`save_pretrained`, ModuleNotFoundError without huggingface_hub
        (`slth[hub]`), and the errors of huggingface_hub.
        """
        return hub.push(self, repo, method=method, losses=losses, private=private, token=token)

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the masks by parameter name, bool of the weights' shapes. Raises TicketError if they do not fit.

        Takes as much memory as the file claims to need; for an untrusted file use `apply`, which compares shapes first.
        """
        return {path: kept(multiplier) for path, multiplier in self.multipliers().items()}

    def multipliers(self) -> dict[str, torch.Tensor]:
        """Return the multipliers of the weights by parameter name: bool if a mask only prunes, else int8.

        They do not include a learned scale. Raises TicketError as :meth:`masks` does.
        """
        with packing.refusing():
            return packing.multipliers_of(self.weights, self.tensors)

    @torch.no_grad()
    def apply(self, module: nn.Module) -> nn.Module:
        """Turn a plain module with the same names and shapes into the ticket's network, on its own device.

        Returns the module in eval mode, as the ticket was made; call `.train()` to continue training.

        Raises:
            TicketError: with nothing changed, if names, shapes or dtypes differ, if the module is not the base of
                weights that no seed gives, or if the digest of the rebuilt network differs (a wrong seed, other bits).
            ValueError: if the module is wrapped, or is not a module (a class, say).
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
        """(number of entries of the masked weights, number of kept ones)."""
        return sum(w.size for w in self.weights), sum(w.kept for w in self.weights)

    def describe(self) -> str:
        """Describe the content of the ticket for human readers."""
        return describing.describe(self)

    def summary(self) -> inspecting.Inspection:
        """Return the shares kept, dead heads and dead units; see :func:`slth.inspect`."""
        return inspecting.inspect(self)

    def _check(self, own: Mapping[str, torch.Tensor]) -> None:
        for path, tensor in own.items():
            check_dense(path, tensor)
        here = {path: (tuple(t.shape), name_of(t.dtype)) for path, t in own.items()}
        there = {p.path: (p.shape, p.dtype) for p in self.plain}
        there |= {w.path: (w.shape, w.dtype) for w in self.weights}
        for path in sorted(here.keys() ^ there.keys()):
            where = "the ticket but not in the module" if path in there else "the module but not in the ticket"
            hides = str((self.built or {}).get("class")).startswith("slth.construct.networks")
            hint = "; slth.construct.merge writes it into the network that it hides" if hides else ""
            raise TicketError(f"{path} is in {where}: the module must be built as the one it was taken from{hint}")
        for path, (shape, dtype) in there.items():
            if here[path] != (shape, dtype):
                raise TicketError(f"{path}: is {here[path][1]} {here[path][0]}, must be {dtype} {shape}")

    def _rebuilt(self, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The network's tensors by name, with the dtypes and devices of the module's own."""
        multipliers = packing.multipliers_of(self.weights, self.tensors)
        buffers = packing.buffers_of(self.weights, multipliers, self.tensors)
        factors = packing.factors_of(self.weights, self.tensors)
        built = {
            w.path: _built(w, multipliers[w.path], buffers[w.path], factors.get(w.path), own[w.path])
            for w in self.weights
        }
        return built | {p.path: self._plain(p, own[p.path]) for p in self.plain}

    def _plain(self, plain: Plain, like: torch.Tensor) -> torch.Tensor:
        if plain.recipe is not None:
            return plain.recipe.tensor(plain.shape, like.device).to(like.dtype)
        if plain.value is not None:
            try:
                return torch.full_like(like, plain.value)
            except (RuntimeError, OverflowError) as error:  # the dtype cannot represent the number
                raise TicketError(f"{plain.path}: {plain.value!r} is no {plain.dtype}") from error
        return self.tensors[f"stored.{plain.path}"].to(like.device)


def _built(
    weight: Weight,
    multiplier: torch.Tensor,
    buffers: dict[str, torch.Tensor],
    factors: torch.Tensor | None,
    own: torch.Tensor,
) -> torch.Tensor:
    """A masked weight with the dtype and device of the module's own, which is used itself over a base."""
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
