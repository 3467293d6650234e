"""Controls with which a ticket is compared: other masks on the same weights, other weights under the same mask.

All functions change a wrapped model in place. (Dense training is `slth.fit` on the module itself, not wrapped.)
"""

from __future__ import annotations

import torch
from torch import nn

from slth.masking import Wrapped, fixed, traits
from slth.weights import inits, recipes
from slth.wrapping import handle, random_weight, root


def random_mask(model: nn.Module, seed: int) -> None:
    """Replace the mask by a random one that keeps the same share in each group."""
    wrapped = handle(model)
    for path, masked in wrapped.weights.items():
        scores = masked.scores
        fresh = inits.uniform(scores.shape, 1.0, seed=seed, name=f"random_mask/{path}", device=scores.device)
        with torch.no_grad():
            scores.copy_(fresh)
    _finish(wrapped)


@torch.no_grad()
def shuffled_mask(model: nn.Module, seed: int) -> None:
    """Shuffle the scores within each part of each weight: the mask keeps the same shares, at other places."""
    wrapped = handle(model)
    for path, masked in wrapped.weights.items():
        for part in masked.parts:
            here = part.of(masked.scores)
            name = f"shuffled_mask/{path}/{part.index}"
            order = inits.uniform((here.numel(),), 1.0, seed=seed, name=name, device=here.device).argsort(stable=True)
            here.copy_(here.flatten()[order].reshape(here.shape))


@torch.no_grad()
def redrawn_weights(model: nn.Module, seed: int) -> None:
    """Redraw the weights under the same mask from another seed.

    Raises ValueError for weights not known to come from `slth.weights.inits`.
    """
    wrapped, module = handle(model), root(model)
    known = {path: recipes.required(module, path) for path in wrapped.weights}
    for path, recipe in known.items():
        redrawn, weight = recipe.redrawn(seed), random_weight(model, path)
        weight.copy_(redrawn.tensor(weight.shape, weight.device))
        for trait in traits.known().values():
            trait.reset(wrapped.weights[path])
        prefix, _, name = path.rpartition(".")
        recipes.remember(module.get_submodule(prefix), name, redrawn)


def train_weights(model: nn.Module) -> None:
    """Fix the mask and make the weights under it trainable (sparse training); the scores are no longer trained."""
    wrapped = handle(model)
    for path, masked in wrapped.weights.items():
        masked.gate = fixed
        masked.scores.requires_grad_(False)
        masked.scores.grad = None
        random_weight(model, path).requires_grad_(True)


def _finish(wrapped: Wrapped) -> None:
    for group in wrapped.groups:
        group.current = group.keep
