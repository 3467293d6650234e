"""Count jumps of the training loss in dense training."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

import slth
from slth.experiments.studies.gpt2.training import token_loss
from slth.experiments.studies.mixing.networks import network, parameters
from slth.experiments.studies.mixing.study import Job, Study

WINDOW, JUMP, SPREADS = 20, 0.2, 6.0  # the definition of a spike, see SPIKE
SPIKE = (
    f"a training loss that is above the median of the {WINDOW} before it by more than {JUMP} nat and by more than "
    f"{SPREADS:g} of their standard deviations, estimated from their median absolute deviation; neighbours count once"
)


def measure_spikes(study: Study, job: Job) -> dict[str, Any]:
    """Count the loss spikes of a variant in dense training at a learning rate."""
    model, width = network(study, job.variant, job.seed, ticket=False)
    how, losses = replace(study.how, seed=job.seed), []

    def loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        value = token_loss(model, tokens)
        losses.append(float(value.detach()))
        return value

    assert job.lr is not None
    diverged = False
    try:
        slth.fit(
            model.to(how.device),
            how.batches(study.data),
            loss,
            study.config.spike_steps,
            lr=job.lr,
            warmup=how.warmup,
            clip=how.clip,
            seed=job.seed,
            log=how.log(job.label),
            name=job.label,
            **vars(how.arithmetic),
        )
    except FloatingPointError:
        diverged = True
    pieces = (losses[i : i + how.arithmetic.accumulate] for i in range(0, len(losses), how.arithmetic.accumulate))
    losses = [sum(piece) / len(piece) for piece in pieces]
    last = float(np.mean(losses[-WINDOW:]))
    found = {"spikes": count_spikes(losses), "diverged": diverged, "train_loss": last}
    return found | {"width": width, "parameters": parameters(model)}


def count_spikes(losses: list[float]) -> int:
    """Count the spikes, as defined by SPIKE, in the losses of all steps; the first WINDOW losses are none."""
    high = [False] * len(losses)
    for step in range(WINDOW, len(losses)):
        before = np.array(losses[step - WINDOW : step])
        middle = np.median(before)
        spread = 1.4826 * np.median(np.abs(before - middle))
        high[step] = not losses[step] <= middle + max(JUMP, SPREADS * spread)  # NaN is a spike, too
    return sum(now and not before for before, now in itertools.pairwise([False, *high]))
