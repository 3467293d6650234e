"""One switch for all: with Triton chosen, wrap, the attentions and GPT-2 go through the kernels and find the same."""

import pytest
import torch
from torch import nn

import slth
from slth import inits, kernels, masks
from slth.attention import GroupedQueryAttention, MultiHeadAttention, MultiHeadLinearAttention
from slth.kernels import calls
from slth.models import gpt2


@pytest.fixture
def asked(monkeypatch):
    """The kernels that were asked for Triton, by name."""
    seen = []
    real = calls.takes_triton

    def noticing(kernel, *tensors, **options):
        taken = real(kernel, *tensors, **options)
        if taken:
            seen.append(kernel)
        return taken

    monkeypatch.setattr(calls, "takes_triton", noticing)
    return seen


def tokens(*shape):
    return inits.normal(shape, 1.0, seed=4, name="tokens")


def both(call):
    """What a call gives by torch and by Triton."""
    wanted = call()
    with kernels.use("triton"):
        return wanted, call()


def assert_close(wanted, found):
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("hidden", [4, 24])  # kept as heads, and merged
def test_multi_head_attention(asked, hidden, masked):
    layer = MultiHeadAttention(8, 6, 2, hidden, init="xavier_uniform")
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if masked else None
    assert_close(*both(lambda: layer(tokens(2, 9, 8), mask).detach()))
    assert "attention" in asked


def test_grouped_query_attention(asked):
    layer = GroupedQueryAttention(8, 8, 4, 6, kv_heads=2, init="xavier_uniform", causal=True)
    assert_close(*both(lambda: layer(tokens(2, 11, 8)).detach()))
    assert "attention" in asked


@pytest.mark.parametrize("causal", [False, True])
def test_linear_attention(asked, causal):
    layer = MultiHeadLinearAttention(8, 8, 2, 6, length=21, block=8, init="xavier_uniform", causal=causal)
    assert_close(*both(lambda: layer(tokens(2, 21, 8)).detach()))
    assert "mhla" in asked


def test_gpt2(asked):
    config = gpt2.config("tiny", width=0.25, vocabulary=40, length=12, n_layer=1)
    model = gpt2.build(config, seed=0).eval()
    text = torch.arange(12)[None] % 40
    with torch.no_grad():
        assert_close(*both(lambda: model(text).logits))
    assert "attention" in asked


@pytest.mark.parametrize("policy", ["layer", "global"])
def test_wrapped_weights(asked, policy):
    def gradients():
        net = nn.Sequential(nn.Linear(7, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False))
        model = slth.wrap(net, keep=0.4, policy=policy, weights="kaiming_normal", seed=1)
        model(tokens(5, 7)).square().sum().backward()
        wrapped = slth.handle(model)
        found = {path: masked.scores.grad for path, masked in wrapped.weights.items()}
        return found, wrapped.masks()

    (wanted, kept), (found, same) = both(gradients)
    for path in wanted:
        assert_close(wanted[path], found[path])
        assert torch.equal(kept[path], same[path])
    assert {"select_threshold", "masked_weight", "score_gradient"} <= set(asked)


def test_scores_with_nan_are_noticed_later():
    scores = tokens(4, 5)
    scores[1, 2] = float("nan")
    with kernels.use("triton"):
        selector = masks.Selector()
        selector.cut([scores], 0.5)
        with pytest.raises(ValueError, match="scores hold NaN"):
            selector.cut([tokens(4, 5)], 0.5)
        selector.cut([tokens(4, 5)], 0.5)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_cut_on_the_device_keeps_what_any_cut_keeps(keep):
    scores = [tokens(4, 5).mul(2).round(), tokens(3, 7).mul(2).round()]
    cut = masks.Selector().cut(scores, keep)
    with kernels.use("triton"):
        other = masks.Selector().cut(scores, keep)
    assert isinstance(other, masks.DeviceCut)
    assert torch.equal(cut.mask(scores[0]), other.mask(scores[0]))
    assert torch.equal(cut.mask(scores[1], 20), other.mask(scores[1], 20))
