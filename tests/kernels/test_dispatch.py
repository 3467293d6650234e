"""Which implementation calls take: under use("reference") the oracle and nothing else, in whole models and backward."""

import logging
from collections import Counter
from importlib import import_module

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

import slth
from slth import kernels
from slth.attention import MultiHeadAttention, MultiHeadLinearAttention
from slth.kernels import dispatch
from slth.kernels.attention import cpu as attention_cpu
from slth.kernels.masked_weight import cpu as weight_cpu
from slth.kernels.mhla import cpu as mhla_cpu
from slth.kernels.select import cpu as select_cpu

masked_weight, seeded = (import_module(f"slth.kernels.{name}") for name in ("masked_weight", "seeded"))


def tiny_gpt2():
    gpt2 = pytest.importorskip("slth.models.gpt2")
    config = gpt2.config("tiny", width=0.25, vocabulary=40, length=12, n_layer=1)
    return gpt2.build(config, seed=0), lambda model: model(torch.arange(12)[None] % 40).logits


def of_layer(layer):
    tokens = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
    return layer, lambda model: model(tokens)


MODELS = {
    "gpt2": tiny_gpt2,
    "mha": lambda: of_layer(MultiHeadAttention(8, 6, 2, 4, init="xavier_uniform")),
    "merged mha": lambda: of_layer(MultiHeadAttention(8, 6, 2, 24, init="xavier_uniform")),
    "mhla": lambda: of_layer(MultiHeadLinearAttention(8, 6, 2, 4, length=9, block=4, init="xavier_uniform")),
}
#: what the implementations other than the references run
LOOPS = (
    (attention_cpu, "scaled_dot_product_attention"),
    (weight_cpu, "_mask_rows"),
    (weight_cpu, "_slope_rows"),
    (select_cpu, "_count_rows"),
    (mhla_cpu, "_mixed"),
)


def step(name):
    """(output, the scores' gradients, calls by kernel and implementation) of a wrapped model."""
    model, forward = MODELS[name]()
    model = slth.wrap(model, keep=0.5, seed=1)
    with kernels.counted() as counts:
        out = forward(model)
        out.square().mean().backward()
    return out.detach(), [scores.grad for scores in slth.handle(model).scores()], Counter(counts)


@pytest.mark.parametrize("name", MODELS)
def test_every_call_of_a_wrapped_model_is_the_references(name, monkeypatch):
    wanted, slopes, fast = step(name)
    with monkeypatch.context() as patch, kernels.use("reference"):
        for module, loop in LOOPS:
            patch.setattr(module, loop, None)
        found, others, counts = step(name)
    assert {impl for _, impl in counts} == {"reference"}
    assert {impl for _, impl in fast} == {"cpu"}
    calls = {kernel: count for (kernel, _), count in counts.items()}
    assert calls == {kernel: count for (kernel, _), count in fast.items()}
    assert {"select_threshold", "masked_weight", "score_gradient"} < calls.keys()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for slope, other in zip(slopes, others, strict=True):
        torch.testing.assert_close(other, slope, rtol=1e-3, atol=1e-6)


def test_a_ticket_served_takes_the_reference():
    model = slth.wrap(nn.Sequential(nn.Linear(8, 4)), keep=0.5, weights="signed_constant", seed=1)
    ticket = slth.Ticket.of(model)
    served = slth.serve(ticket, nn.Sequential(nn.Linear(8, 4)))
    with kernels.use("reference"), kernels.counted() as counts:
        served(torch.ones(3, 8))
    assert counts == {("seeded_linear", "reference"): 1}


def test_a_ticket_served_takes_the_reference_where_there_is_no_cpu_form(caplog, monkeypatch):
    monkeypatch.setattr(seeded._SEEDED_LINEAR, "_logged", set())
    ticket = slth.Ticket.of(slth.wrap(nn.Sequential(nn.Linear(8, 4)), keep=0.5, weights="signed_constant", seed=1))
    served = slth.serve(ticket, nn.Sequential(nn.Linear(8, 4)))
    with caplog.at_level(logging.INFO, logger="slth.kernels"), kernels.use("cpu"), kernels.counted() as counts:
        served(torch.ones(3, 8))
        served(torch.ones(3, 8))
    assert counts == {("seeded_linear", "reference"): 2}
    assert [record.getMessage() for record in caplog.records] == [
        'seeded_linear with impl="auto" takes reference: it has no cpu form'
    ]


def test_use_triton_says_where_a_transform_is_followed(caplog, monkeypatch):
    monkeypatch.setattr(masked_weight._MASKED_WEIGHT, "_logged", set())
    with caplog.at_level(logging.INFO, logger="slth.kernels"), kernels.use("triton"):
        for _ in range(2):
            vmap(lambda row: kernels.pruned_weight(row, (torch.ones(8), 0.5)))(torch.randn(3, 8))
    assert [record.getMessage() for record in caplog.records] == [
        'masked_weight with impl="auto" takes cpu: torch follows the call'
    ]


@pytest.mark.parametrize("impl", ["auto", "cpu"])
def test_fake_scores_have_a_fake_cut(impl):
    with FakeTensorMode():
        cut = kernels.select_threshold(torch.empty(8, 8), 3, impl=impl)
    assert (cut.value.dtype, cut.last_tie.dtype) == (torch.float32, torch.int64)


def test_counting_ends_with_its_block():
    with kernels.counted() as outer:
        with kernels.counted() as inner:
            kernels.select_threshold(torch.ones(3), 1)
        kernels.select_threshold(torch.ones(3), 1)
    kernels.select_threshold(torch.ones(3), 1)
    assert inner == outer == {("select_threshold", "cpu"): 1}
    assert dispatch._counts is None
