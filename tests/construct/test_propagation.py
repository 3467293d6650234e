"""Certificates carried through the blocks, against data, adversaries and controls that must fail."""

import itertools
import math

import pytest
import torch
from helpers import causal_mask, random_inputs, random_mask, thinned
from propagating import attack, bounds_of, errors, perfect, source_of, target_of

from slth.construct import certify, pruned, record_scales, transformer

#: d, blocks, heads, layers, hidden, norm, gain of the target's factors, norm of the inputs, drift.
CASES = [
    (1, 2, 1, 1, 8, False, 1.0, 1.0, 0.0),
    (2, 1, 1, 1, 4, False, 1.0, 1.4, 0.0),
    (2, 1, 1, 1, 24, False, 1.0, 1.4, 0.0),
    (2, 3, 1, 1, 24, False, 1.0, 1.4, 0.0),
    (2, 3, 2, 1, 40, False, 3.0, 4.0, 0.0),
    (3, 2, 2, 2, 24, False, 1.0, 0.1, 0.0),
    (2, 3, 1, 1, 24, False, 1.0, 1.4, 0.3),
    (2, 2, 2, 2, 40, False, 2.0, 1.4, 1.0),
    (2, 1, 1, 1, 24, True, 1.0, 1.4, 0.0),
    (3, 3, 1, 1, 24, True, 1.0, 1.4, 0.0),
    (4, 2, 2, 2, 40, True, 3.0, 4.0, 0.0),
    (3, 3, 2, 1, 24, True, 8.0, 0.01, 0.0),
    (3, 3, 1, 1, 48, True, 1.0, 1.4, 0.05),
    (4, 2, 2, 2, 40, True, 2.0, 1.4, 2.0),
]


@pytest.mark.parametrize(("case", "scaled"), thinned([(c, s) for c in CASES for s in (False, True)], 3))
def test_no_error_exceeds_its_certificate(case, scaled):
    """On data and at the worst that gradient ascent finds, which is certified as it stands; with and without masks."""
    d, blocks, heads, layers, hidden, norm, gain, radius, drift = case
    target = target_of(d, blocks, heads, layers, norm=norm, gain=gain)
    source = source_of(d, blocks, heads, hidden, layers, norm=norm, seed=int(scaled))
    if scaled:
        record_scales(target, source)
    ticket = transformer(target, source)
    twin = pruned(source, ticket.masks).double()
    for length, mask in ((1, None), (4, None), (4, causal_mask(4)), (3, random_mask(0, 6, 3, 3))):
        start = random_inputs(length, 6, length, d, norm=radius)
        for block in {0, blocks - 1}:
            x, moved, found = attack(target, twin, start, mask, drift=drift, block=block, steps=15)
            bounds = torch.tensor(certify(target, ticket, x, mask, drift=drift).blocks)
            assert bounds.isfinite().all()
            assert (found.amax(-1) <= bounds).all()
            assert (errors(target, twin, start, start, mask).amax(-1) <= bounds_of(target, ticket, start, mask)).all()
            assert torch.linalg.vector_norm(moved - x, dim=-1).amax() <= drift * (1 + 1e-9)


@pytest.mark.parametrize("length", [1, 5])
def test_inputs_of_any_norm_up_to_the_largest(length):
    """The certificate is that of all inputs together: each of them alone has one that is not larger without norm."""
    target, source = target_of(2, 2, 1), source_of(2, 2, 1, 24)
    ticket = transformer(target, source)
    x = random_inputs(0, 20, length, 2, norm=2.0, inside=True)
    whole = bounds_of(target, ticket, x)
    for sample in x:
        assert (bounds_of(target, ticket, sample[None]) <= whole).all()
    assert (errors(target, pruned(source, ticket.masks).double(), x, x).amax(-1) <= whole).all()


# ---------------------------------------------------------------- controls that must fail


@pytest.mark.parametrize(("norm", "gain"), [(False, 1.0), (True, 0.3)])
def test_half_of_the_bound_is_exceeded(norm, gain):
    """By an adversary, after one block. After three the bound is looser than a factor of two, and this says nothing."""
    ratios = []
    for seed in range(4):
        target, source = target_of(2, 1, 1, norm=norm, gain=gain), source_of(2, 1, 1, 24, norm=norm, seed=seed)
        ticket = transformer(target, source)
        start = random_inputs(seed, 16, 3, 2, norm=2**0.5)
        x, _, found = attack(target, pruned(source, ticket.masks).double(), start)
        worst = found[0].argmax()
        ratios.append(float(found[0].max()) / certify(target, ticket, x[worst, None]).blocks[0])
    assert 0.5 < max(ratios) <= 1


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["attention.output", "feed_forward.layers.1"])
def test_a_flipped_bit_breaks_the_bound(name, norm):
    """One weight more, or one less, of a tight one-block ticket: the source errs by more than was certified."""
    target, source = target_of(2, 1, 1, norm=norm), source_of(2, 1, 1, 72, norm=norm, seed=4)
    ticket = transformer(target, source)
    x = random_inputs(0, 50, 3, 2, norm=2**0.5)
    bound = certify(target, ticket, x).blocks[0]
    weight = source.blocks[0].get_parameter(name)
    partner = "attention.value" if name == "attention.output" else "feed_forward.layers.0"
    heard = (source.blocks[0].get_parameter(partner) * ticket.masks[f"blocks.0.{partner}"]).abs().amax(dim=-2)
    product = heard[..., None] * weight.abs()
    broken = 0
    flips = (product > 0.3).nonzero()[:20].tolist()
    for flip in flips:
        masks = {key: mask.clone() for key, mask in ticket.masks.items()}
        masks[f"blocks.0.{name}"][tuple(flip)] ^= True
        broken += bool(errors(target, pruned(source, masks).double(), x, x).max() > bound)
    assert len(flips) == 20
    assert broken == 20


