"""The random network that a module is hidden in: products for its linear maps, and its recorded tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from slth.building import Recorded
from slth.construct.codes import BlockProduct, Code
from slth.construct.networks.hidden import Hidden
from slth.construct.networks.stages import Units
from slth.construct.subset_sum import MAX_EXACT, FloatArray
from slth.numbers import as_float, as_int
from slth.ticket.making import name_of
from slth.weights import recipes

#: Name of a linear map -> [inputs, outputs, then (candidates, scale) of each stage, or the options of its code].
Plan = Mapping[str, Sequence[Any]]


class RandomProduct(nn.Module):
    """One stage (`slth.construct.networks.stages`): x (..., inputs) -> (..., outputs), float64."""

    def __init__(self, units: Units) -> None:
        super().__init__()
        count, inputs, outputs = units.shape
        self.first = nn.Parameter(torch.empty(count, inputs), requires_grad=False)
        self.second = nn.Parameter(torch.empty(count, inputs, outputs), requires_grad=False)
        self.register_buffer("scale", torch.tensor(units.scale, dtype=torch.float64))
        recipes.fill(self, {"first": units.first, "second": units.second})

    def matrix(self) -> torch.Tensor:
        """Compute the product (inputs, outputs), float64, added up in the order of units."""
        total = torch.zeros(self.second.shape[1:], dtype=torch.float64, device=self.second.device)
        for a, b in zip(self.first, self.second, strict=True):
            total += a.double()[:, None] * b.double()
        scale = self.get_buffer("scale")
        return total * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., inputs) -> (..., outputs)."""
        return x.double() @ self.matrix()


class Source(Recorded):
    """Random products under the names of a module's linear maps, each a sum of stages, and buffers for other tensors.

    They are registered in `net`, under their names in the module.

    Args:
        maps: name of a linear map -> [inputs, outputs, [candidates, scale], ...] with one pair per stage, or [inputs,
            outputs, code] with the options of a :class:`slth.construct.Code`.
        recorded: name of another tensor -> [dtype, *shape]; initially zeros.
        seed: seed of all weights.
    """

    def __init__(self, maps: Plan, recorded: Mapping[str, Sequence[Any]], *, seed: int = 0) -> None:
        super().__init__()
        self.net = nn.Module()
        for name, (inputs, outputs, *stages) in maps.items():
            owner = _within(self.net, name)
            for j, stage in enumerate(stages):
                owner.add_module(str(j), _product(f"{name}.{j}", (inputs, outputs), stage, seed))
        for name, (dtype, *shape) in recorded.items():
            path, _, last = name.rpartition(".")
            _within(self.net, path).register_buffer(last, torch.zeros(shape, dtype=getattr(torch, dtype)))
        self.maps = tuple(maps)

    def merged(self) -> Iterator[tuple[str, FloatArray]]:
        """Yield (name, matrix (inputs, outputs), float64) of each linear map."""
        for name in self.maps:
            total = np.zeros(())
            for stage in self.net.get_submodule(name).children():
                assert isinstance(stage, RandomProduct | BlockProduct)
                total = total + stage.matrix().cpu().numpy()
            yield name, total

    def recorded(self) -> dict[str, torch.Tensor]:
        """Return the recorded tensors by name."""
        own = {
            f"{name}.{j}.scale" for name in self.maps for j in range(len(list(self.net.get_submodule(name).children())))
        }
        return {name: buffer for name, buffer in self.net.named_buffers() if name not in own}


def source_arguments(hidden: Mapping[str, Hidden], recorded: Mapping[str, torch.Tensor], seed: int) -> dict[str, Any]:
    """Return the constructor arguments, as JSON values, of the source of these hidden maps."""
    maps = {name: [*each.sizes, *each.plan()] for name, each in hidden.items()}
    return {"maps": maps, "recorded": tensors_to_json(recorded), "seed": seed}


def tensors_to_json(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
    """Describe tensors as name -> [dtype, *shape]."""
    return {name: [name_of(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}


def check_plan(stage: Any) -> None:
    """Raise ValueError or TypeError unless stage is [candidates, scale] or the options of a code."""
    if isinstance(stage, Mapping):
        Code(**stage)
        return
    candidates, scale = stage
    as_int("candidates", candidates, 1, MAX_EXACT)
    as_float("scale", scale, "(0, inf)")


def _product(name: str, sizes: tuple[int, int], stage: Any, seed: int) -> nn.Module:
    """Make the random weights of a stage, named after it."""
    if isinstance(stage, Mapping):
        return BlockProduct(*sizes, Code(**stage), seed=seed, name=name)
    candidates, scale = stage
    return RandomProduct(Units(name, seed, candidates, sizes, scale))


def _within(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at path, after adding empty modules where it is missing."""
    for name in filter(None, path.split(".")):
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module
