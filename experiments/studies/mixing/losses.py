"""Measure the validation loss of tickets in a small GPT-2, and of dense training."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from slth.experiments.studies.gpt2.pruning import Pruning
from slth.experiments.studies.gpt2.training import train
from slth.experiments.studies.mixing.matrices import trained_matrices
from slth.experiments.studies.mixing.networks import network, parameters
from slth.experiments.studies.mixing.study import Job, Study
from slth.experiments.studies.mixing.variants import has_matrix


def measure_ticket(study: Study, job: Job) -> dict[str, Any]:
    """Measure the validation loss of a variant's ticket."""
    assert job.keep is not None
    search = replace(study.search, keep=job.keep, seed=job.seed)

    def make() -> nn.Module:
        return search.wrap(network(study, job.variant, job.seed, ticket=True)[0])

    model, width = network(study, job.variant, job.seed, ticket=True)
    return trained(study, job, make, search)[1] | {"width": width, "parameters": parameters(model)}


def measure_dense(study: Study, job: Job) -> dict[str, Any]:
    """Measure the validation loss of a variant's dense training, and statistics of its trained attention matrices."""
    model, width = network(study, job.variant, job.seed, ticket=False)
    size = {"width": width, "parameters": parameters(model)}
    model, found = trained(study, job, lambda: network(study, job.variant, job.seed, ticket=False)[0], None)
    found |= size
    if study.config.matrices and has_matrix(job.variant):
        found["matrix"] = trained_matrices(model, study.data.validation[:4])
    return found


def trained(
    study: Study, job: Job, make: Callable[[], nn.Module], search: Pruning | None
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a model at the learning rate of the best pilot; return it and its loss, infinite if training diverges."""
    how = replace(study.how, seed=job.seed)
    kind, method = "ticket" if search else "dense", search.method if search else None

    def run(lr: float, steps: int, label: str) -> tuple[nn.Module, dict[str, Any]]:
        model = make()
        try:
            fit = train(model, study.data, how, lr, steps, label, method)
        except FloatingPointError:
            return model, {"val_loss": math.inf, "lr": lr}
        done = max(1, steps - fit.resumed_at)
        return model, {"val_loss": fit.last["val_loss"], "lr": lr, "seconds_per_step": fit.seconds / done}

    lrs, pilots = study.lrs[kind], study.config.pilot_steps
    lr = lrs[0]
    if len(lrs) > 1:
        lr = min(lrs, key=lambda lr: run(lr, pilots, f"{job.label} pilot lr={lr}")[1]["val_loss"])
    return run(lr, how.steps, job.label)
