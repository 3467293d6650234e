"""What a baseline is asked: a wrapped model and a loss, gradients of its weights, and the most salient of them."""

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
    """A wrapped model, what it is trained on (None: nothing is known of it), and a seed."""

    model: nn.Module
    name: str  # of the baseline, for errors
    batches: Callable[[int], Any] | Iterable[Any] | None
    loss: Callable[[nn.Module, Any], torch.Tensor] | None
    seed: int

    def weights(self) -> dict[str, torch.Tensor]:
        """The random weights by parameter name, whole; copies."""
        return {path: random_weight(self.model, path).detach().clone() for path in handle(self.model).weights}

    def batch(self) -> Any:
        """The first batch. Raises ValueError where there are none."""
        if self.batches is None or self.loss is None:
            raise ValueError(f"name={self.name!r}: must have batches and loss")
        with torch.random.fork_rng(devices=[]):
            return Feed(self.batches, self.seed).at(0)

    def loss_of(self, batch: Any) -> torch.Tensor:
        """The loss of a batch, with the weights that :func:`shown` shows."""
        assert self.loss is not None
        return self.loss(self.model, batch)


@contextmanager
def shown(model: nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let the model, in eval mode, read these in place of its masked weights; gradients of any order pass through."""
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
    """A pass that shows values of its own."""

    def __init__(self, wrapped: Wrapped, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__(wrapped.weights)
        self.values = values

    def made(self, masked: Masked, weight: torch.Tensor) -> torch.Tensor:
        return self.values[masked.path]


def gradients(
    output: torch.Tensor, values: Mapping[str, torch.Tensor], *, again: bool = False
) -> dict[str, torch.Tensor]:
    """Those of a scalar in the values, 0 where it does not depend on one; `again`: they can be differentiated."""
    found = torch.autograd.grad(output, list(values.values()), create_graph=again, materialize_grads=True)
    return dict(zip(values, found, strict=True))


@torch.no_grad()
def most_salient(wrapped: Wrapped, saliencies: Saliencies, power: float = 1.0) -> dict[str, torch.Tensor]:
    """The masks by parameter name, bool, that keep the most salient of each group, ties to the lowest index.

    power: a group keeps the share keep ** power. Raises ValueError for saliencies that are not finite.
    """
    kept = {path: torch.zeros_like(saliency, dtype=torch.bool) for path, saliency in saliencies.items()}
    for group in wrapped.groups:
        found = [masked.parts[i].of(saliencies[masked.path]) for masked, i in group.members]
        flat = torch.cat([part.flatten() for part in found])
        if not flat.isfinite().all():
            raise ValueError(f"{group.name}: its saliencies are not finite")
        flags = torch.zeros_like(flat, dtype=torch.bool)
        flags[flat.argsort(descending=True, stable=True)[: masks.count_kept(group.size, group.keep**power)]] = True
        pieces = flags.split([part.numel() for part in found])
        for (masked, i), piece in zip(group.members, pieces, strict=True):
            part = masked.parts[i].of(kept[masked.path])
            part.copy_(piece.reshape(part.shape))
    return kept
