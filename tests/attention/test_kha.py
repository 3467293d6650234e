"""What is special to knocking-heads attention; what holds for every attention is in test_attention_variants.py."""

import pytest
import torch
from helpers import causal_mask, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case

import slth
from slth.attention import (
    GroupedQueryAttention,
    GroupedTiedAttention,
    LinearKnockingHeads,
    MLPKnockingHeads,
    MultiHeadAttention,
    TiedLinearKnockingHeads,
    TiedMLPKnockingHeads,
    rms_norm,
    rope,
)

T = 6
F64 = {"init": "xavier_uniform", "dtype": torch.float64}
NAMES = {"q": "mix_query", "k": "mix_key", "v": "mix_value"}
exactly = {"rtol": 1e-12, "atol": 1e-12}
ON = [
    (LinearKnockingHeads, GroupedQueryAttention),
    (MLPKnockingHeads, GroupedQueryAttention),
    (TiedLinearKnockingHeads, GroupedTiedAttention),
    (TiedMLPKnockingHeads, GroupedTiedAttention),
]
subsets = st.sets(st.sampled_from("qkv")).map(lambda letters: tuple(sorted(letters)))


def positioned(kind):
    return {"rope": True, "qk_norm": kind.facts.qk_norm}


# ---------------------------------------------------------------- the paper's start


@pytest.mark.parametrize("hidden", [8, 16])  # on both sides of d_in
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("kind", "plain"), ON)
def test_starts_as_the_plain_attention(kind, plain, kv_heads, hidden):
    x = random_inputs(0, 2, T, 9, norm=3.0)
    for options in ({}, positioned(kind)):
        module = kind(9, 3, 4, hidden, kv_heads=kv_heads, causal=True, **F64, **options)
        same = plain(9, 3, 4, hidden, kv_heads=kv_heads, causal=True, **F64, **options)
        assert (module(x) - same(x)).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", [LinearKnockingHeads, MLPKnockingHeads])
def test_starts_as_multi_head_attention(kind):
    module, same = kind(9, 3, 4, 8, **F64), MultiHeadAttention(9, 3, 4, 8, **F64)
    x = random_inputs(0, 2, T, 9, norm=3.0)
    assert torch.allclose(module(x, causal_mask(T)), same(x, causal_mask(T)), **exactly)


def test_the_start_changes_no_bit_of_a_projection():
    x = random_inputs(0, 1, T, 9)
    for kind in (LinearKnockingHeads, MLPKnockingHeads):
        module = kind(9, 3, 4, 8, **F64)
        for role in ("query", "key", "value"):
            assert module._project(x, role).equal(x @ getattr(module, role))


def test_start_is_the_identity_and_a_gate_of_zeros():
    linear, wide, mlp = (
        LinearKnockingHeads(9, 3, 4, 8),
        LinearKnockingHeads(9, 3, 4, 8, shared_width=11),
        MLPKnockingHeads(9, 3, 4, 8),
    )
    for name in NAMES.values():
        assert getattr(linear, name).equal(torch.eye(8))
        assert getattr(wide, name).equal(torch.eye(11, 8))
    assert mlp.mlp_up.equal(torch.eye(8))
    assert mlp.mlp_down.equal(torch.eye(8))
    assert mlp.mlp_gate.equal(torch.zeros(8, 8))


# ---------------------------------------------------------------- the linear form


@given(subsets, st.booleans(), st.booleans(), st.sampled_from([1, 2, 4]), st.sampled_from([None, 5, 11]))
@settings(max_examples=25)
def test_absorbed_is_unabsorbed(mix, turned, normed, kv_heads, width):
    options = {"kv_heads": kv_heads, "rope": turned, "qk_norm": normed, "causal": True, **F64}
    module = LinearKnockingHeads(9, 3, 4, 8, mix=mix, shared_width=width, mixing_init="random", **options)
    folded = module.absorb()
    assert type(folded) is GroupedQueryAttention
    assert {name: tuple(weight.shape) for name, weight in folded.named_parameters()} == {
        "query": (4, 9, 8),
        "key": (kv_heads, 9, 8),
        "value": (kv_heads, 9, 8),
        "output": (4, 8, 3),
    }
    x = random_inputs(0, 2, T, 9)
    assert torch.allclose(folded(x), module.reference(x), **exactly)
    assert torch.allclose(folded(x), module(x), **exactly)


@pytest.mark.parametrize("mix", ["", "q", "v", "qv"])
@pytest.mark.parametrize("turned", [False, True])
def test_absorbed_on_tied_projections(mix, turned):
    options = {"kv_heads": 2, "rope": turned, "causal": True, **F64}
    module = TiedLinearKnockingHeads(9, 3, 4, 8, mix=mix, shared_width=11, mixing_init="random", **options)
    folded = module.absorb()
    assert type(folded) is GroupedTiedAttention
    x = random_inputs(0, 2, T, 9)
    assert torch.allclose(folded(x), module.reference(x), **exactly)
    cache, lean = module.start(), folded.start()
    module.step(x, cache)
    folded.step(x, lean)
    assert cache.bytes() == lean.bytes()  # the mixed state is what both keep


def test_absorbed_keeps_no_gradient_and_its_own_weights():
    module = LinearKnockingHeads(9, 3, 4, 8, **F64)
    folded = module.absorb()
    assert all(weight.requires_grad and weight.is_leaf for weight in folded.parameters())
    with torch.no_grad():
        folded.output.zero_()
    assert not module.output.equal(folded.output)


def test_a_pruned_one_is_absorbed_as_it_is_pruned():
    module = LinearKnockingHeads(9, 3, 4, 8, mixing_init="identity_plus_random", **F64)
    whole = module.absorb().query
    model = slth.wrap(module, keep=0.5, seed=0)
    x = random_inputs(0, 2, T, 9)
    assert torch.allclose(model.absorb()(x), model(x), **exactly)
    assert not model.absorb().query.equal(whole)


