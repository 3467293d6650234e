"""Rank and entropy of attention matrices: of random attentions, and of trained networks."""

from typing import Any, cast

import numpy as np
import torch
from torch import nn

from slth.attention import Attention
from slth.experiments.studies.mixing.networks import attentions, options_of, parameters, width_of
from slth.experiments.studies.mixing.study import Job, Study
from slth.experiments.studies.mixing.variants import attention_of
from slth.weights import inits

RANK = 1e-3  # share of the largest singular value from where one counts


def measure_matrix(study: Study, job: Job) -> dict[str, Any]:
    """What the matrices of a random attention, not causal, of standard normal tokens are like."""
    hidden, length = job.shape
    width = width_of(study, job.variant, study.d, hidden, length)
    options = options_of(study, job.variant, length, "natural")
    init = study.config.source_init
    module = attention_of(job.variant)(study.d, study.d, study.heads, width, init=init, seed=job.seed, **options)
    x = inits.normal((8, length, study.d), 1.0, seed=job.seed, name=f"mixing/matrix/{length}")
    return statistics(matrix_of(module, x)) | {"width": width, "parameters": parameters(module)}


@torch.no_grad()
def trained_matrices(model: nn.Module, tokens: torch.Tensor) -> dict[str, float]:
    """The means over the blocks of a network, at tokens (batch, T)."""
    seen: list[dict[str, float]] = []
    hooks = [
        inner.register_forward_pre_hook(lambda inner, given: seen.append(statistics(matrix_of(inner, given[0]))))
        for inner in attentions(model)
    ]
    try:
        model(tokens.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: float(np.mean([one[name] for one in seen])) for name in seen[0]}


@torch.no_grad()
def matrix_of(module: Attention, x: torch.Tensor) -> torch.Tensor:
    """What tokens (..., T, d) attend with: (..., heads, T, T); of an attention whose facts say that it has a matrix."""
    matrix: torch.Tensor = cast("Any", module).effective_matrix(x)
    return matrix


def statistics(matrix: torch.Tensor) -> dict[str, float]:
    """Of matrices (..., T, T) with rows that sum to 1, the means of:

    rank: singular values above RANK times the largest. effective_rank: exp of the entropy of the singular values as
    shares of their sum (Roy & Vetterli 2007). entropy: of a row, in nats.
    """
    matrix = matrix.double().cpu()
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum(-1, keepdim=True)
    rows = matrix.clamp_min(0.0)
    return {
        "rank": float((values > RANK * values[..., :1]).double().sum(-1).mean()),
        "effective_rank": float(torch.special.entr(shares).sum(-1).exp().mean()),
        "entropy": float(torch.special.entr(rows).sum(-1).mean()),
    }
