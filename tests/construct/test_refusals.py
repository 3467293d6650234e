"""What must be refused, before any work, and what float64 may add to a certificate."""

import numpy as np
import pytest
import torch
from helpers import random_inputs, random_target

from slth.attention import MultiHeadAttention, merged_attention
from slth.construct import attention, certificate, linear, measure, subset_sum
from slth.construct.adversary import worst_input
from slth.weights import inits


def test_rounding_at_long_lengths():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    x = random_inputs(0, 1, 8192, 1)
    a, b = merged_attention(x, one, one), measure.outputs(x, (one, one))
    assert (a - b).abs().max() <= certificate((one, one), (one, one), 1.0, length=8192).bound


@pytest.mark.parametrize("case", [{"hidden_vo": 2}, {"alpha": -1.0}, {"side": "left"}])
def test_errors_before_work(case, monkeypatch):
    monkeypatch.setattr(subset_sum, "solve", lambda *a, **k: pytest.fail("a subset sum was solved"))
    source = MultiHeadAttention(3, 2, 1, 12, hidden_vo=case.pop("hidden_vo", None))
    with pytest.raises(ValueError):
        attention(random_target(3, 2, 1), source, **({"side": "input"} | case))


def test_a_target_met_exactly_is_not_unreachable():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 1, (200, 1, 11)), rng.uniform(0, 1, (200, 11, 1))
    target = np.zeros((200, 1, 1))
    for k in range(11):
        target[:, 0, 0] += first[:, 0, k] * second[:, k, 0]  # all of them, in index order
    ticket = linear(target, first, second)
    assert ticket.mask_second.all()
    assert ticket.unreachable == 0
    assert not ticket.beyond.any()


@pytest.mark.parametrize("scale", [1e-50, 1e-42])
def test_never_zero(scale):
    with pytest.raises(ValueError):
        inits.uniform((4,), scale, seed=0, name="w")


def test_never_inf():
    with pytest.raises(ValueError):
        inits.uniform((4,), 1e39, seed=0, name="w")


def test_stream_int():
    with pytest.raises((TypeError, ValueError)):
        inits.uniform((4,), 1.0, seed=0, name="w", stream=1.5)


def pair(h, d, o, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(h, d, d))), torch.from_numpy(rng.normal(size=(h, d, o)))


def test_certificate_heads():
    with pytest.raises(ValueError):
        certificate(pair(1, 3, 2), pair(4, 3, 2, 1), 1.0)


def test_certificate_nan():
    t = pair(1, 3, 2)
    with pytest.raises(ValueError):
        certificate(t, (t[0] * np.nan, t[1]), 1.0)


def test_lemma8_not_nan():
    t = pair(1, 3, 2)
    s = (t[0] + 1e3, t[1])
    assert not certificate((t[0], 0 * t[1]), s, 2.0).lemma8.isnan()


def test_worst_alpha():
    with pytest.raises(ValueError):
        worst_input(pair(1, 2, 1), pair(1, 2, 1, 1), float("nan"), steps=1)


def test_worst_restarts():
    with pytest.raises(ValueError):
        worst_input(pair(1, 2, 1), pair(1, 2, 1, 1), 1.0, restarts=0)


def test_linear_float32_is_float64():
    rng = np.random.default_rng(0)
    a = [rng.uniform(-1, 1, s).astype(np.float32) for s in ((2, 2), (2, 28), (28, 2))]
    b = [x.astype(float) for x in a]
    assert np.array_equal(linear(*a).mask_second, linear(*b).mask_second)


def test_linear_nan_anywhere():
    with pytest.raises(ValueError):
        linear(np.ones((2, 2)), np.array([[1, 1, np.nan, 1], [1, 1, 1, 1.0]]), np.ones((4, 2)))


def test_prune_other_source():
    t = attention(random_target(2, 1, 1), MultiHeadAttention(2, 1, 1, 4))
    with pytest.raises(ValueError):
        t.prune(MultiHeadAttention(2, 1, 3, 4))


def test_1d_mask():
    m = MultiHeadAttention(2, 1, 1, 3)
    x = torch.randn(2, 5, 2)
    k = torch.tensor([1, 1, 0, 1, 1]).bool()
    assert m(x, k).allclose(m(x, k.expand(5, 5)))


def test_mask_length():
    m = MultiHeadAttention(2, 1, 1, 3)
    with pytest.raises(ValueError):
        m(torch.randn(2, 5, 2), torch.ones(4, 4).bool())


def test_x_1d():
    with pytest.raises(ValueError):
        MultiHeadAttention(2, 1, 1, 3)(torch.ones(2))


def test_hidden_float():
    with pytest.raises(ValueError):
        MultiHeadAttention(2, 1, 1, 2.5)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads(threads):
    with pytest.raises(ValueError):
        subset_sum.solve([[1.0]], [1.0], threads=threads)
