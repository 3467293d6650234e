"""What every function of `slth.construct` returns: masks of a source, and what they achieve.

The masks fit one source only, so a construction stores a hash of each kept weight and of each tensor without a mask.
The hash is of float32: a float64 copy has the same one, and so has a source that was pruned already.
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
    """Masks under which a random source computes what its target computes, and how well.

    Attributes:
        source: the module that is to be pruned, as it was given.
        masks: parameter name of the source -> bool tensor of the parameter's shape, True = kept.
        errors: name of a matrix that was to be met -> pruned source minus target (..., rows, columns), float64.
        unreachable: entries whose target no subset of their candidates could meet, of `entries` in total.
        candidates: the fewest products that an entry's subset sum chose from.
        digests: what tells the source from others, see :func:`digests_of`.
    """

    source: nn.Module
    masks: dict[str, torch.Tensor]
    errors: dict[str, torch.Tensor]
    unreachable: int
    entries: int
    candidates: int
    digests: dict[str, str] = field(init=False)

    kinds: ClassVar[tuple[type[nn.Module], ...]]  # what a source is an instance of
    allowed: ClassVar[str]  # the same in words

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", digests_of(self.source, self.masks))

    @property
    def weights(self) -> int:
        """How many weights the masks cover: the bits of the ticket."""
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
        """Set the weights of source that are not kept to exactly 0, in place; the others keep every bit.

        Raises, before any change, ValueError for another source than the construction's (other shapes, weights or
        recorded scales) or one that is wrapped, TypeError for another kind of module.
        """
        self._check_own(source)
        prune(source, self.masks)

    def ticket(self) -> Ticket:
        """The ticket of the pruned source: its seeds, masks and recorded scales, and how it is built.

        What no seed makes of the source lies over the source as a base. Raises ValueError where the source is no longer
        what it was, but for having been pruned.
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
        """What else a short description says."""
        return ""


def digests_of(source: nn.Module, masks: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 by name of a source's parameters, of what masks keep of them, and of its buffers, in float32.

    A tensor that has several names is hashed once.
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
    """Set the weights that masks, by parameter name, do not keep to exactly 0, in place."""
    for name, mask in masks.items():
        weight = module.get_parameter(name)
        weight.masked_fill_(~mask.to(weight.device), 0.0)


def pruned(source: Module, masks: Mapping[str, torch.Tensor]) -> Module:
    """A copy of source in which the weights that masks do not keep are exactly 0 and all others keep every bit."""
    twin = copy.deepcopy(source)
    prune(twin, masks)
    return twin
