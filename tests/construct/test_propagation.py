"""Certificates carried through the blocks, against data, adversaries and controls that must fail."""

import copy
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import causal_mask, random_inputs, random_mask, thinned
from hypothesis import given, settings
from hypothesis import strategies as st

from slth.construct import certify, pruned, record_scales, transformer
from slth.construct.certificates import certificate
from slth.construct.propagation import BlockErrors, _through_norm, block_norms, propagate, recursion
from slth.models.transformer import Transformer, normalise


def target_of(d, blocks, heads, layers=1, *, norm=False, gain=1.0, seed=0):
    """A float64 target whose factors have spectral norm `gain`."""
    target = Transformer(d, blocks, heads, 4, (d,) * (layers - 1), norm=norm, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        for weight in target.parameters():
            weight *= gain / torch.linalg.matrix_norm(weight, ord=2, keepdim=True)
    return target


def source_of(d, blocks, heads, hidden, layers=1, *, norm=False, seed=100):
    widths = [width for _ in range(layers) for width in (hidden, d)][:-1]
    return Transformer(d, blocks, heads, hidden, widths, norm=norm, seed=seed)


def after_blocks(model, x, mask=None):
    states = []
    for block in model.blocks:
        x = block(x, mask)
        states.append(x)
    return states


def on_sphere(x, radius):
    return radius * x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-300)


def errors(target, twin, x, moved, mask=None):
    """After each block the largest distance (samples,) of twin on moved inputs from target."""
    pairs = zip(after_blocks(twin, moved, mask), after_blocks(target, x, mask), strict=True)
    return torch.stack([torch.linalg.vector_norm(a - b, dim=-1).amax(-1) for a, b in pairs])


def attack(target, twin, x, mask=None, *, drift=0.0, block=-1, steps=40):
    """Gradient ascent on tokens x of one norm, and on a drift of the source's inputs of the given length.

    Returns the inputs, the moved inputs, and the errors after each block, at their worst for `block`.
    """
    radius = torch.linalg.vector_norm(x[0, 0])
    offset = drift * on_sphere(torch.sin(37.0 * x + 1.0), 1.0)
    best = (x, x + offset, errors(target, twin, x, x + offset, mask).detach())
    for step in range(steps):
        x, offset = x.detach().requires_grad_(), offset.detach().requires_grad_()
        found = errors(target, twin, x, x + offset, mask)
        if found[block].max() > best[2][block].max():
            best = (x.detach(), (x + offset).detach(), found.detach())
        rate = 0.5 * (1 - step / steps)
        up_x, up_offset = torch.autograd.grad(found[block].sum(), (x, offset))
        x = on_sphere(x + rate * radius * on_sphere(up_x, 1.0), radius)
        offset = drift * on_sphere(offset + rate * drift * on_sphere(up_offset, 1.0), 1.0)
    return best


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


def bounds_of(target, ticket, x, mask=None):
    return torch.tensor(certify(target, ticket, x, mask).blocks)


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


def perfect(target):
    """What of a construction is certified, without errors: the source is the target."""
    zeros = [[torch.zeros(2 * len(w), w.shape[1]).double() for w in b.feed_forward.layers] for b in target.blocks]
    return SimpleNamespace(
        blocks=[
            BlockErrors(merged_of(block), layers, [0.0] * len(layers))
            for block, layers in zip(target.blocks, zeros, strict=True)
        ]
    )


def merged_of(block):
    return tuple(matrix.detach() for matrix in block.attention.merged())


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


# ---------------------------------------------------------------- its parts


@settings(max_examples=200)
@given(
    st.integers(2, 5),
    st.integers(0, 2**31),
    st.floats(-9, 3),  # powers of ten of the centred norm, and of the movement
    st.floats(-9, 3),
    st.booleans(),
)
def test_layer_normalisation_moves_by_no_more_than_it_says(d, seed, size, step, radial):
    """Near its singularity, where the coordinates are all but equal, as well as far from it."""
    x = random_inputs(seed, 40, d)
    x = x - x.mean(-1, keepdim=True)
    x = on_sphere(x, 10.0**size) + 2.0
    towards = 2.0 - x if radial else random_inputs(seed + 1, 40, d)
    moved = x + on_sphere(towards, 10.0**step)
    centred = torch.linalg.vector_norm(x - x.mean(-1, keepdim=True), dim=-1).min().item()
    distance = torch.linalg.vector_norm(moved - x, dim=-1).max().item()
    change = torch.linalg.vector_norm(normalise(moved, True) - normalise(x, True), dim=-1).max().item()
    rounding = 1e-15 / math.sqrt(centred**2 / d + 1e-5) * (2 + 10.0**step + 10.0**size) + 1e-12
    assert change <= _through_norm(distance, centred, d) * (1 + 1e-9) + 10 * rounding


