"""Weights of the attentions, groups of them, and what is shared."""

import math

import pytest
import torch
from attentions import T, every, exactly, mixed
from helpers import causal_mask, random_inputs
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

import slth
from slth.attention import (
    ATTENTIONS,
    MIXING_INITS,
    GroupedQueryAttention,
    GroupedTiedAttention,
    KVCache,
    MultiHeadAttention,
    MultiQueryAttention,
    rms_norm,
    rope,
)
from slth.attention.facts import PROJECTIONS
from slth.attention.functional import causal_mask as with_causal
from slth.weights import inits

# ---------------------------------------------------------------- weights


@every
def test_weights_are_named_streams_and_widened(variant):
    single, double, other = (
        variant.build(seed=seed, prefix=prefix, dtype=dtype)
        for seed, prefix, dtype in ((4, "", torch.float32), (4, "", torch.float64), (4, "block.0.", torch.float32))
    )
    names = [name for name, _ in single.named_parameters()]
    assert len(names) >= 3
    for name in names:
        weight = getattr(single, name)
        recipe = slth.weights.recipes.recipe_of(single, name)
        assert recipe.draws[0].name == name
        assert weight.equal(recipe.tensor(weight.shape))
        assert getattr(double, name).equal(weight.double())
        assert slth.weights.recipes.recipe_of(other, name).draws[0].name == f"block.0.{name}"
        assert not getattr(other, name).equal(weight)


@every
def test_theory_widens_queries_and_keys_alone(variant):
    module = variant.build(init="theory", hidden=16)
    projections = {name: role for name, role in module.roles().items() if role in PROJECTIONS}
    assert {"query", "key", "output"} <= set(projections.values())
    for name, role in projections.items():
        weight = module.get_parameter(name)
        wide = weight.shape[-1] ** 0.25 if role in ("query", "key") else 1.0
        assert wide * 0.8 < float(weight.detach().abs().max()) < wide


@mixed
def test_mixing_starts(variant):
    natural, random, both, theory = (variant.build(mixing_init=start, seed=1) for start in MIXING_INITS)
    mixing = [name for name, role in natural.roles().items() if role in ("features", "heads")]
    assert mixing
    for name in mixing:
        factor = getattr(theory, name)
        assert factor.equal(inits.uniform(factor.shape, 1.0, seed=1, name=name).double())
        assert theory._mixing(name) is factor
        weight = getattr(random, name)
        expected = inits.normal(weight.shape, weight.shape[-2] ** -0.5, seed=1, name=name)
        assert weight.equal(expected.double())
        assert getattr(both, name).equal(weight)  # what may be masked
        assert not both.state_dict().keys() - random.state_dict().keys()
        constant = both._mixing(name) - weight
        start = getattr(natural, name)
        if slth.weights.recipes.recipe_of(natural, name) is None:
            assert torch.allclose(constant, start, rtol=0, atol=1e-12)
    x = random_inputs(0, 2, T, 9)
    for module in (natural, both, theory):
        assert torch.allclose(module(x), module.reference(x), **exactly)
    with torch.no_grad():
        for name in mixing:
            getattr(both, name).zero_()
    if all(slth.weights.recipes.recipe_of(natural, name) is None for name in mixing):
        assert torch.allclose(both(x), natural(x), **exactly)


@every
def test_wrap_masks_each_weight_by_itself(variant):
    module = variant.build(**variant.causal)
    names = [name for name, role in module.roles().items() if role != "vector"]
    sizes = {name: weight.numel() for name, weight in module.named_parameters()}
    x = random_inputs(0, 2, T, 9)
    model = slth.wrap(module, keep=0.4, seed=0)
    groups = slth.handle(model).groups
    assert [group.name for group in groups] == names
    masks = slth.handle(model).masks()
    for name in names:
        assert int(masks[name].sum()) == math.floor(0.4 * sizes[name] + 0.5)
    out = model(x)
    assert torch.allclose(out, model.reference(x), **exactly)
    out.square().sum().backward()
    assert all((scores.grad != 0).any() for scores in slth.handle(model).scores())
    if variant.facts.causal:
        cache = model.start()
        steps = [model.step(token, cache) for token in x.split(1, dim=-2)]
        assert torch.allclose(torch.cat(steps, dim=-2), out, **exactly)


