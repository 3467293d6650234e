"""How a random tensor is made again: the record that a ticket holds in place of the weights.

A :class:`Draw` is one call of `slth.weights.inits` but for the shape; a :class:`Recipe` makes one parameter of equal
parts, of which a fused one (GPT-2's query, key and value side by side) has several. A module remembers the recipes of
its own parameters, so that a network made of such modules can be told by seeds alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from slth.numbers import as_float, as_int, put
from slth.weights import inits

#: name -> function of `slth.weights.inits`, as a recipe names it.
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
    """One random tensor, all but its shape: distribution (a key of DISTRIBUTIONS), its scale or standard deviation."""

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
        """The draw as a float32 tensor of the given shape."""
        draw = DISTRIBUTIONS[self.distribution]
        return draw(shape, self.scale, seed=self.seed, name=self.name, stream=self.stream, device=device)


@dataclass(frozen=True)
class Recipe:
    """One parameter: a draw for each of its equal parts along axis `dim`, but for rows that are 0 (of padding).

    pairs: None, or (axis, sign): along that axis weights come in pairs, of which the first is drawn and the second is
    the same (sign 1) or the opposite (sign -1); of an odd number the last has none.
    """

    draws: tuple[Draw, ...]
    dim: int = 0
    zero_rows: tuple[int, ...] = ()
    pairs: tuple[int, int] | None = None

    def tensor(self, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """The parameter as a float32 tensor. Raises ValueError where the parts do not divide the axis."""
        if self.pairs is not None:
            return self._paired(shape, self.pairs, device)
        parts = len(self.draws)
        if shape[self.dim] % parts:
            raise ValueError(f"shape {tuple(shape)}: axis {self.dim} must be divisible into {parts} equal parts")
        part = [size // parts if axis == self.dim else size for axis, size in enumerate(shape)]
        made = [draw.tensor(part, device) for draw in self.draws]
        whole = made[0] if parts == 1 else torch.cat(made, dim=self.dim)
        if self.zero_rows:
            whole[list(self.zero_rows)] = 0.0
        return whole

    def _paired(self, shape: Sequence[int], pairs: tuple[int, int], device: torch.device | str) -> torch.Tensor:
        axis, sign = pairs
        half = [-(-size // 2) if k == axis else size for k, size in enumerate(shape)]
        first = replace(self, pairs=None).tensor(half, device)
        both = torch.stack((first, sign * first), dim=axis + 1).flatten(axis, axis + 1)
        return both.narrow(axis, 0, shape[axis])

    def told(self) -> dict[str, Any]:
        """The recipe as JSON; of pairs nothing is said where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "pairs" or value is not None}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Recipe:
        """The recipe that :meth:`told` told of. Raises ValueError or TypeError for anything else."""
        pairs = told.get("pairs") and {"pairs": tuple(told["pairs"])}
        return cls(**{**told, **(pairs or {}), "draws": tuple(Draw(**draw) for draw in told["draws"])})

    def redrawn(self, seed: int) -> Recipe:
        """The same recipe from another seed."""
        return replace(self, draws=tuple(replace(draw, seed=seed) for draw in self.draws))


def draw(init: str, fan: inits.Fan, *, seed: int, name: str, scale: float = 1.0) -> Draw:
    """The draw of an initialisation by name (a key of `slth.weights.inits.INITS`), its scale times `scale`.

    Raises ValueError for an unknown init or a fan's keep outside (0, 1].
    """
    distribution, own_scale = inits.scaled(init, fan)
    return Draw(distribution.__name__, scale * own_scale, seed, name)


def of_generations(recipe: Recipe, generation: torch.Tensor) -> torch.Tensor:
    """The weight whose entries come from the streams that `generation` (uint8, the weight's shape) counts up to."""
    value = torch.empty(generation.shape, dtype=torch.float32, device=generation.device)
    for stream in generation.unique().tolist():
        here = generation == stream
        value[here] = _streamed(recipe, stream).tensor(generation.shape, generation.device)[here]
    return value


def _streamed(recipe: Recipe, stream: int) -> Recipe:
    return replace(recipe, draws=tuple(replace(draw, stream=draw.stream + stream) for draw in recipe.draws))


def remember(module: nn.Module, name: str, recipe: Recipe) -> None:
    """Note how the module's own parameter `name` was made."""
    module.__dict__.setdefault(_MEMORY, {})[name] = recipe


def forget(module: nn.Module, name: str) -> None:
    """Note that it is not known how the module's own parameter `name` was made."""
    module.__dict__.get(_MEMORY, {}).pop(name, None)


@torch.no_grad()
def fill(module: nn.Module, recipes: Mapping[str, Recipe]) -> None:
    """Write parameters, by their names in module, from their recipes, and remember these."""
    for path, recipe in recipes.items():
        owner, name = _owner(module, path)
        parameter = owner.get_parameter(name)
        parameter.copy_(recipe.tensor(parameter.shape, parameter.device))
        remember(owner, name, recipe)


def recipe_of(module: nn.Module, path: str) -> Recipe | None:
    """How the parameter of that name in module was made, None where it is not known to come from `slth.weights.inits`.

    What is remembered may have been overwritten since: who relies on it compares.
    """
    owner, name = _owner(module, path)
    memory: dict[str, Recipe] = owner.__dict__.get(_MEMORY, {})
    return memory.get(name)


def required(module: nn.Module, path: str) -> Recipe:
    """As :func:`recipe_of`. Raises ValueError where that is None."""
    recipe = recipe_of(module, path)
    if recipe is None:
        raise ValueError(
            f"{path}: its weights did not come from slth.weights.inits; wrap with weights=... to redraw them"
        )
    return recipe


def _owner(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, name = path.rpartition(".")
    return module.get_submodule(prefix), name
