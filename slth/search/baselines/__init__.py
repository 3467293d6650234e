"""Baselines for tickets: masks from saliencies at initialisation, and quantisation-aware training.

    model = slth.wrap(net, keep=0.3)
    baselines.mask(model, "snip", batches, loss)    # the weights stay random
    controls.train_weights(model)                   # and may then be trained under the mask
    slth.fit(model, batches, loss, steps)

A function in BASELINES computes a saliency for each weight; each group keeps its `keep` share of most salient weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from slth.modules import check_module
from slth.numbers import as_int
from slth.search.baselines.flow import synflow
from slth.search.baselines.problem import Problem, Saliencies, most_salient
from slth.search.baselines.quantised import QUANTISED, quantise
from slth.search.baselines.single import grasp, magnitude, random, snip
from slth.wrapping import handle

__all__ = ["BASELINES", "QUANTISED", "Problem", "mask", "quantise"]

#: name -> function that returns the saliencies of the weights by parameter name; one line per baseline.
BASELINES: dict[str, Callable[[Problem], Saliencies]] = {
    "random": random,
    "magnitude": magnitude,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
}


def mask(
    model: nn.Module,
    name: str,
    batches: Callable[[int], Any] | Iterable[Any] | None = None,
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Set the masks of a wrapped model by a baseline, in place.

    Each group keeps exactly its `keep` share, with ties to the lowest index. Scores become 1 and 0. Gradients are those
    of the unpruned random weights, in eval mode.

    Args:
        model: a wrapped model.
        name: a key of BASELINES.
        batches: as for `slth.fit`; only the first batch is used, by "snip" and "grasp", and for its shape by
            "synflow". The other baselines need none.
        loss: as for `slth.fit`.
        seed: of "random", and of torch's generator while an iterable of batches is read.

    Raises:
        ValueError: with nothing changed, for an unknown name, a model that is not wrapped, missing batches or loss,
            and saliencies that are not finite.
    """
    check_module(model, "model")
    if name not in BASELINES:
        raise ValueError(f"name={name!r}: must be one of {', '.join(BASELINES)}")
    wrapped, problem = handle(model), Problem(model, name, batches, loss, as_int("seed", seed))
    with torch.inference_mode(False):
        kept = most_salient(wrapped, BASELINES[name](problem))
    for path, masked in wrapped.weights.items():
        masked.scores.data.copy_(kept[path])
    for group in wrapped.groups:
        group.current = group.keep
