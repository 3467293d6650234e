"""Networks of equal size, and what their matrices and losses show."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import cats
from hypothesis import given, settings
from hypothesis import strategies as st
from small_mixing import config_of

import slth
from slth.attention import ATTENTIONS
from slth.attention.functional import repeat_heads
from slth.experiments import lab, mixing
from slth.experiments.studies.gpt2 import training as pruning
from slth.experiments.studies.mixing.errors import constructed_error, examples, measure_error, target_of
from slth.experiments.studies.mixing.matrices import matrix_of, statistics
from slth.experiments.studies.mixing.networks import (
    attentions,
    multiply_adds,
    network,
    options_of,
    width_of,
)
from slth.experiments.studies.mixing.spikes import count_spikes
from slth.experiments.studies.mixing.study import Job
from slth.experiments.studies.mixing.variants import LINEAR, attention_of, has_matrix

TEXT = cats(400)
OWN = """
from dataclasses import replace
from slth.attention import GroupedQueryAttention

class Even(GroupedQueryAttention):
    facts = replace(GroupedQueryAttention.facts, grouped=False, width_step=2, mixing_inits=("random",))

    def __init__(self, *sizes, mixing_init="random", **options):
        super().__init__(*sizes, **options)

class Turned(GroupedQueryAttention):
    facts = replace(GroupedQueryAttention.facts, grouped=False, width_step=2)

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, rope=True, **options)

class Still(GroupedQueryAttention):
    facts = replace(GroupedQueryAttention.facts, causal=False)
