"""Checks that hold for every attention of the registry, by its facts; what is special to one has a file of its own."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import causal_mask, random_inputs, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

import slth
from slth.attention import (
    ATTENTIONS,
    MIXING_INITS,
    Attention,
    Facts,
    GroupedQueryAttention,
    GroupedTiedAttention,
    KVCache,
    LinearKnockingHeads,
    MultiHeadAttention,
    MultiheadExplicitAttention,
    MultiHeadLinearAttention,
    MultiQueryAttention,
    SoftmaxAttention,
    TalkingHeadsAttention,
    TiedLinearKnockingHeads,
    TiedMLPKnockingHeads,
    merged_attention,
    rms_norm,
    rope,
)
from slth.attention.facts import PROJECTIONS
from slth.attention.functional import causal_mask as with_causal
from slth.weights import inits

T = 6
exactly = {"rtol": 1e-12, "atol": 1e-12}


@dataclass(frozen=True)
class Variant:
    """A way to build an attention; sizes by default such that no axis has length 1."""

    name: str
    kind: type[Attention]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> Facts:
        return self.kind.facts

    @property
    def causal(self) -> dict[str, bool]:
        return {"causal": True} if self.facts.causal else {}

    @property
    def positioned(self) -> dict[str, bool]:
        """rope and qk_norm, as far as it has them."""
        return {option: True for option in ("rope", "qk_norm") if getattr(self.facts, option)}

    @property
    def mixes(self) -> bool:
        """Whether it has tensors that start by MIXING_INITS."""
        return set(MIXING_INITS) <= set(self.facts.mixing_inits)

    def build(self, **more: Any) -> Attention:
        """A float64 module with random mixing, options that more says."""
        own = {"d_in": 9, "d_out": 3, "heads": 4, "hidden": 8, "init": "xavier_uniform", "dtype": torch.float64}
        mixing = {"mixing_init": "random"} if self.facts.mixing_inits else {}
        return self.kind(**own | mixing | self.options | more)

    def settings(self) -> list[dict[str, Any]]:
        """Widths on both sides of d_in, plain and with what it has of positions and norms."""
        return [{**size, **more} for size in ({}, {"d_in": 5}) for more in ({}, self.positioned)]


BLOCKS = {"length": 9, "block": 4, "normalise": False}
#: Options of attentions of the registry, where other than their defaults test more.
OPTIONS = {
    "gqa": {"kv_heads": 2},
    "gta": {"kv_heads": 2},
    "kha_linear": {"kv_heads": 2},
    "kha_mlp": {"kv_heads": 2},
    "mea": {"kv_heads": 2, "components": 3},
    "talking_heads": {"logit_heads": 3, "value_heads": 2},
    "mhla": BLOCKS,
}
VARIANTS = [
    *(Variant(name, kind, OPTIONS.get(name, {})) for name, kind in ATTENTIONS.items()),
    Variant("of the construction", MultiHeadAttention, {"hidden_vo": 10}),
    Variant("kha_linear, queries and values", LinearKnockingHeads, {"mix": ("q", "v")}),
    Variant("kha_linear, wide", LinearKnockingHeads, {"shared_width": 11}),
    Variant("kha_linear, tied", TiedLinearKnockingHeads, {"kv_heads": 2}),
    Variant("kha_mlp, tied", TiedMLPKnockingHeads, {"kv_heads": 2}),
    Variant("mea, no norm", MultiheadExplicitAttention, {"norm": False}),
    Variant("mhla, added to its start", MultiHeadLinearAttention, BLOCKS | {"mixing_init": "identity_plus_random"}),
]


def each(variants):
    return pytest.mark.parametrize("variant", variants, ids=lambda variant: variant.name)


every = each(VARIANTS)
causal = each([v for v in VARIANTS if v.facts.causal])
masked = each([v for v in VARIANTS if v.facts.mask])
mixed = each([v for v in VARIANTS if v.mixes])
softmax = each([v for v in VARIANTS if issubclass(v.kind, SoftmaxAttention)])


# ---------------------------------------------------------------- the function


@every
def test_forward_is_the_formula(variant):
    x = random_inputs(0, 2, T, 9, norm=2.0)
    masks = [None, causal_mask(T), random_mask(1, T, T), random_mask(2, 2, T, T), random_mask(3, 1, T)]
    for options in variant.settings():
        module = variant.build(**options)
        inputs = x[..., : module.d_in]
        for mask in masks if variant.facts.mask else masks[:1]:
            expected = module.reference(inputs, mask)
            assert module(inputs, mask).shape == expected.shape == (2, T, 3)
            assert torch.allclose(module(inputs, mask), expected, **exactly)


@every
def test_sizes_of_any_kind(variant):
    @given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
    @settings(max_examples=8)
    def check(d_in, d_out, length, width, seed):
        module = variant.build(d_in=d_in, d_out=d_out, hidden=4 * width, seed=seed, **variant.causal)
        x = random_inputs(seed, length, d_in)
        assert torch.allclose(module(x), module.reference(x), **exactly)

    check()


@causal
def test_causal_is_the_causal_mask(variant):
    x = random_inputs(0, 2, T, 9)
    for options in variant.settings():
        module = variant.build(causal=True, **options)
        inputs = x[..., : module.d_in]
        changed = inputs.clone()
        changed[:, 3:] += 1.0
        assert torch.allclose(module(inputs)[:, :3], module(changed)[:, :3], **exactly)
        if variant.facts.mask:
            module.causal = False
            plain = module(inputs, causal_mask(T))
            module.causal = True
            assert torch.allclose(module(inputs), plain, **exactly)
            given_mask = causal_mask(T) & random_mask(1, T, T) | torch.eye(T, dtype=torch.bool)
            assert torch.allclose(module(inputs, given_mask), module.reference(inputs, given_mask), **exactly)


@causal
def test_decoding_is_the_causal_forward(variant):
    x = random_inputs(0, 2, T, 9)
    for options in variant.settings():
        module = variant.build(causal=True, **options)
        inputs = x[..., : module.d_in]
        cache = module.start()
        steps = [module.step(token, cache) for token in inputs.split(1, dim=-2)]
        assert torch.allclose(torch.cat(steps, dim=-2), module(inputs), **exactly)
        assert cache.bytes() > 0


@softmax
def test_decoding_takes_several_tokens_at_once(variant):
    module = variant.build(causal=True, **variant.positioned)
    x = random_inputs(0, 2, T, 9)
    cache = module.start()
    steps = [module.step(tokens, cache) for tokens in x.split([2, 3, 1], dim=-2)]
    assert torch.allclose(torch.cat(steps, dim=-2), module(x), **exactly)
    assert cache.length == T


@every
def test_merged_matrices_are_the_function_where_nothing_stands_between(variant):
    x = random_inputs(0, 2, T, 9)
    for options in ({}, {"d_in": 5}):
        module = variant.build(**options)
        if module.obstacles():
            with pytest.raises(ValueError, match=f"{variant.kind.__name__} cannot be merged: {module.obstacles()[0]}"):
                module.merged()
            continue
        inputs = x[..., : module.d_in]
        qk, vo = module.merged()
        assert qk.shape == (4, module.d_in, module.d_in)
        assert vo.shape == (4, module.d_in, 3)
        expected = module.reference(inputs, causal_mask(T))
        assert torch.allclose(merged_attention(inputs, qk, vo, causal_mask(T)), expected, **exactly)
        module.causal = variant.facts.causal
        assert torch.allclose(module(inputs, None if module.causal else causal_mask(T)), expected, **exactly)


@softmax
def test_factors_of_heads_are_what_is_merged(variant):
    for options in ({}, {"d_in": 5}, variant.positioned):
        module = variant.build(**options)
        if module.obstacles():
            with pytest.raises(ValueError, match="cannot be merged: "):
                module.factors()
            continue
        query, key, value, output = module.factors()
        assert query.shape[1:] == key.shape[1:]
        assert value.shape[1:] == (module.d_in, output.shape[1])
        assert output is module.output
        assert {len(key), len(value)} <= {1, len(query), len(output)}
        if variant.kind is not TalkingHeadsAttention:  # whose softmax heads are mixed of those that have factors
            for got, expected in zip((query @ key.mT, value @ output), module.merged(), strict=True):
                assert torch.allclose(got, expected, **exactly)


@every
def test_what_stands_between_is_named(variant):
    for option in variant.positioned:
        module = variant.build(**{option: True})
        assert any(option in words for words in module.obstacles())
        with pytest.raises(ValueError, match=f"{variant.kind.__name__} cannot be merged: .*{option}"):
            module.merged()


@every
def test_gradients(variant):
    for more in ({}, variant.positioned):
        module = variant.build(d_in=3, d_out=2, heads=2, hidden=4, **variant.causal, **more)
        names, values = zip(*module.named_parameters(), strict=True)

        def function(x, *values, module=module, names=names):
            return functional_call(module, dict(zip(names, values, strict=True)), (x,))

        inputs = (random_inputs(0, 3, 3).requires_grad_(), *values)
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@every
def test_float32_is_near_float64(variant):
    module = variant.build(dtype=torch.float32, **variant.positioned)
    x = random_inputs(0, 2, T, 9)
    out = module(x.float())
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), copy.deepcopy(module).double()(x), rtol=1e-4, atol=1e-5)


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


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_by_name_alone(name):
    module = ATTENTIONS[name](8, 8, 2, 8)
    x = random_inputs(0, T, 8).float()
    assert module(x).shape == (T, 8)
    assert torch.allclose(module(x), module.reference(x), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- errors


@every
def test_sizes_below_one(variant):
    for name, value in (("d_in", 0), ("d_out", -1), ("heads", 2.0), ("hidden", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}: must be an int >= 1"):
            variant.build(**{name: value})


@every
def test_widths_that_its_parts_do_not_divide(variant):
    for step, more in ((variant.facts.width_step, {}), (variant.facts.rope_step, {"rope": True})):
        if variant.facts.rope or not more:
            assert variant.build(hidden=2 * step, **more).hidden == 2 * step
            if step > 1:
                with pytest.raises(ValueError, match=f"hidden={step + 1}: must be divisible by {step}"):
                    variant.build(hidden=step + 1, **more)


@every
def test_values_that_are_not_allowed(variant):
    with pytest.raises(ValueError, match=r"dtype=torch.float16: must be torch.float32 or torch.float64"):
        variant.build(dtype=torch.float16)
    with pytest.raises(ValueError, match="init='glorot': must be one of theory"):
        variant.build(init="glorot")
    if variant.mixes:
        with pytest.raises(ValueError, match="mixing_init='zeros': must be one of natural, random"):
            variant.build(mixing_init="zeros")


@every
def test_options_that_it_does_not_have(variant):
    missing = [option for option in ("causal", "rope", "qk_norm") if not getattr(variant.facts, option)]
    for option in missing:
        with pytest.raises(ValueError, match=f"{option}=True: {variant.kind.__name__} "):
            variant.build(**{option: True})
    if not variant.facts.mask:
        with pytest.raises(ValueError, match="mask"):
            variant.build()(random_inputs(0, T, 9), causal_mask(T))


@masked
def test_masks_that_are_not_allowed(variant):
    x = random_inputs(0, 2, T, 9)
    empty = torch.ones(T, T, dtype=torch.bool)
    empty[2] = False
    upper = torch.ones(T, T, dtype=torch.bool).triu(1)
    upper[-1] = True
    for options in ({}, variant.causal):
        module = variant.build(**options)
        with pytest.raises(ValueError, match=r"mask row \(2,\) has no True"):
            module(x, empty)
        with pytest.raises(ValueError, match=r"must be torch\.bool"):
            module(x, empty.float())
        with pytest.raises(ValueError, match=r"mask of shape \(5, 5\): must end in \(6, 6\)"):
            module(x, causal_mask(5))
    if variant.facts.causal:
        with pytest.raises(ValueError, match="has no True"):  # nothing is left of it under the causal mask
            variant.build(causal=True)(x, upper)


@every
def test_inputs_that_do_not_fit(variant):
    module = variant.build(**variant.causal)
    step = [lambda x: module.step(x, module.start())] if variant.facts.causal else []
    for call in (module, module.reference, *step):
        with pytest.raises(ValueError, match="x of width 8: must be d_in=9"):
            call(random_inputs(0, T, 8))
        with pytest.raises(ValueError, match=r"x of shape \(9,\): must be \(..., T, d_in\)"):
            call(random_inputs(0, 9))


@every
def test_decoding_needs_causal(variant):
    with pytest.raises(ValueError, match="causal=False: decoding token by token needs causal=True"):
        variant.build().start()


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