@every
def test_a_ticket_gives_it_back(variant):
    mixing = {"mixing_init": "identity_plus_random"} if variant.mixes else {}
    model = slth.wrap(variant.build(seed=3, **mixing), keep=0.4, seed=1)
    again = slth.Ticket.of(model).apply(variant.build(seed=4, **mixing))
    x = random_inputs(0, 2, T, 9)
    assert again(x).equal(model(x))


# ---------------------------------------------------------------- grouped queries


def test_mha_is_the_attention_of_the_construction():
    own, other = GroupedQueryAttention(3, 2, 4, 8, seed=5), MultiHeadAttention(3, 2, 4, 8, seed=5)
    for name, weight in other.named_parameters():
        assert getattr(own, name).equal(weight)
    x = random_inputs(0, 2, T, 3)
    assert torch.allclose(own.double()(x, causal_mask(T)), other.double()(x, causal_mask(T)), **exactly)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_gqa_is_mha_with_repeated_keys_and_values(kv_heads):
    module = GroupedQueryAttention(5, 3, 6, 4, kv_heads=kv_heads, dtype=torch.float64)
    whole = MultiHeadAttention(5, 3, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        for name in ("query", "output"):
            getattr(whole, name).copy_(getattr(module, name))
        for name in ("key", "value"):
            getattr(whole, name).copy_(getattr(module, name).repeat_interleave(6 // kv_heads, dim=0))
    x = random_inputs(0, 2, T, 5)
    assert torch.allclose(module(x), whole(x), **exactly)
    for mine, other in zip(module.merged(), whole.merged(), strict=True):
        assert torch.allclose(mine, other, **exactly)


def test_mqa_is_gqa_with_one():
    options = {"init": "xavier_uniform", "dtype": torch.float64, "rope": True, "qk_norm": True}
    one, many = MultiQueryAttention(5, 3, 6, 4, **options), GroupedQueryAttention(5, 3, 6, 4, kv_heads=1, **options)
    x = random_inputs(0, 2, T, 5)
    assert one(x).equal(many(x))
    assert one.key.shape == (1, 5, 4)
    with pytest.raises(ValueError, match="kv_heads=2: must be 1"):
        MultiQueryAttention(5, 3, 6, 4, kv_heads=2)


@one_case
@pytest.mark.parametrize("name", ["gqa", "gta", "kha_linear", "kha_mlp", "mea"])
def test_groups_that_do_not_divide(name):
    with pytest.raises(ValueError, match="kv_heads=4: must divide heads=6"):
        ATTENTIONS[name](5, 3, 6, 4, kv_heads=4)
    with pytest.raises(ValueError, match="kv_heads=0: must be an int >= 1"):
        ATTENTIONS[name](5, 3, 6, 4, kv_heads=0)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_gqa_keeps_a_key_and_value_of_each_group(kv_heads):
    module = GroupedQueryAttention(9, 3, 4, 8, kv_heads=kv_heads, causal=True)
    cache = module.start()
    module.step(random_inputs(0, 5, 9).float(), cache)
    assert cache.bytes() == 5 * kv_heads * (8 + 8) * 4


# ---------------------------------------------------------------- tied keys and values


def test_gta_without_rope_is_gqa_whose_keys_are_its_values():
    module = GroupedTiedAttention(5, 3, 4, 4, kv_heads=2, dtype=torch.float64)
    same = GroupedQueryAttention(5, 3, 4, 4, kv_heads=2, dtype=torch.float64)
    with torch.no_grad():
        for mine, other in (("query", "query"), ("key", "key_value"), ("value", "key_value"), ("output", "output")):
            getattr(same, mine).copy_(getattr(module, other))
    x = random_inputs(0, 2, T, 5)
    assert torch.allclose(module(x), same(x), **exactly)
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in same.parameters()) - 2 * 5 * 4


def test_gta_without_its_rotary_key_is_gqa_with_half_the_keys():
    """An empty mask on `key_rope` leaves the part of keys that no position touches."""
    module = GroupedTiedAttention(5, 3, 4, 8, kv_heads=2, rope=True, dtype=torch.float64)
    same = GroupedQueryAttention(5, 3, 4, 8, kv_heads=2, dtype=torch.float64)
    with torch.no_grad():
        module.key_rope.zero_()
        for mine, other in (("query", "query"), ("key", "key_value"), ("value", "key_value"), ("output", "output")):
            getattr(same, mine).copy_(getattr(module, other))
        same.key[..., 4:] = 0
    x = random_inputs(0, 2, T, 5)
    assert torch.allclose(module(x), same(x), **exactly)


def test_gta_keeps_a_tied_state_and_one_rotary_key():
    module = GroupedTiedAttention(9, 3, 8, 16, kv_heads=4, rope=True, causal=True)
    cache = module.start()
    module.step(random_inputs(0, 5, 9).float(), cache)
    assert cache.bytes() == 5 * (4 * 16 + 8) * 4
    assert not hasattr(GroupedTiedAttention(9, 3, 8, 16), "key_rope")
    with pytest.raises(ValueError, match="hidden=6: must be divisible by 4 with rope"):
        GroupedTiedAttention(9, 3, 8, 6, rope=True)


# ---------------------------------------------------------------- what they share


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_rope_turns_neighbours_as_complex_numbers(pairs, length, seed):
    x = random_inputs(seed, 2, length, 2 * pairs)
    positions = torch.arange(3, 3 + length)
    numbers = torch.view_as_complex(x.unflatten(-1, (pairs, 2)).contiguous())
    for pair in range(pairs):
        turn = torch.exp(1j * positions.double() * 10000 ** (-pair / pairs))
        expected = torch.view_as_real(numbers[..., pair] * turn)
        assert torch.allclose(rope(x, positions)[..., 2 * pair : 2 * pair + 2], expected, **exactly)


@given(st.integers(0, 1000), st.integers(0, 2**32 - 1))
def test_rope_products_know_the_distance_alone(shift, seed):
    q, k = random_inputs(seed, T, 8), random_inputs(seed + 1, T, 8)
    positions = torch.arange(T)
    near, far = (rope(q, at) @ rope(k, at).mT for at in (positions, positions + shift))
    assert torch.allclose(near, far, rtol=0, atol=1e-12)
    assert rope(q, positions * 0).equal(q)


def test_rope_of_an_odd_width():
    with pytest.raises(ValueError, match="rope of width 5: must be even"):
        rope(random_inputs(0, T, 5), torch.arange(T))


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_rms_norm(width, seed):
    x = random_inputs(seed, 3, width, norm=5.0)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(rms_norm(x), expected, **exactly)


@given(st.integers(1, 6), st.integers(0, 5))
def test_causal_mask_of_the_last_queries(queries, past):
    keys = queries + past
    assert with_causal(None, queries, keys, torch.device("cpu")).equal(causal_mask(keys)[past:])


def test_qk_norm_makes_queries_and_keys_independent_of_scale():
    module = GroupedQueryAttention(9, 3, 4, 8, qk_norm=True, dtype=torch.float64)
    x = random_inputs(0, 2, T, 9)
    out = module(x)
    with torch.no_grad():
        module.query.mul_(7.0)
        module.key.mul_(1e3)
    assert torch.allclose(module(x), out, rtol=1e-4, atol=1e-4)  # but for the eps of the norm


def test_cache_of_another_batch():
    module = GroupedQueryAttention(9, 3, 4, 8, causal=True, dtype=torch.float64)
    cache = module.start()
    assert (cache.length, cache.bytes()) == (0, 0)
    module.step(random_inputs(0, 2, 1, 9), cache)
    with pytest.raises(ValueError, match=r"tokens of batch \(3,\): must be \(2,\) as before"):
        module.step(random_inputs(0, 3, 1, 9), cache)
    assert isinstance(cache, KVCache)
    assert cache.length == 1


@one_case
@every
def test_print_shows_what_is_on(variant):
    shown = repr(variant.build(**variant.causal))
    assert all(part in shown for part in ("d_in=9", "d_out=3", "heads=4", "hidden"))
    assert ("causal=True" in shown) is variant.facts.causal


def test_options_make_the_same_again():
    given_options = {"init": "kaiming_normal", "seed": 3, "prefix": "a.", "dtype": torch.float64}
    switches = {"causal": True, "rope": True, "qk_norm": True}
    module = GroupedQueryAttention(9, 3, 4, 8, **given_options, **switches)
    assert module.options() == given_options | switches
    again = GroupedQueryAttention(9, 3, 4, 8, **module.options())
    assert again.query.equal(module.query)
