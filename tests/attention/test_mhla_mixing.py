"""Multi-head linear attention's M_c: how it starts, what training and masks make of it."""

import math

import pytest
import torch
from helpers import causal_mask, random_inputs
from hypothesis import given
from hypothesis import strategies as st
from linear_attention import build, exactly

import slth
from slth.attention.mhla import STARTS, locality

# ---------------------------------------------------------------- M_c


def test_locality_by_hand():
    thirds = [[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]]
    rows = torch.tensor(thirds).double()
    assert torch.allclose(locality(3), rows / rows.sum(1, keepdim=True), **exactly)
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]]).double()
    assert torch.allclose(locality(3, causal=True), rows / rows.sum(1, keepdim=True), **exactly)
    rows = torch.tensor([[1.5, 1.0, 0.5], [0.5, 1.5, 0.5], [0.5, 1.0, 1.5]]).double()
    assert torch.allclose(locality(3, floor=0.5), rows / rows.sum(1, keepdim=True), **exactly)


@given(st.integers(1, 40), st.booleans(), st.sampled_from([0.0, 1e-3, 1.0]))
def test_locality(blocks, causal, floor):
    mixing = locality(blocks, causal=causal, floor=floor)
    seen = causal_mask(blocks) if causal else torch.ones(blocks, blocks, dtype=torch.bool)
    assert torch.allclose(mixing.sum(1), torch.ones(()).double(), **exactly)
    assert (mixing[~seen] == 0).all()
    assert (mixing >= 0).all()
    assert (mixing.diagonal() == mixing.amax(1)).all()
    if floor:
        assert (mixing[seen] > 0).all()
    elif blocks > 1:
        assert (mixing[-1] == 0).sum() == 1
        assert mixing[-1, 0] == 0  # the block that is farthest


@pytest.mark.parametrize("causal", [True, False])
def test_mixing_starts(causal):
    natural, uniform, random, both = (
        build(mixing_init=start, causal=causal, floor=0.1, length=40, seed=3)
        for start in ("natural", "uniform", "random", "identity_plus_random")
    )
    start = locality(10, causal=causal, floor=0.1)
    assert natural.mixing.equal(start)
    assert uniform.mixing.equal(torch.ones(10, 10).double())
    drawn = slth.weights.inits.positive((10, 10), 0.2, seed=3, name="mixing").double()
    assert random.mixing.equal(drawn)
    assert 0 < random.mixing.min() < random.mixing.max() < 0.2
    shares = slth.weights.inits.uniform((10, 10), 1.0, seed=3, name="mixing").double()
    assert both.mixing.equal(shares)
    assert torch.allclose(both.mixing_matrix(), start + start * shares, **exactly)
    assert (both.mixing_matrix() >= 0).all()
    assert (both.mixing_matrix().diagonal() > 0).all()
    for module in (natural, uniform, random):
        assert module.mixing_matrix() is module.mixing


def test_one_block():
    for start in STARTS:
        module = build(mixing_init=start, length=4, block=9)
        assert module.mixing.shape == (1, 1)
        x = random_inputs(0, 4, 5)
        assert torch.allclose(module(x), build(mixing_init="uniform")(x), **exactly)
    assert locality(1).tolist() == [[1.0]]


def test_clipping_is_to_zero_and_one():
    module = build(mixing=[[-1.0, 0.0, 0.5], [1e-9, 1.0, 2.0], [0.25, 0.5, math.inf]])
    module.clip_mixing_()
    assert module.mixing.tolist() == [[1e-5, 1e-5, 0.5], [1e-5, 1.0, 1.0], [0.25, 0.5, 1.0]]
    module.clip_mixing_(least=0.5)
    assert module.mixing.min() == 0.5
    assert module.mixing.requires_grad


def test_training_with_clipping_keeps_mixing_in_bounds():
    module = build(mixing_init="natural", causal=True)
    optimiser = torch.optim.SGD(module.parameters(), lr=5.0)
    for seed in range(3):
        optimiser.zero_grad()
        (module(random_inputs(seed, 12, 5)) - 1.0).square().sum().backward()
        optimiser.step()
        module.clip_mixing_()
        assert 0 < module.mixing.min() <= module.mixing.max() <= 1
    assert not torch.allclose(module.mixing.tril(), locality(3, causal=True).clamp_min(1e-5).tril())


# ---------------------------------------------------------------- tickets


def test_a_row_that_is_pruned_away_gives_zeros_and_learns_still():
    model = slth.wrap(build(), keep=0.5, seed=0)
    masks = slth.handle(model).masks()
    masks["mixing"][1] = False
    masks["mixing"][0] = True
    slth.handle(model).set_masks(masks)
    out = model(random_inputs(0, 12, 5))
    assert (out[4:8] == 0).all()
    assert (out[:4] != 0).all()
    out.sum().backward()
    scores = slth.handle(model).weights["mixing"].scores
    assert scores.grad.isfinite().all()
    assert (scores.grad[1] != 0).any()


def test_masked_shares_of_locality_leave_the_paper_s_start():
    module, natural = build(mixing_init="identity_plus_random"), build(mixing_init="natural")
    with torch.no_grad():
        module.mixing.zero_()
    x = random_inputs(0, 12, 5)
    assert torch.allclose(module(x), natural(x), **exactly)


def test_a_masked_random_m_c_is_made_again(tmp_path):
    model = slth.wrap(build(seed=3), keep=0.5, seed=1)
    slth.Ticket.of(model).save(tmp_path / "ticket")
    ticket = slth.Ticket.load(tmp_path / "ticket")
    assert "positive 0.6667" in ticket.describe()
    x = random_inputs(0, 12, 5)
    assert ticket.apply(build(seed=4))(x).equal(model(x))
