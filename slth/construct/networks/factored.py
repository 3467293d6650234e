"""Weights that are computed from their pruned random factors whenever a module reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from slth.construct.networks.hidden import Hidden
from slth.construct.networks.hiding import rounded
from slth.construct.networks.maps import LinearMap


class PrunedFactors(nn.Module):
    """A torch parametrization that computes a weight from its first and second factors, which are the parameters.

    Factors are float32, 0 where pruned, in the order of the weight's linear maps, their stages, first and second.
    """

    def __init__(self, maps: Sequence[LinearMap], hidden: Sequence[Hidden], like: torch.Tensor) -> None:
        super().__init__()
        self.maps, self.shape, self.dtype = list(maps), like.shape, like.dtype
        self.hidden = list(hidden)
        factors = [each.factors() for each in hidden]
        self.counts = [len(each) for each in factors]
        self._first = [factor for each in factors for factor in each]

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the factors, which are stored in place of the weight."""
        factors = tuple(factor.to(weight.device) for factor in self._first)
        del self._first
        return factors

    def forward(self, *factors: torch.Tensor) -> torch.Tensor:
        """Compute the weight, bit for bit the one of the merged module."""
        weight = torch.empty(self.shape, dtype=self.dtype)
        left = iter(factors)
        for each, hidden, count in zip(self.maps, self.hidden, self.counts, strict=True):
            own = [next(left).detach().cpu() for _ in range(count)]
            each.put(weight, rounded(hidden.product(own), self.dtype))
        return weight.to(factors[0].device)


def keep_factors(net: nn.Module, maps: Sequence[LinearMap], hidden: Sequence[Hidden]) -> None:
    """Parametrize the weights of net that hold these linear maps by their factors, in every module that shares them."""
    by_parameter: dict[str, list[int]] = {}
    for i, each in enumerate(maps):
        by_parameter.setdefault(each.parameter, []).append(i)
    for path, numbers in by_parameter.items():
        weight = net.get_parameter(path)
        for owner, name in _holders(net, weight):
            factors = PrunedFactors([maps[i] for i in numbers], [hidden[i] for i in numbers], weight)
            parametrize.register_parametrization(owner, name, factors.train(owner.training), unsafe=True)


def _holders(net: nn.Module, weight: nn.Parameter) -> list[tuple[nn.Module, str]]:
    return [(owner, name) for owner in net.modules() for name, each in owner._parameters.items() if each is weight]
