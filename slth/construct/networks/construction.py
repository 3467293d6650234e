"""The result of `slth.construct.module`: masks of the random source, and the module with the merged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from slth.building import built_of
from slth.construct.certificates import Certificate, certificate
from slth.construct.checks import check_alpha
from slth.construct.construction import Construction, digests_of
from slth.construct.networks.attentions import attentions
from slth.construct.networks.factored import keep_factors
from slth.construct.networks.hidden import Hidden
from slth.construct.networks.hiding import rounded
from slth.construct.networks.maps import LinearMap, linear_maps, recorded
from slth.construct.networks.source import Source, check_plan, source_arguments, tensors_to_json
from slth.construct.rounding import spectral_norm
from slth.modules import check_module
from slth.ticket import Ticket, TicketError

Module = TypeVar("Module", bound=nn.Module)


class ModuleConstruction(Construction):
    """Masks of random products that approximate a module's linear maps, and the module's other tensors.

    `source` (a :class:`slth.construct.networks.source.Source`), `masks` and `digests` are computed when they are read,
    since a source is 2 * `candidates` times as large as its target.

    Attributes:
        errors: name of a linear map -> its weights in the merged module minus the target's (inputs, outputs), float64.
        candidates: the most candidates of an entry, or of a block of a code.
        hidden: name of a linear map -> its hidden form.
        recorded: name -> any other tensor.
    """

    hidden: dict[str, Hidden]
    recorded: dict[str, torch.Tensor]
    _net: nn.Module
    _seed: int

    kinds = (Source,)
    allowed = "a source of slth.construct.module"

    def __init__(self, net: nn.Module, maps: list[LinearMap], hidden: dict[str, Hidden], seed: int) -> None:
        errors = {each.name: _error(net, each, hidden[each.name]) for each in maps}
        self.__dict__ |= {
            "_net": net,
            "_seed": seed,
            "hidden": hidden,
            "recorded": recorded(net, maps),
            "errors": errors,
            "unreachable": sum(each.unreachable for each in hidden.values()),
            "entries": sum(error.numel() for error in errors.values()),
            "candidates": max(each.most for each in hidden.values()),
        }

    @cached_property
    def source(self) -> Source:
        """The unpruned random network, with the target's recorded tensors."""
        source = Source(**source_arguments(self.hidden, self.recorded, seed=self._seed))
        for name, each in self.hidden.items():
            each.record(source.net.get_submodule(name))
        for name, buffer in source.recorded().items():
            buffer.copy_(self.recorded[name])
        return source

    @cached_property
    def masks(self) -> dict[str, torch.Tensor]:
        """The masks by the names of their weights in the source; weights without a mask are not pruned."""
        return {f"net.{name}": mask for each in self.hidden.values() for name, mask in each.masks().items()}

    @cached_property
    def digests(self) -> dict[str, str]:
        """Hashes that identify the source."""
        return digests_of(self.source, self.masks)

    @property
    def bits(self) -> int:
        """The bits of the masks and of the scales of a code.

        That is one bit per candidate of every entry that takes part in a stage; for a code one bit per pair of units,
        and 16 bits per scale.
        """
        return sum(each.bits for each in self.hidden.values())

    @property
    def recorded_bytes(self) -> int:
        """The bytes of the recorded tensors."""
        return sum(tensor.nbytes for tensor in self.recorded.values())

    @property
    def exact(self) -> bool:
        """Whether the merged module has the target's weights, bit for bit."""
        return not any(error.any() for error in self.errors.values())

    @property
    def certificates(self) -> dict[str, float]:
        """Name of a linear map -> |W' - W|_2, with W' its merged and W its target weights.

        It bounds the error of the map's outputs: |x W' - x W| <= |W' - W|_2 |x|.
        """
        return {name: _spectral(error) for name, error in self.errors.items()}

    def weights_of(self, net: nn.Module) -> Iterator[tuple[LinearMap, torch.Tensor]]:
        """Yield (linear map of net, its merged matrix in net's dtype). Raises ValueError as `merge` does."""
        for each in self._maps(net):
            yield each, rounded(self.hidden[each.name].merged(), each.dtype)

    def _maps(self, net: nn.Module) -> list[LinearMap]:
        return _matched(net, {name: hidden.sizes for name, hidden in self.hidden.items()})

    def merge(self, net: Module) -> Module:
        """Write the merged weights and the recorded tensors into net, of the target's class and shapes, and return it.

        Raises ValueError, before any change, if net is wrapped or its linear maps or other tensors differ from the
        target's in name, shape or dtype.
        """
        return _merge(net, list(self.weights_of(net)), self.recorded)

    def network(self, *, factors: bool = False) -> nn.Module:
        """Copy the target, in eval mode, with merged weights.

        With `factors`, its parameters are the pruned random factors, and weights are computed whenever they are read.
        """
        net = self.merge(copy.deepcopy(self._net)).eval()
        if factors:
            maps = list(self._maps(net))
            keep_factors(net, maps, [self.hidden[each.name] for each in maps])
        return net

    @torch.no_grad()
    def attention_certificates(self, alpha: float) -> dict[str, Certificate]:
        """Bound the output error of each attention with bilinear logits, by its name, for tokens of norm <= alpha.

        Outputs are the concatenated outputs of the heads, before the output layer; for nn.MultiheadAttention they are
        its own. Raises ValueError for an alpha that is not finite and positive.
        """
        norm = math.hypot(check_alpha(alpha), 1.0)
        merged = dict(attentions(self.network()))
        return {name: certificate(target, merged[name], norm) for name, target in attentions(self._net)}

    def ticket(self) -> Ticket:
        """Make the ticket of the pruned source, which stores the source's constructor arguments."""
        return Ticket.of_masks(self.source, self.masks, built=built_of(self.source))

    def _more(self) -> str:
        exact = "every weight exact" if self.exact else f"errors at most {self.error_max:.3g}"
        return f", {self.bits / 8:,.0f} bytes of bits and {self.recorded_bytes:,} recorded, {exact}"