def test_inputs_larger_than_those_that_were_certified():
    """The certificate speaks of the inputs it was given: ten times as large ones exceed it."""
    target, source = target_of(2, 1, 1), source_of(2, 1, 1, 24)
    ticket = transformer(target, source)
    x = random_inputs(0, 50, 3, 2)
    assert (
        errors(target, pruned(source, ticket.masks).double(), 10 * x, 10 * x).max()
        > certify(target, ticket, x).blocks[0]
    )


def test_a_source_that_drifts_more_than_was_said():
    target = target_of(2, 2, 1)
    ticket = perfect(target)
    x = random_inputs(0, 6, 3, 2)
    _, _, found = attack(target, target, x, drift=0.5)
    assert found[-1].max() > certify(target, ticket, x, drift=0.05).blocks[-1]


# ---------------------------------------------------------------- a source without errors of its own


@pytest.mark.parametrize("norm", [False, True])
def test_no_errors_no_drift(norm):
    """But for rounding, which grows with the blocks like any other drift."""
    target = target_of(3, 3, 1, norm=norm)
    assert max(certify(target, perfect(target), random_inputs(0, 6, 4, 3, norm=3**0.5)).blocks) < 1e-7


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("drift", [1e-6, 0.01, 0.3, 3.0])
def test_what_a_drift_of_the_inputs_becomes(norm, drift):
    """Lipschitz bounds alone: the target on moved inputs, at the worst directions that are found."""
    for heads, layers, gain in ((1, 1, 1.0), (2, 2, 3.0)):
        target = target_of(3, 2, heads, layers, norm=norm, gain=gain)
        start = random_inputs(1, 6, 4, 3, norm=3**0.5)
        x, _, found = attack(target, target, start, causal_mask(4), drift=drift, steps=25)
        bounds = certify(target, perfect(target), x, causal_mask(4), drift=drift).blocks
        assert (found.amax(-1) <= torch.tensor(bounds)).all()
        assert drift < bounds[0] < bounds[1] < math.inf


def test_more_drift_a_larger_bound():
    for norm in (False, True):
        target, source = target_of(2, 2, 1, norm=norm), source_of(2, 2, 1, 40, norm=norm)
        ticket, x = transformer(target, source), random_inputs(0, 6, 4, 2)
        bounds = [certify(target, ticket, x, drift=e).blocks for e in (0.0, 1e-4, 0.01, 1.0, 100.0)]
        assert all(a[b] < c[b] for a, c in itertools.pairwise(bounds) for b in range(2))


# ---------------------------------------------------------------- odd inputs


def test_inputs_that_are_not_finite():
    target, source = target_of(2, 1, 1), source_of(2, 1, 1, 24)
    with pytest.raises(ValueError, match="alpha=nan"):
        certify(target, transformer(target, source), torch.full((1, 3, 2), torch.nan).double())


def test_inputs_of_zeros():
    target, source = target_of(2, 2, 1), source_of(2, 2, 1, 24)
    assert certify(target, transformer(target, source), torch.zeros(1, 3, 2).double()).blocks[-1] < 1e-12


def test_a_drift_below_zero():
    target, source = target_of(2, 1, 1), source_of(2, 1, 1, 24)
    with pytest.raises(ValueError, match="drift"):
        certify(target, transformer(target, source), random_inputs(0, 1, 3, 2, norm=2.0), drift=-1.0)


@pytest.mark.parametrize("drift", [1e120, math.inf])
def test_a_drift_beyond_float64_is_an_infinite_bound(drift):
    target, source = target_of(2, 2, 1), source_of(2, 2, 1, 24)
    bounds = certify(target, transformer(target, source), random_inputs(0, 1, 3, 2), drift=drift).blocks
    assert bounds[-1] > 1e100


def test_a_ticket_without_error_but_rounding():
    """Attention of zeros, and a network whose subset sums meet the target but for their last bits."""
    source = source_of(1, 1, 1, 20, seed=7)
    target = target_of(1, 1, 1)
    first, second = source.blocks[0].feed_forward.layers
    with torch.no_grad():
        for weight in target.parameters():
            weight.zero_()
        second[10:] = second[:10]
        first[:, :10] = first[:, :10].abs()
        first[:, 10:] = -first[:, :10]
        second.mul_(torch.tensor([1.0, -1.0]).repeat_interleave(10)[:, None])  # N = -P
        target.blocks[0].feed_forward.layers[0].fill_(float((first[0, :5].double() * second[:5, 0].double()).sum()))
    ticket = transformer(target, source)
    x = random_inputs(0, 500, 1, 1, norm=3.0, inside=True)
    found = errors(target, pruned(source, ticket.masks).double(), x, x).max()
    assert 0 < found < 1e-14
    assert found <= certify(target, ticket, x).blocks[0]
