"""The result of every function of `slth.construct`: masks of a source, and the errors that they leave.

The masks fit one source only, so a construction stores a hash of each tensor of the source, of the kept weights where
there is a mask. Hashes are computed in float32, so a float64 copy or an already pruned source has the same ones.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from torch import nn

from slth.building import built_of
from slth.construct.checks import check_kind
from slth.ticket import Ticket

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Construction:
    """Masks with which a random source approximates its target, and the errors that they achieve.

    Attributes:
        source: the module to prune, unchanged.
        masks: parameter name of the source -> bool tensor of the parameter's shape, True = kept.
        errors: name of an approximated matrix -> pruned source minus target (..., rows, columns), float64.
        unreachable: entries outside the range of their candidates' sums.
        entries: the number of subset sums in total.
        candidates: candidates per entry; the fewest, if entries differ.
        digests: hashes that identify the source, see :func:`digests_of`.
    """

    source: nn.Module
    masks: dict[str, torch.Tensor]
    errors: dict[str, torch.Tensor]
    unreachable: int
    entries: int
    candidates: int
    digests: dict[str, str] = field(init=False)

    kinds: ClassVar[tuple[type[nn.Module], ...]]  # the classes that a source may have
    allowed: ClassVar[str]  # the same in words, for error messages

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", digests_of(self.source, self.masks))

    @property
    def weights(self) -> int:
        """The number of masked weights, which is the ticket's number of bits."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def keep(self) -> float:
        """Share of the masked weights that are kept."""
        return self._kept() / self.weights

    def _kept(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def error_max(self) -> float:
        """The largest absolute entry of all `errors`."""
        return max(float(error.abs().max()) for error in self.errors.values())

    def prune(self, source: nn.Module) -> None:
        """Set the pruned weights of source to exactly 0, in place; kept weights are unchanged, bit for bit.

        Raises before any change: ValueError for another source than the construction's (other shapes, weights or
        recorded scales) and for a wrapped one, TypeError for another kind of module.
        """
        self._check_own(source)
        prune(source, self.masks)

    def ticket(self) -> Ticket:
        """Make the ticket of the pruned source: its seeds, masks, recorded scales and constructor arguments.

        If not all of the source's tensors come from a seed, the ticket is stored relative to the source as its base.
        Raises ValueError if the source has changed otherwise than by pruning.
        """
        self._check_own(self.source)
        return Ticket.of_masks(self.source, self.masks, built=built_of(self.source))

    def _check_own(self, source: nn.Module) -> None:
        check_kind("source", source, self.kinds, self.allowed)
        weights = dict(source.named_parameters())
        for name, mask in self.masks.items():
            given = tuple(weights[name].shape) if name in weights else None
            if given != mask.shape:
                raise ValueError(f"source weight {name!r} of shape {given}: must be {tuple(mask.shape)}, the mask's")
        digests = digests_of(source, self.masks)
        for name in sorted(self.digests.keys() | digests.keys()):
            if self.digests.get(name) != digests.get(name):
                raise ValueError(
                    f"source {name!r} is not that of this construction's source: must be the one it was made for (of "
                    "the same seed and scales), its masks say nothing of another"
                )

    def __repr__(self) -> str:
        kept = f"{self._kept():,} of {self.weights:,} entries kept ({self._kept() / max(self.weights, 1):.4g})"
        reach = f"{self.unreachable:,} of {self.entries:,} sums out of reach"
        return f"<{type(self).__name__}: {len(self.masks)} weights, {kept}, {reach}{self._more()}>"

    def _more(self) -> str:
        """Return further text for the repr."""
        return ""


def digests_of(source: nn.Module, masks: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Hash a source's buffers and parameters, of masked ones the kept weights, in float32: name -> SHA-256.

    A tensor with several names is hashed once.
    """
    tensors = itertools.chain(source.named_parameters(), source.named_buffers())
    return {name: _digest(_kept(tensor.detach(), masks.get(name))) for name, tensor in tensors}


def _kept(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return tensor if mask is None else tensor[mask.to(tensor.device)]


def _digest(tensor: torch.Tensor) -> str:
    single = tensor.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(single.numpy().tobytes()).hexdigest()


@torch.no_grad()
def prune(module: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Set the weights that are False in masks, by parameter name, to exactly 0, in place."""
    for name, mask in masks.items():
        weight = module.get_parameter(name)
        weight.masked_fill_(~mask.to(weight.device), 0.0)


def pruned(source: Module, masks: Mapping[str, torch.Tensor]) -> Module:
    """Copy source with the weights that are False in masks at exactly 0 and all others unchanged, bit for bit."""
    twin = copy.deepcopy(source)
    prune(twin, masks)
    return twin
