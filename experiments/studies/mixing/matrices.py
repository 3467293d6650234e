"""Rank and entropy of attention matrices, for random attentions and trained networks."""

from typing import Any, cast

import numpy as np
import torch
from torch import nn

from slth.attention import Attention
from slth.experiments.studies.mixing.networks import attentions, options_of, parameters, width_of
from slth.experiments.studies.mixing.study import Job, Study
from slth.experiments.studies.mixing.variants import attention_of
from slth.weights import inits

RANK = 1e-3  # a singular value counts if it is above this share of the largest


def measure_matrix(study: Study, job: Job) -> dict[str, Any]:
    """Measure the matrices of a random attention, not causal, at standard normal tokens."""
    hidden, length = job.shape
    width = width_of(study, job.variant, study.d, hidden, length)
    options = options_of(study, job.variant, length, "natural")
    init = study.config.source_init
    module = attention_of(job.variant)(study.d, study.d, study.heads, width, init=init, seed=job.seed, **options)
    x = inits.normal((8, length, study.d), 1.0, seed=job.seed, name=f"mixing/matrix/{length}")
    return statistics(matrix_of(module, x)) | {"width": width, "parameters": parameters(module)}


@torch.no_grad()
def trained_matrices(model: nn.Module, tokens: torch.Tensor) -> dict[str, float]:
    """Return the means of :func:`statistics` over the blocks of a network, at tokens (batch, T)."""
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
    """Compute attention matrices (..., heads, T, T) at tokens (..., T, d), of an attention whose facts state one."""
    matrix: torch.Tensor = cast("Any", module).effective_matrix(x)
    return matrix


def statistics(matrix: torch.Tensor) -> dict[str, float]:
    """Compute mean statistics of matrices (..., T, T) whose rows sum to 1.

    rank: number of singular values above RANK times the largest. effective_rank: exp of the entropy of the singular
    values as shares of their sum (Roy & Vetterli 2007). entropy: entropy of a row, in nats.
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
