"""The problem that a baseline solves: a wrapped model with a loss; gradients of its weights; the most salient ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from slth import kernels
from slth.masking import Masked, Wrapped, masks, passes
from slth.search.batches import Feed
from slth.wrapping import handle, random_weight, root

Saliencies = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """A wrapped model, its batches and loss (None if a baseline needs none), and a seed."""

    model: nn.Module
    name: str  # of the baseline, for errors
    batches: Callable[[int], Any] | Iterable[Any] | None
    loss: Callable[[nn.Module, Any], torch.Tensor] | None
    seed: int

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of the unpruned random weights, by parameter name."""
        return {path: random_weight(self.model, path).detach().clone() for path in handle(self.model).weights}

    def batch(self) -> Any:
        """Return the first batch. Raises ValueError if there are no batches or no loss."""
        if self.batches is None or self.loss is None:
            raise ValueError(f"name={self.name!r}: must have batches and loss")
        with torch.random.fork_rng(devices=[]):
            return Feed(self.batches, self.seed).at(0)

    def loss_of(self, batch: Any) -> torch.Tensor:
        """Compute the loss of a batch, with the weights set by :func:`shown`."""
        assert self.loss is not None
        return self.loss(self.model, batch)


@contextmanager
def shown(model: nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Make the model read these values as its masked weights, in eval mode; they have gradients of any order."""
    wrapped, modes = handle(model), {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(kernels.use("reference"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            root(model).eval()
            wrapped.leaves = _Shown(wrapped, values)
            yield
        finally:
            wrapped.__dict__.pop("leaves", None)
            for module, training in modes.items():
                module.training = training


class _Shown(passes.Pass):
    """A pass whose masked weights are given."""

    def __init__(self, wrapped: Wrapped, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__(wrapped.weights)
        self.values = values

    def masked_weight(self, masked: Masked, weight: torch.Tensor) -> torch.Tensor:
        return self.values[masked.path]


def gradients(
    output: torch.Tensor, values: Mapping[str, torch.Tensor], *, again: bool = False
) -> dict[str, torch.Tensor]:
    """Compute the gradients of a scalar, 0 for values it does not depend on; `again` makes them differentiable."""
    grads = torch.autograd.grad(output, list(values.values()), create_graph=again, materialize_grads=True)
    return dict(zip(values, grads, strict=True))


@torch.no_grad()
def most_salient(wrapped: Wrapped, saliencies: Saliencies, power: float = 1.0) -> dict[str, torch.Tensor]:
    """Return masks (bool, by parameter name) that keep the most salient weights of each group, ties to lowest index.

    power: each group keeps the share keep ** power. Raises ValueError for saliencies that are not finite.
    """
    kept = {path: torch.zeros_like(saliency, dtype=torch.bool) for path, saliency in saliencies.items()}
    for group in wrapped.groups:
        members = [masked.parts[i].of(saliencies[masked.path]) for masked, i in group.members]
        flat = torch.cat([part.flatten() for part in members])
        if not flat.isfinite().all():
            raise ValueError(f"{group.name}: its saliencies are not finite")
        flags = torch.zeros_like(flat, dtype=torch.bool)
        flags[flat.argsort(descending=True, stable=True)[: masks.count_kept(group.size, group.keep**power)]] = True
        pieces = flags.split([part.numel() for part in members])
        for (masked, i), piece in zip(group.members, pieces, strict=True):
            part = masked.parts[i].of(kept[masked.path])
            part.copy_(piece.reshape(part.shape))
    return kept
