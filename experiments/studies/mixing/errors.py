"""Measure the error of tickets for a random MHA as target: learned ones, and constructed ones if theory allows."""

import copy
import math
from dataclasses import replace
from typing import Any

import torch

import slth
from slth.attention import Attention, MultiHeadAttention
from slth.construct import variants as construct
from slth.experiments.studies.approximation.learning import Examples, Learning, prune_wrapped, relative_error
from slth.experiments.studies.mixing.networks import options_of, parameters, width_of
from slth.experiments.studies.mixing.study import Job, Study
from slth.experiments.studies.mixing.variants import attention_of
from slth.weights import inits

TRAINING, VALIDATION, TEST = 1024, 64, 128  # inputs for training scores, choosing masks and measuring errors


def measure_error(study: Study, job: Job) -> dict[str, Any]:
    """Measure errors of a variant's tickets for a random MHA, learned and, if possible, constructed."""
    target = target_of(study, job.seed)
    training, validation, test = (
        examples(target, count, job, split)
        for split, count in (("training", TRAINING), ("validation", VALIDATION), ("test", TEST))
    )
    hidden, length = job.shape
    width = width_of(study, job.variant, study.d, hidden, length)
    mixing_init, init = study.config.mixing_init, study.config.source_init
    options = options_of(study, job.variant, length, mixing_init)
    source = attention_of(job.variant)(study.d, study.d, study.heads, width, init=init, seed=job.seed, **options)
    learn(source, training, validation, replace(study.learning, label=job.label), job.seed)
    with torch.no_grad():
        error = float(relative_error(source, test))
    found = {"error": error, "width": width, "parameters": parameters(source)}
    if study.config.construct:
        found["error_construct"] = constructed_error(study, job, width, target, test)
    return found


def target_of(study: Study, seed: int) -> MultiHeadAttention:
    """Make a random MHA, float32, whose factors have the config's spectral norm."""
    width = study.config.target_hidden
    target = MultiHeadAttention(
        study.d, study.d, study.heads, width, init="xavier_uniform", seed=seed, prefix="target/"
    ).requires_grad_(False)
    for weight in target.parameters():
        weight.mul_(study.config.target_norm / torch.linalg.matrix_norm(weight, ord=2, keepdim=True))
    return target


@torch.no_grad()
def examples(target: MultiHeadAttention, count: int, job: Job, split: str) -> Examples:
    """Draw standard normal tokens (count, length, d), and compute the target's outputs."""
    _, length = job.shape
    inputs = inits.normal((count, length, target.d_in), 1.0, seed=job.seed, name=f"mixing/{split}/{length}")
    return Examples(inputs, target(inputs))


def learn(source: Attention, training: Examples, validation: Examples, search: Learning, seed: int) -> None:
    """Prune a source, with its mixing tensors, in place with the edge-popup mask that is best on validation inputs."""
    slth.wrap(source, keep=search.keep, seed=seed)
    prune_wrapped(source, training, validation, search, every=max(1, search.steps // 50))


def constructed_error(study: Study, job: Job, width: int, target: MultiHeadAttention, test: Examples) -> float:
    """Measure the error of a constructed ticket, in float64 and without norms, which the theory does not support.

    It is NaN if the theory excludes the variant, or if its heads are too narrow.
    """
    kind = attention_of(job.variant)
    if kind.facts.constructible is not True or width < study.d:
        return math.nan
    options = options_of(study, job.variant, job.shape[1], study.config.mixing_init)
    if kind.facts.norm:
        options |= {kind.facts.norm: False}
    source = kind(study.d, study.d, study.heads, width, seed=job.seed, **options).double()
    if source.obstacles():
        return math.nan
    target = copy.deepcopy(target).double()
    for weight in (target.value, target.output):  # as the theory assumes; relative errors do not change
        weight.div_(study.config.target_norm)
    construct.variant(target, source).prune(source)
    inputs = test.inputs.double()
    with torch.no_grad():
        return float(relative_error(source, Examples(inputs, target(inputs))))
