"""The parts of a propagated bound, one by one, and the paper's recursion."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers import causal_mask, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from propagating import attack, bounds_of, errors, merged_of, on_sphere, perfect, source_of, target_of

from slth.construct import certify, pruned, transformer
from slth.construct.certificates import certificate
from slth.construct.propagation import _through_norm, block_norms, propagate, recursion
from slth.models.transformer import normalise

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