def test_the_slope_of_layer_normalisation_is_that_of_the_nearer_end():
    """Controls: the slope at x itself is no bound, and neither is half of the bound."""
    d, size = 3, 0.5
    x = on_sphere(torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), size)
    across = on_sphere(torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64), 1.0)
    moved = x * 0.3 + 0.1 * across
    distance = torch.linalg.vector_norm(moved - x).item()
    change = torch.linalg.vector_norm(normalise(moved, True) - normalise(x, True)).item()
    assert change <= _through_norm(distance, size, d)
    tiny = 1e-6 * across
    turned = torch.linalg.vector_norm(normalise(x + tiny, True) - normalise(x, True)).item()
    assert 0.99 < turned / _through_norm(1e-6, size, d) <= 1 + 1e-9
    opposite = torch.linalg.vector_norm(normalise(-x, True) - normalise(x, True)).item()
    assert opposite == pytest.approx(_through_norm(2 * size, size, d), rel=1e-3)  # 2 sqrt(d), the other bound
    assert opposite > 2 * size / math.sqrt(4 * size**2 / d + 1e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_norms_are_those_of_the_targets_own_vectors(norm):
    target = target_of(3, 2, 2, 2, norm=norm, gain=2.0)
    target.blocks[1].feed_forward.scales[0] = 3.0
    x = random_inputs(0, 5, 4, 3, norm=2.0, inside=True)
    mask = causal_mask(4)
    for block, norms in zip(target.blocks, block_norms(target, x, mask), strict=True):
        h = normalise(x, norm)
        y = block.attention(h, mask) + x
        g = normalise(y, norm)
        inner = (g @ block.feed_forward.layers[0] * block.feed_forward.scales[0]).relu()
        for value, vectors in ((norms.attention_in, h), (norms.layers_in[0], g), (norms.layers_in[1], inner)):
            assert value == pytest.approx(torch.linalg.vector_norm(vectors, dim=-1).max().item(), rel=1e-12)
        for value, vectors in ((norms.attention_centred, x), (norms.network_centred, y)):
            centred = vectors - vectors.mean(-1, keepdim=True)
            assert value == pytest.approx(torch.linalg.vector_norm(centred, dim=-1).min().item(), rel=1e-12)
        x = block(x, mask)


def test_a_mask_changes_the_activations_that_are_certified():
    target, source = target_of(2, 2, 1, gain=3.0), source_of(2, 2, 1, 24)
    ticket, x = transformer(target, source), random_inputs(0, 3, 5, 2, norm=2.0)
    assert bounds_of(target, ticket, x)[1] != bounds_of(target, ticket, x, causal_mask(5))[1]


def test_certify_carries_one_block_after_another():
    target, source = target_of(2, 3, 1, norm=True), source_of(2, 3, 1, 40, norm=True)
    ticket, x = transformer(target, source), random_inputs(0, 3, 5, 2)
    drift, expected = 0.01, []
    for b, norms in enumerate(block_norms(target, x)):
        drift = propagate(drift, target.blocks[b], norms, ticket.blocks[b])
        expected.append(drift)
    assert certify(target, ticket, x, drift=0.01).blocks == expected


@pytest.mark.parametrize("length", [1, 4])
def test_on_a_line_the_bound_is_met(length):
    """d = 1, logits all 0, equal tokens: drift and errors of the source add up to the bound, to rounding."""
    drift, x = 0.3, torch.full((1, length, 1), 2.0, dtype=torch.float64)
    target = target_of(1, 2, 1, 2)
    with torch.no_grad():
        for block in target.blocks:
            block.attention.query.zero_()
            for weight in (block.attention.value, block.attention.output, *block.feed_forward.layers):
                weight.abs_()
    twin, ticket = copy.deepcopy(target), perfect(target)
    for b, block in enumerate(twin.blocks):
        with torch.no_grad():
            block.attention.value *= 1.1
            block.feed_forward.layers[0] += 0.2
            block.feed_forward.layers[1] += 0.1
        ticket.blocks[b] = replace(ticket.blocks[b], merged=merged_of(block))
        ticket.blocks[b].layers[0][0] = 0.2  # of the positive half, which is all that is used
        ticket.blocks[b].layers[1][0] = 0.1
    found = errors(target, twin, x, x + drift).amax(-1).tolist()
    assert found == pytest.approx(certify(target, ticket, x, drift=drift).blocks, rel=1e-9)


@pytest.mark.parametrize("drift", [0.0, 0.01, 0.7])
def test_propagation_by_hand(drift):
    """Total variation of the weights times twice the norm, and the movement of the points."""
    target, source = target_of(3, 1, 2, gain=2.0), source_of(3, 1, 2, 48)
    ticket, x = transformer(target, source), random_inputs(0, 4, 3, 3, norm=1.5)
    block = target.blocks[0]
    qk, vo = (matrices.detach() for matrices in block.attention.merged())
    logits = torch.linalg.svdvals(qk)[:, 0] * (2 * 1.5 * drift + drift**2)
    moved = 2 * 1.5 * torch.tanh(logits / 2) + drift
    heads = (torch.linalg.svdvals(vo)[:, 0] * moved).sum()
    stacked = torch.linalg.svdvals(vo.reshape(6, 3))[0] * moved.square().sum().sqrt()
    own = certificate(block.attention.merged(), ticket.blocks[0].merged, 1.5 + drift).bound
    before = drift + own + torch.minimum(heads, stacked)
    norm = torch.linalg.vector_norm(block.attention(x) + x, dim=-1).max()
    slope, error = (
        torch.linalg.svdvals(m.detach())[0] for m in (block.feed_forward.layers[0], ticket.blocks[0].layers[0])
    )
    expected = before + slope * before + error * (norm + before)
    assert certify(target, ticket, x, drift=drift).blocks == pytest.approx([expected.item()], rel=1e-12)


# ---------------------------------------------------------------- the paper's recursion


@pytest.mark.parametrize(("d", "heads", "layers"), [(1, 1, 1), (2, 1, 1), (2, 2, 2), (4, 1, 1)])
@pytest.mark.parametrize("candidates", [1, 8, 15])
def test_the_recursion_is_infinite_or_above_the_error_where_its_norms_hold(d, heads, layers, candidates):
    target, source = target_of(d, 3, heads, layers), source_of(d, 3, heads, 2 * d * candidates, layers)
    ticket = transformer(target, source)
    twin = pruned(source, ticket.masks).double()
    for radius in (0.1, d**0.5):
        x, _, found = attack(target, twin, random_inputs(0, 6, 3, d, norm=radius), steps=15)
        bounds = certify(target, ticket, x)
        recursive = torch.tensor(bounds.recursion)
        assert (found.amax(-1) <= recursive).all()
        assert not recursive.isnan().any()
        assert (recursive >= torch.tensor(bounds.blocks)).all()  # nothing is gained by it


def test_the_recursion_by_hand():
    d, heads, alpha = 2, 1, 2**0.5
    target, source = target_of(d, 2, heads), source_of(d, 2, heads, 72, seed=4)
    ticket = transformer(target, source)
    expected, drift = [], 0.0
    for b in range(2):
        beta = alpha * (4 * heads * math.sqrt(d)) ** b
        at = beta * (1 if b == 0 else 2)
        attn = certificate(target.blocks[b].attention.merged(), ticket.blocks[b].merged, at).lemma8.item()
        into = at * (1 + heads * math.sqrt(d)) + attn  # |y| + the attention's error
        network = torch.linalg.matrix_norm(ticket.blocks[b].layers[0], ord=2).item() * into
        inherited = 2 * heads * math.sqrt(d) * (beta * math.expm1(6 * beta * drift) + 2 * drift)
        drift = 2 * attn + network + inherited
        expected.append(drift)
    found = recursion(target, alpha, ticket.blocks)
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_recursion_soon_says_nothing():
    target, source = target_of(2, 4, 1), source_of(2, 4, 1, 48)
    ticket = transformer(target, source)
    bounds = certify(target, ticket, random_inputs(0, 6, 3, 2, norm=2**0.5))
    assert bounds.recursion[-1] == math.inf
    assert max(bounds.blocks) < 1e4


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
