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


MASKED = [name for name in ATTENTIONS if ATTENTIONS[name].facts.mask]
LEFT = [(name, 4, "both", "reference") for name in MASKED]
LEFT += [("mha", 12, mask, "reference") for mask in MASKS]  # wider than the tokens: merged
LEFT += [("mha", 4, "keys", "reference"), ("mha", 4, "pairs", "reference")]
LEFT += [("mha", 4, mask, "triton") for mask in MASKS] + [("mha", 12, "both", "triton")]


@pytest.mark.parametrize(("name", "hidden", "mask", "route"), LEFT)
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


REALS = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
ANYWHERE = [("mha", real, causal, "reference") for real in REALS for causal in (True, False)]
ANYWHERE += [(name, REALS[0], True, "reference") for name in MASKED if name != "mha"]
ANYWHERE += [("mha", REALS[0], True, "triton"), ("mha", REALS[3], False, "triton")]


@pytest.mark.parametrize(("name", "real", "causal", "route"), ANYWHERE)
def test_padding_in_pairs_may_lie_anywhere(name, real, causal, route):
    keys = torch.tensor([real, [1] * T], dtype=torch.bool)
    layer, x = module(name, causal), tokens(2, T)
    with kernels.use(route):
        found = layer(x, keys[:, None] & keys[:, :, None])
        assert_close(found[keys], layer(x, keys[:, None])[keys], rtol=1e-4, atol=1e-5)
    assert_close(found, layer.reference(x, keys[:, None] & keys[:, :, None]), rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(found.square().sum(), x)
    assert slope.isfinite().all()


@routes
@pytest.mark.parametrize("row", [0, T - 1])
def test_a_last_or_first_row_whose_token_is_attended_to_is_refused(row, route):
    mask = torch.ones(T, T, dtype=torch.bool)
    mask[row] = False
    with kernels.use(route), pytest.raises(ValueError, match=r"mask row \(.*\) has no True"):
        module("mha", causal=False)(tokens(2, T), mask)


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
@every
def test_what_is_empty_stays_empty(name, route):
    for shape in ((0, T), (2, 0), (0, 0), (0,)):
        check_empty(name, shape, route)


def check_empty(name, shape, route):
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
