"""What tickets are compared with: masks from scores at initialisation, and quantisation-aware training.

    model = slth.wrap(net, keep=0.3)
    baselines.mask(model, "snip", batches, loss)    # the weights stay random
    controls.train_weights(model)                   # and may then be trained under the mask
    slth.fit(model, batches, loss, steps)

A function of BASELINES gives each weight a saliency; of each group the most salient are kept, as many as its keep says.
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

#: One line a baseline: its name and the saliencies of the weights, by parameter name.
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
    """Set the masks of a wrapped model by a baseline, in place: exactly its keep in every group, ties to lowest index.

    Scores become 1 and 0. Gradients are those of the whole random weights, in eval mode.

    Args:
        model: wrapped.
        name: a key of BASELINES.
        batches: as `slth.fit` takes them, of which the first is used: by "snip" and "grasp", and for its shape by
            "synflow". The others need none.
        loss: as `slth.fit` takes it.
        seed: of "random", and of what an iterable of batches draws from torch's generator.

    Raises ValueError, with nothing changed, for an unknown name, a model that is not wrapped, batches and loss that are
    missing, and saliencies that are not finite.
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
