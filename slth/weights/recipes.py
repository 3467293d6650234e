"""Recipes: records from which a random tensor can be drawn again, which a ticket stores instead of the weights.

A :class:`Draw` is one call of `slth.weights.inits`, without the shape. A :class:`Recipe` describes one parameter of
equal parts; a fused one (GPT-2's query, key and value in one tensor) has several. A module stores the recipes of its
own parameters, so that seeds are enough to describe a network of such modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from slth.numbers import as_float, as_int, put
from slth.weights import inits

#: name in a recipe -> function of `slth.weights.inits`.
DISTRIBUTIONS = {
    "uniform": inits.uniform,
    "uniform16": inits.uniform16,
    "sign": inits.sign,
    "normal": inits.normal,
    "positive": inits.positive,
    "orthogonal": inits.orthogonal,
}
_MEMORY = "_slth_recipes"


@dataclass(frozen=True)
class Draw:
    """One random tensor, without its shape.

    Attributes:
        distribution: a key of DISTRIBUTIONS.
        scale: the scale, or standard deviation, of the distribution.
        seed, name, stream: as in `slth.weights.inits`.

    Raises ValueError for an unknown distribution and for numbers of the wrong type or range.
    """

    distribution: str
    scale: float
    seed: int
    name: str
    stream: int = 0

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution={self.distribution!r}: must be one of {', '.join(DISTRIBUTIONS)}")
        numbers = {"seed": as_int("seed", self.seed), "stream": as_int("stream", self.stream, 0)}
        put(self, scale=as_float("scale", self.scale), **numbers)

    def tensor(self, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """Draw a float32 tensor of this shape."""
        draw = DISTRIBUTIONS[self.distribution]
        return draw(shape, self.scale, seed=self.seed, name=self.name, stream=self.stream, device=device)


@dataclass(frozen=True)
class Recipe:
    """One parameter.

    Attributes:
        draws: one for each of its equal parts along axis `dim`.
        dim: the axis of the parts.
        zero_rows: rows that are 0 (for padding).
        pairs: None, or (axis, sign): weights come in pairs along this axis, of which the first is drawn and the second
            is the same (sign 1) or its negative (sign -1). With an odd size the last weight has no partner.
    """

    draws: tuple[Draw, ...]
    dim: int = 0
    zero_rows: tuple[int, ...] = ()
    pairs: tuple[int, int] | None = None

    def tensor(self, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """Draw the parameter as a float32 tensor. Raises ValueError if the parts do not divide the axis."""
        if self.pairs is not None:
            return self._paired(shape, self.pairs, device)
        parts = len(self.draws)
        if shape[self.dim] % parts:
            raise ValueError(f"shape {tuple(shape)}: axis {self.dim} must be divisible into {parts} equal parts")
        part = [size // parts if axis == self.dim else size for axis, size in enumerate(shape)]
        tensors = [draw.tensor(part, device) for draw in self.draws]
        weight = tensors[0] if parts == 1 else torch.cat(tensors, dim=self.dim)
        if self.zero_rows:
            weight[list(self.zero_rows)] = 0.0
        return weight

    def _paired(self, shape: Sequence[int], pairs: tuple[int, int], device: torch.device | str) -> torch.Tensor:
        axis, sign = pairs
        half = [-(-size // 2) if k == axis else size for k, size in enumerate(shape)]
        first = replace(self, pairs=None).tensor(half, device)
        both = torch.stack((first, sign * first), dim=axis + 1).flatten(axis, axis + 1)
        return both.narrow(axis, 0, shape[axis])

    def to_json(self) -> dict[str, Any]:
        """Convert the recipe to JSON, without the key "pairs" if there are none."""
        return {name: value for name, value in asdict(self).items() if name != "pairs" or value is not None}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Recipe:
        """Read the result of :meth:`told`. Raises ValueError or TypeError for anything else."""
        pairs = stored.get("pairs") and {"pairs": tuple(stored["pairs"])}
        return cls(**{**stored, **(pairs or {}), "draws": tuple(Draw(**draw) for draw in stored["draws"])})

    def redrawn(self, seed: int) -> Recipe:
        """Return the same recipe with another seed."""
        return replace(self, draws=tuple(replace(draw, seed=seed) for draw in self.draws))


def draw(init: str, fan: inits.Fan, *, seed: int, name: str, scale: float = 1.0) -> Draw:
    """Return the draw of an initialisation, a key of `slth.weights.inits.INITS`; `scale` multiplies its own scale.

    Raises ValueError for an unknown init or a fan's keep outside (0, 1].
    """
    distribution, own_scale = inits.scaled(init, fan)
    return Draw(distribution.__name__, scale * own_scale, seed, name)


def of_generations(recipe: Recipe, generation: torch.Tensor) -> torch.Tensor:
    """Draw a weight whose entries come from the streams given by `generation` (uint8, the weight's shape)."""
    value = torch.empty(generation.shape, dtype=torch.float32, device=generation.device)
    for stream in generation.unique().tolist():
        here = generation == stream
        value[here] = _streamed(recipe, stream).tensor(generation.shape, generation.device)[here]
    return value


def _streamed(recipe: Recipe, stream: int) -> Recipe:
    return replace(recipe, draws=tuple(replace(draw, stream=draw.stream + stream) for draw in recipe.draws))


def remember(module: nn.Module, name: str, recipe: Recipe) -> None:
    """Store the recipe of the module's own parameter `name`."""
    module.__dict__.setdefault(_MEMORY, {})[name] = recipe


def forget(module: nn.Module, name: str) -> None:
    """Remove the recipe of the module's own parameter `name`, if it has one."""
    module.__dict__.get(_MEMORY, {}).pop(name, None)


@torch.no_grad()
def fill(module: nn.Module, recipes: Mapping[str, Recipe]) -> None:
    """Draw parameters, by their names in the module, from their recipes, and store the recipes."""
    for path, recipe in recipes.items():
        owner, name = _owner(module, path)
        parameter = owner.get_parameter(name)
        parameter.copy_(recipe.tensor(parameter.shape, parameter.device))
        remember(owner, name, recipe)


def recipe_of(module: nn.Module, path: str) -> Recipe | None:
    """Return the recipe of a parameter, by its name in the module; None if it has none.

    The parameter may have been overwritten since: a caller that relies on the recipe must compare the values.
    """
    owner, name = _owner(module, path)
    memory: dict[str, Recipe] = owner.__dict__.get(_MEMORY, {})
    return memory.get(name)


def required(module: nn.Module, path: str) -> Recipe:
    """Return the recipe of a parameter, as :func:`recipe_of` does. Raises ValueError if it has none."""
    recipe = recipe_of(module, path)
    if recipe is None:
        raise ValueError(
            f"{path}: its weights did not come from slth.weights.inits; wrap with weights=... to redraw them"
        )
    return recipe


def _owner(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, name = path.rpartition(".")
    return module.get_submodule(prefix), name