"""


@pytest.fixture(scope="module")
def config(text):
    return config_of(text)


@pytest.fixture(scope="module")
def study(config):
    return mixing.Config(**config()).study


# ---------------------------------------------------------------- equal size


@pytest.mark.parametrize("variant", ATTENTIONS)
def test_no_other_width_is_nearer_to_the_parameters_of_mha(study, variant):
    d, hidden, length = 12, 6, 16

    def count(name, width):
        options = options_of(study, name, length, "natural")
        module = attention_of(name)(d, d, 4, width, causal=True, **options)
        return sum(p.numel() for p in module.parameters())

    wanted = 4 * 4 * d * hidden
    assert count("mha", hidden) == wanted
    step = ATTENTIONS[variant].facts.width_step
    widths = range(step, 20, step)
    off = {width: abs(count(variant, width) - wanted) for width in widths}
    chosen = width_of(study, variant, d, hidden, length)
    assert off[chosen] == min(off.values())
    assert variant != "mha" or chosen == hidden


def test_compute_is_counted_and_matched(config):
    d, hidden, length = 12, 6, 16
    module = ATTENTIONS["mha"](d, d, 4, hidden, causal=True)
    products = length * 4 * 4 * d * hidden + 2 * length**2 * 4 * hidden
    assert multiply_adds(module, length) == products
    study = mixing.Config(**config(equal="compute")).study
    assert width_of(study, "mha", d, hidden, length) == hidden
    # with one key and value head of four, 2.5 projections of 4 are left, and as much attention
    assert width_of(study, "mqa", d, hidden, length) == round(hidden * (4 * d + 32) / (2.5 * d + 32))


def test_attentions_of_the_user_s_own_are_variants(config, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    place = str(tmp_path / "own.py:Even")
    starts = {"mixing_init": "random", "dense_mixing_init": "random"}
    study = mixing.Config(**config(variants=[place, "gqa"], d_in=4, **starts)).study
    assert study.variants == ("mha", "gqa", place)
    assert options_of(study, place, 16, "random") == {"mixing_init": "random"}
    width = width_of(study, place, 4, 5, 8)
    assert width in (4, 6)
    found = measure_error(study, Job("error", place, 0, hidden=5, length=8))
    assert (found["width"], math.isnan(found["error_construct"])) == (width, False)
    assert "/" not in Job("error", place, 0).label
    turned = mixing.Config(**config(variants="own.py:Turned", d_in=4, **starts)).study
    found = measure_error(turned, Job("error", "own.py:Turned", 0, hidden=8, length=8))
    assert math.isnan(found["error_construct"])  # positions stand between query and key
    for changed, said in (
        ({"variants": "own.py:Still"}, "variants='own.py:Still': must be an attention that can be causal"),
        ({"variants": "own.py:Even", "mixing_init": "natural"}, "mixing_init='natural': must be one of random for own"),
        ({"variants": "own.py:Odd"}, "variants=own.py:Odd: own.py has no class Odd"),
    ):
        with pytest.raises(lab.Refused, match=said):
            mixing.Config(**config(**starts | changed))


# ---------------------------------------------------------------- spikes and matrices


@given(st.integers(0, 6), st.floats(1.0, 50.0), st.floats(-5, 5))
@settings(max_examples=30)
def test_spikes_are_counted(count, height, level):
    losses = [level + 3.0 / (1 + step) for step in range(25 + 10 * count)]
    smooth = count_spikes(losses)
    for spike in range(count):
        losses[24 + 10 * spike] += height
        losses[25 + 10 * spike] += height / 1.5  # a neighbour that belongs to it
    assert smooth == 0
    assert count_spikes(losses) == count


def test_a_loss_that_is_no_number_is_a_spike():
    assert count_spikes([2.0] * 30 + [math.nan]) == 1
    assert count_spikes([2.0] * 19 + [9.0]) == 0  # too early to know


def test_rank_and_entropy():
    same, alike = torch.eye(6), torch.full((2, 6, 6), 1 / 6)
    assert statistics(same) == pytest.approx({"rank": 6.0, "effective_rank": 6.0, "entropy": 0.0})
    assert statistics(alike) == pytest.approx({"rank": 1, "effective_rank": 1, "entropy": math.log(6)})
    faint = torch.diag(torch.tensor([1.0, 1.0, 1e-4]))
    assert statistics(faint)["rank"] == 2


@pytest.mark.parametrize("variant", [LINEAR, *(name for name in ATTENTIONS if has_matrix(name))])
@pytest.mark.parametrize("causal", [False, True])
def test_the_matrix_is_what_tokens_attend_with(study, variant, causal):
    options = options_of(study, variant, 16, "natural")
    module = attention_of(variant)(6, 6, 2, 3, causal=causal, dtype=torch.float64, **options)
    x = slth.weights.inits.normal((3, 16, 6), 1.0, seed=0, name="x").double()
    heads = matrix_of(module, x) @ repeat_heads(x.unsqueeze(-3) @ module.value, 2) @ module.output
    assert torch.allclose(heads.sum(-3), module(x), atol=1e-12)


def test_spikes_and_matrices_are_of_what_was_asked_for(config, tmp_path, monkeypatch):
    """Of a class of the user's own, too, which states a matrix or does not."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    variants = ["gqa", "kha_linear", "own.py:Even"]
    start = dict.fromkeys(("mixing_init", "dense_mixing_init"), "random")
    jobs = mixing.Config(**config(variants=variants, seeds=1, **start)).study.jobs
    assert {job.variant for job in jobs if job.what == "spikes"} == {"mha", *variants}
    assert {job.variant for job in jobs if job.what == "matrix"} == {"mha", "gqa", "own.py:Even"}


def test_linear_attention_stays_linear_and_mhla_positive(study):
    for variant in (LINEAR, "mhla"):
        model, _ = network(study, variant, 0, ticket=False)
        start = [inner.mixing.detach().clone() for inner in attentions(model)]
        pruning.train(model, study.data, study.how, 0.05, 3, variant)
        for before, inner in zip(start, attentions(model), strict=True):
            if variant == "mhla":
                inner(torch.zeros(1, 4, 36))
                mixing = inner.mixing.detach()
                assert not torch.equal(before, mixing)
                assert 0 < float(mixing.min()) <= float(mixing.max()) <= 1
            else:
                assert torch.equal(inner.mixing, torch.ones_like(inner.mixing))


def test_constructions_are_there_where_the_theory_has_them(study):
    narrow = replace(study, d=2, config=replace(study.config, target_norm=1.0))
    target = target_of(narrow, 0)
    found = {}
    for variant, hidden in itertools.product(ATTENTIONS, (8, 32)):
        job = Job("error", variant, 0, hidden=hidden, length=8)
        test = examples(target, 16, job, "test")
        width = width_of(narrow, variant, 2, hidden, 8)
        found[variant, hidden] = constructed_error(narrow, job, width, target, test)
    for variant, kind in ATTENTIONS.items():
        if kind.facts.constructible is True:
            assert found[variant, 32] < 0.1 * found[variant, 8]
        else:
            assert math.isnan(found[variant, 32])