def test_each_matrix_works_on_its_own_projection_of_every_head():
    """By the formula for one head, with QK-norm and rope behind the mixing."""
    module = LinearKnockingHeads(9, 3, 2, 8, mixing_init="random", rope=True, qk_norm=True, **F64)
    x, out, at = random_inputs(0, T, 9), 0, torch.arange(T)
    for h in range(2):
        q, k = (
            rope(rms_norm(x @ getattr(module, role)[h] @ getattr(module, f"mix_{role}")), at)
            for role in ("query", "key")
        )
        out = out + (q @ k.mT / 8**0.5).softmax(-1) @ (x @ module.value[h] @ module.mix_value) @ module.output[h]
    assert torch.allclose(module(x), out, **exactly)


def test_mixing_behind_rope_would_be_another_function():
    """The order that can be absorbed is the one taken: T does not commute with a rotation, nor with the QK-norm."""
    module = LinearKnockingHeads(9, 3, 2, 8, mixing_init="random", **F64)
    tokens, at, mixing = random_inputs(0, T, 8), torch.arange(T), module.mix_query
    assert not torch.allclose(rope(tokens @ mixing, at), rope(tokens, at) @ mixing, rtol=0.1, atol=0.1)
    assert not torch.allclose(rms_norm(tokens @ mixing), rms_norm(tokens) @ mixing, rtol=0.1, atol=0.1)


@given(subsets)
@settings(max_examples=8)
def test_any_subset_is_mixed_and_no_more(mix):
    for given_mix in (mix, "".join(mix), mix[::-1]):
        module = LinearKnockingHeads(9, 3, 4, 8, mix=given_mix, shared_width=11)
        names = {name for name, _ in module.named_parameters()}
        assert names - {"query", "key", "value", "output"} == {NAMES[letter] for letter in mix}
        for letter, role in zip("qkv", ("query", "key", "value"), strict=True):
            assert getattr(module, role).shape[-1] == (11 if letter in mix else 8)
        assert module.output.shape == (4, 8, 3)


def test_wide_projections_share_one_matrix():
    """The shared T (n, hidden) merges with each head's projection: no head has one of its own."""
    module = LinearKnockingHeads(5, 3, 4, 4, shared_width=20, mixing_init="random", rope=True, qk_norm=True, **F64)
    assert module.mix_query.shape == module.mix_key.shape == module.mix_value.shape == (20, 4)
    assert module.query.shape == (4, 5, 20)
    folded = module.absorb()
    assert torch.allclose(folded.query, torch.einsum("hdn,nm->hdm", module.query, module.mix_query), **exactly)


# ---------------------------------------------------------------- the MLP


def test_mlp_is_the_formula_of_the_paper():
    module = MLPKnockingHeads(9, 3, 1, 8, mixing_init="random", **F64)
    v = random_inputs(0, T, 9) @ module.value[0]
    up, gate = v @ module.mlp_up, v @ module.mlp_gate
    expected = 2 * (up * gate.sigmoid()) @ module.mlp_down @ module.output[0]
    alone = torch.eye(T, dtype=torch.bool)
    assert torch.allclose(module(random_inputs(0, T, 9), alone), expected, **exactly)


@pytest.mark.parametrize("kind", [MLPKnockingHeads, TiedMLPKnockingHeads])
def test_an_empty_gate_leaves_a_linear_chain(kind):
    module = kind(9, 3, 4, 8, kv_heads=2, mixing_init="random", **F64)
    linear = {MLPKnockingHeads: LinearKnockingHeads, TiedMLPKnockingHeads: TiedLinearKnockingHeads}[kind]
    same = linear(9, 3, 4, 8, kv_heads=2, mix="v", **F64)
    with torch.no_grad():
        module.mlp_gate.zero_()
        same.mix_value.copy_(module.mlp_up @ module.mlp_down)
    x = random_inputs(0, 2, T, 9)
    assert torch.allclose(module(x), same(x), **exactly)


def test_a_decoder_keeps_the_values_behind_the_mlp():
    module = MLPKnockingHeads(9, 3, 4, 8, kv_heads=2, mixing_init="random", causal=True, **F64)
    x, cache = random_inputs(0, T, 9), module.start()
    module.step(x, cache)
    plain = x @ module.value
    expected = 2 * ((plain @ module.mlp_up) * (plain @ module.mlp_gate).sigmoid()) @ module.mlp_down
    assert torch.allclose(cache.tensors[1], expected, **exactly)


# ---------------------------------------------------------------- errors


@one_case
@pytest.mark.parametrize("mix", ["x", "qx", ("query",), "QK", ("qk",)])
def test_letters_that_are_none(mix):
    with pytest.raises(ValueError, match=r"mix=.* must be made of q, k, v$"):
        LinearKnockingHeads(9, 3, 4, 8, mix=mix)


def test_tied_keys_have_no_matrix_of_their_own():
    with pytest.raises(ValueError, match="mix='qk': must be made of q, v"):
        TiedLinearKnockingHeads(9, 3, 4, 8, mix="qk")


@pytest.mark.parametrize("kind", [LinearKnockingHeads, TiedLinearKnockingHeads])
def test_shared_width_below_one(kind):
    with pytest.raises(ValueError, match="shared_width=0: must be an int >= 1"):
        kind(9, 3, 4, 8, shared_width=0)


def test_mlp_cannot_be_merged():
    with pytest.raises(ValueError, match="MLPKnockingHeads cannot be merged: the MLP on values is not linear"):
        MLPKnockingHeads(9, 3, 4, 8).merged()
