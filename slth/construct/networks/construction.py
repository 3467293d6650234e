"""What `slth.construct.module` returns: the masks of the random source, and the module that they make."""

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
    """Masks of random products that are a module's linear maps, and the rest of the module recorded.

    `source` (of :class:`slth.construct.networks.source.Source`), `masks` and `digests` are made when they are read:
    a source is twice `candidates` times as large as its target. errors: by the name of a linear map, what its weights
    in the merged module differ by from the target's, (inputs, outputs), float64. candidates: the most that an entry
    chose from, or a block. hidden: what each linear map was found in. recorded: all other tensors, by name.
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
        """The random network, not pruned, with the target's recorded tensors."""
        source = Source(**source_arguments(self.hidden, self.recorded, seed=self._seed))
        for name, each in self.hidden.items():
            each.record(source.net.get_submodule(name))
        for name, buffer in source.recorded().items():
            buffer.copy_(self.recorded[name])
        return source

    @cached_property
    def masks(self) -> dict[str, torch.Tensor]:
        """The masks by the names of their weights in the source; factors without one are kept whole."""
        return {f"net.{name}": mask for each in self.hidden.values() for name, mask in each.masks().items()}

    @cached_property
    def digests(self) -> dict[str, str]:
        """What tells the source from others."""
        return digests_of(self.source, self.masks)

    @property
    def bits(self) -> int:
        """Of the masks: one a candidate of every entry that takes part in a stage, or one a pair of units of a code.

        And 16 bits of each scale of a code.
        """
        return sum(each.bits for each in self.hidden.values())

    @property
    def recorded_bytes(self) -> int:
        """Of what is recorded as it is."""
        return sum(tensor.nbytes for tensor in self.recorded.values())

    @property
    def exact(self) -> bool:
        """Whether the merged module has the target's weights to the last bit."""
        return not any(error.any() for error in self.errors.values())

    @property
    def certificates(self) -> dict[str, float]:
        """By the name of a linear map: |W' - W|_2 of its weights W' in the merged module; |x W' - x W| <= it |x|."""
        return {name: _spectral(error) for name, error in self.errors.items()}

    def weights_of(self, net: nn.Module) -> Iterator[tuple[LinearMap, torch.Tensor]]:
        """(linear map of net, its merged matrix in the dtype of net), one at a time. Raises ValueError as `merge`."""
        for each in self._maps(net):
            yield each, rounded(self.hidden[each.name].merged(), each.dtype)

    def _maps(self, net: nn.Module) -> list[LinearMap]:
        return _matched(net, {name: hidden.sizes for name, hidden in self.hidden.items()})

    def merge(self, net: Module) -> Module:
        """Write the merged weights and what is recorded into net, of the target's class and shapes; returns it.

        Raises ValueError, before any change, where net is wrapped or its linear maps or other tensors are not those of
        the target.
        """
        return _merge(net, list(self.weights_of(net)), self.recorded)

    def network(self, *, factors: bool = False) -> nn.Module:
        """A copy of the target with merged weights: the same class, the same code, in eval mode.

        factors: its parameters are the pruned random factors, of which weights are made whenever they are read.
        """
        net = self.merge(copy.deepcopy(self._net)).eval()
        if factors:
            maps = list(self._maps(net))
            keep_factors(net, maps, [self.hidden[each.name] for each in maps])
        return net

    @torch.no_grad()
    def attention_certificates(self, alpha: float) -> dict[str, Certificate]:
        """Bounds on the outputs of each attention whose form allows it, by its name, for tokens of norm <= alpha.

        Outputs are the heads' side by side, before the layer that follows, or those of nn.MultiheadAttention. Raises
        ValueError for alpha that is not finite and positive.
        """
        norm = math.hypot(check_alpha(alpha), 1.0)
        merged = dict(attentions(self.network()))
        return {name: certificate(target, merged[name], norm) for name, target in attentions(self._net)}

    def ticket(self) -> Ticket:
        """The ticket of the pruned source, which says how the source is built."""
        return Ticket.of_masks(self.source, self.masks, built=built_of(self.source))

    def _more(self) -> str:
        exact = "every weight exact" if self.exact else f"errors at most {self.error_max:.3g}"
        return f", {self.bits / 8:,.0f} bytes of bits and {self.recorded_bytes:,} recorded, {exact}"


@torch.no_grad()
def merge(ticket: Ticket, net: Module) -> Module:
    """Write what the ticket of a :class:`ModuleConstruction` makes into net, of the target's class and shapes.

    Returns net. Raises TicketError for another ticket or a damaged one, ValueError where net is wrapped or its linear
    maps or other tensors are not those of the target; net is not changed then.
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
    """Those of the source that a ticket says it is of. Raises TicketError where it says none that can be."""
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
    """Raise ValueError unless net holds, beside these maps, just these tensors: [dtype, *shape] by name."""
    here = tensors_to_json(recorded(net, maps))
    for name in sorted(here.keys() | wanted.keys()):
        if here.get(name) != wanted.get(name):
            raise ValueError(f"net {name!r} is {here.get(name)}: must be {wanted.get(name)}, as in the target")


def _matched(net: nn.Module, sizes: dict[str, tuple[int, int]]) -> list[LinearMap]:
    """The linear maps of net by these names. Raises ValueError unless it has just these, of these sizes."""
    for tables in (False, True):
        maps = linear_maps(net, tables=tables)
        if {each.name: each.sizes for each in maps} == sizes:
            return maps
    raise ValueError(f"net={type(net).__name__}: must have the target's linear maps, {len(sizes)} of them")


def _error(net: nn.Module, each: LinearMap, hidden: Hidden) -> torch.Tensor:
    target = each.matrix(net.get_parameter(each.parameter).detach())
    return rounded(hidden.merged(), each.dtype).double() - target.to("cpu", torch.float64)


def _spectral(error: torch.Tensor) -> float:
    """At least |error|_2: what the decomposition adds is far below size times eps times the Frobenius norm."""
    slack = max(error.shape) * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(error)
    return float(spectral_norm(error) + slack)