@torch.no_grad()
def merge(ticket: Ticket, net: Module) -> Module:
    """Write the weights of a :class:`ModuleConstruction`'s ticket into net, of the target's class and shapes.

    Returns net. Raises before any change: TicketError for another kind of ticket or a damaged one, ValueError if net is
    wrapped or its linear maps or other tensors differ from the target's in name, shape or dtype.
    """
    check_module(net, "net")
    arguments = _arguments(ticket)
    sizes = {name: (inputs, outputs) for name, (inputs, outputs, *_) in arguments["maps"].items()}
    matched = {each.name: each for each in _matched(net, sizes)}
    _check_recorded(net, list(matched.values()), arguments["recorded"])
    source = Source(**arguments)
    ticket.apply(source)
    weights = [(matched[name], rounded(matrix, matched[name].dtype)) for name, matrix in source.merged()]
    return _merge(net, weights, source.recorded())


def _arguments(ticket: Ticket) -> dict[str, Any]:
    """Return the source's constructor arguments from a ticket. Raises TicketError if it has no valid ones."""
    built = ticket.built or {}
    try:
        arguments = dict(built["arguments"])
        for _, _, *stages in arguments["maps"].values():
            for stage in stages:
                check_plan(stage)
        return {key: arguments[key] for key in ("maps", "recorded", "seed")}
    except (KeyError, TypeError, ValueError) as error:
        raise TicketError("a ticket that says of no source of slth.construct.module how it is built") from error


def _merge(net: Module, weights: list[tuple[LinearMap, torch.Tensor]], tensors: dict[str, torch.Tensor]) -> Module:
    own = dict(net.named_parameters()) | dict(net.named_buffers())
    _check_recorded(net, [each for each, _ in weights], tensors_to_json(tensors))
    with torch.no_grad():
        for each, matrix in weights:
            each.put(own[each.parameter], matrix)
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return net


def _check_recorded(net: nn.Module, maps: list[LinearMap], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError unless net's tensors other than these maps are exactly these: name -> [dtype, *shape]."""
    here = tensors_to_json(recorded(net, maps))
    for name in sorted(here.keys() | wanted.keys()):
        if here.get(name) != wanted.get(name):
            raise ValueError(f"net {name!r} is {here.get(name)}: must be {wanted.get(name)}, as in the target")


def _matched(net: nn.Module, sizes: dict[str, tuple[int, int]]) -> list[LinearMap]:
    """Return net's linear maps. Raises ValueError unless it has exactly these names and sizes."""
    for tables in (False, True):
        maps = linear_maps(net, tables=tables)
        if {each.name: each.sizes for each in maps} == sizes:
            return maps
    raise ValueError(f"net={type(net).__name__}: must have the target's linear maps, {len(sizes)} of them")


def _error(net: nn.Module, each: LinearMap, hidden: Hidden) -> torch.Tensor:
    target = each.matrix(net.get_parameter(each.parameter).detach())
    return rounded(hidden.merged(), each.dtype).double() - target.to("cpu", torch.float64)


def _spectral(error: torch.Tensor) -> float:
    """Bound |error|_2 from above: the decomposition's rounding is far below size times eps times the Frobenius norm."""
    slack = max(error.shape) * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(error)
    return float(spectral_norm(error) + slack)
