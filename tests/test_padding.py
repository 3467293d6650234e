"""Padding, rows of a mask that see nothing, batches and texts that are empty: alike in all attentions and routes."""

import pytest
import torch
from torch.testing import assert_close

from slth import kernels
from slth.attention import ATTENTIONS

T, D = 5, 8
REAL = torch.ones(2, T, dtype=torch.bool)
REAL[0, :2] = False  # two tokens of padding
MASKS = {
    "keys": REAL[:, None],
    "pairs": REAL[:, None].expand(2, T, T),
    "both": REAL[:, None] & REAL[:, :, None],
}
routes = pytest.mark.parametrize("route", ["reference", "triton"])
every = pytest.mark.parametrize("name", ATTENTIONS)


def module(name, causal=True, hidden=4):
    return ATTENTIONS[name](D, D, 2, hidden, causal=causal, seed=1)


def tokens(*shape):
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(2)).requires_grad_()


@routes
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("hidden", [4, 12])  # wider than the tokens: merged
@pytest.mark.parametrize("name", [name for name in ATTENTIONS if ATTENTIONS[name].support.mask])
def test_padding_on_the_left_is_ignored(name, hidden, mask, route):
    layer, x = module(name, hidden=hidden), tokens(2, T)
    with kernels.use(route):
        found = layer(x, MASKS[mask])
    assert found.isfinite().all()
    assert_close(found, layer.reference(x, MASKS[mask]), rtol=1e-4, atol=1e-5)
    assert_close(found[0, 2:], layer(x[0, 2:]), rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(found.square().sum(), x)
    assert slope.isfinite().all()
    if not ATTENTIONS[name](D, D, 2, 4, causal=True).obstacles():
        assert (found[0, :2] == 0).all()


@routes
@pytest.mark.parametrize("causal", [True, False])
def test_a_text_of_padding_alone_is_finite(causal, route):
    keys = REAL[:, None].clone()
    keys[0] = False
    with kernels.use(route):
        found = module("mha", causal)(tokens(2, T), keys)
    assert (found[0] == 0).all()
    assert (found[1] != 0).any()


@routes
def test_a_row_that_says_nothing_of_padding_is_refused(route):
    mask = MASKS["pairs"].clone()
    mask[1, 2] = False  # which others attend to
    with (
        kernels.use(route),
        pytest.raises(ValueError, match=r"mask row \(1, (0, )?2\) has no True.*padding is said by"),
    ):
        module("mha")(tokens(2, T), mask)


@routes
@pytest.mark.parametrize("shape", [(0, T), (2, 0), (0, 0), (0,)], ids=str)
@every
def test_what_is_empty_stays_empty(name, shape, route):
    for causal in (True, False):
        layer, x = module(name, causal), tokens(*shape)
        with kernels.use(route):
            found = layer(x)
            assert found.shape == layer.reference(x).shape == x.shape
            found.sum().backward()
            assert x.grad.shape == x.shape
    layer = module(name)
    with kernels.use(route):
        cache = layer.start()
        assert layer.step(x.detach(), cache).shape == x.shape
        one = torch.ones(*shape[:-1], 1, D)
        assert layer.step(one, cache).shape == one.shape
        assert layer.step(one[..., :0, :], cache).shape == (*shape[:-1], 0, D)
