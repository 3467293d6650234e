"""Checks that hold for every attention, over one table of them; what is special to one stands in a file of its own."""

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
    DifferentialAttention,
    GroupedQueryAttention,
    GroupedTiedAttention,
    KVCache,
    LinearKnockingHeads,
    MLPKnockingHeads,
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
from slth.attention.functional import causal_mask as with_causal
from slth.weights import inits

T = 6
exactly = {"rtol": 1e-12, "atol": 1e-12}


@dataclass(frozen=True)
class Variant:
    """A way to build an attention; sizes by default such that no axis has length 1. mixing: its `mixing_init` tensors.

    drawn: weights whose distribution `init` does not say. linear: whether it merges where rope and qk_norm are off.
    """

    name: str
    kind: type[Attention]
    options: dict[str, Any] = field(default_factory=dict)
    mixing: tuple[str, ...] = ()
    linear: bool = True
    drawn: tuple[str, ...] = ()

    def build(self, **more: Any) -> Attention:
        """A float64 module with random mixing, options that more says."""
        sizes = {"d_in": 9, "d_out": 3, "heads": 4, "hidden": 8}
        own = {"init": "xavier_uniform", "dtype": torch.float64}
        mixing = RANDOM if self.mixing else {}
        return self.kind(**sizes | own | mixing | self.options | more)

    def positioned(self) -> dict[str, bool]:
        """rope and qk_norm, as far as it has them."""
        return {option: True for option in ("rope", "qk_norm") if getattr(self.kind.facts, option)}


LINEAR = ("mix_query", "mix_key", "mix_value")
MLP = ("mlp_up", "mlp_gate", "mlp_down")
TALK = ("mix_logits", "mix_weights")
LAMBDA = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
BLOCKS = {"length": 9, "block": 4, "mixing_init": "identity_plus_random", "normalise": False}
RANDOM = {"mixing_init": "random"}
VARIANTS = [
    Variant("mha", GroupedQueryAttention),
    Variant("gqa", GroupedQueryAttention, {"kv_heads": 2}),
    Variant("mqa", MultiQueryAttention),
    Variant("gta", GroupedTiedAttention, {"kv_heads": 2}),
    Variant("kha_linear", LinearKnockingHeads, {"kv_heads": 2}, LINEAR),
    Variant("kha_linear, queries and values", LinearKnockingHeads, {"mix": ("q", "v")}, (LINEAR[0], LINEAR[2])),
    Variant("kha_linear, wide", LinearKnockingHeads, {"shared_width": 11}, LINEAR),
    Variant("kha_linear, tied", TiedLinearKnockingHeads, {"kv_heads": 2}, (LINEAR[0], LINEAR[2])),
    Variant("kha_mlp", MLPKnockingHeads, {"kv_heads": 2}, MLP, linear=False),
    Variant("kha_mlp, tied", TiedMLPKnockingHeads, {"kv_heads": 2}, MLP, linear=False),
    Variant("mea", MultiheadExplicitAttention, {"kv_heads": 2, "components": 3}, LINEAR[1:], linear=False),
    Variant("mea, no norm", MultiheadExplicitAttention, {"norm": False}, LINEAR[1:]),
    Variant("talking_heads", TalkingHeadsAttention, {"logit_heads": 3, "value_heads": 2}, TALK),
    Variant("differential", DifferentialAttention, linear=False, drawn=LAMBDA),
    Variant("mhla, no normaliser", MultiHeadLinearAttention, BLOCKS, linear=False, drawn=("mixing",)),
    Variant("mhla, random", MultiHeadLinearAttention, BLOCKS | RANDOM, linear=False, drawn=("mixing",)),
]
every = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
mixed = pytest.mark.parametrize("variant", [v for v in VARIANTS if v.mixing], ids=lambda variant: variant.name)


def settings_of(variant):
    """Widths on both sides of d_in, plain and with what the variant has of positions and norms."""
    return [{**size, **more} for size in ({}, {"d_in": 5}) for more in ({}, variant.positioned())]


# ---------------------------------------------------------------- the function


@every
def test_forward_is_the_formula(variant):
    x = random_inputs(0, 2, T, 9, norm=2.0)
    masks = [None, causal_mask(T), random_mask(1, T, T), random_mask(2, 2, T, T), random_mask(3, 1, T)]
    for options in settings_of(variant):
        module = variant.build(**options)
        inputs = x[..., : module.d_in]
        for mask in masks if variant.kind.facts.mask else masks[:1]:
            expected = module.reference(inputs, mask)
            assert module(inputs, mask).shape == expected.shape == (2, T, 3)
            assert torch.allclose(module(inputs, mask), expected, **exactly)


@every
def test_sizes_of_any_kind(variant):
    @given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
    @settings(max_examples=8)
    def check(d_in, d_out, length, width, seed):
        module = variant.build(d_in=d_in, d_out=d_out, hidden=4 * width, seed=seed, causal=True)
        x = random_inputs(seed, length, d_in)
        assert torch.allclose(module(x), module.reference(x), **exactly)

    check()


@every
def test_causal_is_the_causal_mask(variant):
    x = random_inputs(0, 2, T, 9)
    for options in settings_of(variant):
        module = variant.build(causal=True, **options)
        inputs = x[..., : module.d_in]
        changed = inputs.clone()
        changed[:, 3:] += 1.0
        assert torch.allclose(module(inputs)[:, :3], module(changed)[:, :3], **exactly)
        if variant.kind.facts.mask:
            module.causal = False
            plain = module(inputs, causal_mask(T))
            module.causal = True
            assert torch.allclose(module(inputs), plain, **exactly)
            given_mask = causal_mask(T) & random_mask(1, T, T) | torch.eye(T, dtype=torch.bool)
            assert torch.allclose(module(inputs, given_mask), module.reference(inputs, given_mask), **exactly)


@every
def test_decoding_is_the_causal_forward(variant):
    x = random_inputs(0, 2, T, 9)
    for options in settings_of(variant):
        module = variant.build(causal=True, **options)
        inputs = x[..., : module.d_in]
        cache = module.start()
        steps = [module.step(token, cache) for token in inputs.split(1, dim=-2)]
        assert torch.allclose(torch.cat(steps, dim=-2), module(inputs), **exactly)
        assert cache.bytes() > 0


softmax = pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if issubclass(v.kind, SoftmaxAttention)], ids=lambda variant: variant.name
)


@softmax
def test_decoding_takes_several_tokens_at_once(variant):
    module = variant.build(causal=True, **variant.positioned())
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
        if not variant.linear:
            continue
        inputs = x[..., : module.d_in]
        qk, vo = module.merged()
        assert qk.shape == (4, module.d_in, module.d_in)
        assert vo.shape == (4, module.d_in, 3)
        expected = module.reference(inputs, causal_mask(T))
        assert torch.allclose(merged_attention(inputs, qk, vo, causal_mask(T)), expected, **exactly)
        module.causal = True
        assert torch.allclose(module(inputs), expected, **exactly)


@softmax
def test_factors_of_heads_are_what_is_merged(variant):
    for options in ({}, {"d_in": 5}, variant.positioned()):
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
    for option in variant.positioned():
        module = variant.build(**{option: True})
        assert any(option in words for words in module.obstacles())
        with pytest.raises(ValueError, match=f"{variant.kind.__name__} cannot be merged: .*{option}"):
            module.merged()
    if not variant.linear:
        with pytest.raises(ValueError, match="cannot be merged: "):
            variant.build().merged()


@every
def test_gradients(variant):
    for more in ({}, variant.positioned()):
        module = variant.build(d_in=3, d_out=2, heads=2, hidden=4, **{"causal": True} | more)
        names, values = zip(*module.named_parameters(), strict=True)

        def function(x, *values, module=module, names=names):
            return functional_call(module, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(function, (random_inputs(0, 3, 3).requires_grad_(), *values))


@every
def test_float32_is_near_float64(variant):
    module = variant.build(dtype=torch.float32, **variant.positioned())
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
    for name, weight in module.named_parameters():
        if name in variant.mixing + variant.drawn:
            continue
        wide = weight.shape[-1] ** 0.25 if name.startswith(("query", "key")) else 1.0
        assert wide * 0.8 < float(weight.detach().abs().max()) < wide


@mixed
def test_mixing_starts(variant):
    natural, random, both, theory = (variant.build(mixing_init=start, seed=1) for start in MIXING_INITS)
    for name in variant.mixing:
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
        for name in variant.mixing:
            getattr(both, name).zero_()
    if all(slth.weights.recipes.recipe_of(natural, name) is None for name in variant.mixing):
        assert torch.allclose(both(x), natural(x), **exactly)


@every
def test_wrap_masks_each_weight_by_itself(variant):
    module = variant.build(causal=True)
    names = [name for name, weight in module.named_parameters() if weight.dim() > 1]
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
    cache = model.start()
    steps = [model.step(token, cache) for token in x.split(1, dim=-2)]
    assert torch.allclose(torch.cat(steps, dim=-2), out, **exactly)


@every
def test_a_ticket_gives_it_back(variant):
    mixing = {"mixing_init": "identity_plus_random"} if variant.mixing else {}
    model = slth.wrap(variant.build(seed=3, **mixing), keep=0.4, seed=1)
    again = slth.Ticket.of(model).apply(variant.build(seed=4, **mixing))
    x = random_inputs(0, 2, T, 9)
    assert again(x).equal(model(x))


# ---------------------------------------------------------------- the table


def test_every_name_is_checked_here():
    assert {variant.kind for variant in VARIANTS} >= set(ATTENTIONS.values())


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_by_name_alone(name):
    module = ATTENTIONS[name](8, 8, 2, 8)
    x = random_inputs(0, T, 8).float()
    assert module(x).shape == (T, 8)
    assert torch.allclose(module(x), module.reference(x), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- errors


@every
@pytest.mark.parametrize("value", [0, -1, 2.0])
@pytest.mark.parametrize("name", ["d_in", "d_out", "heads", "hidden"])
def test_sizes_below_one(variant, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: must be an int >= 1"):
        variant.build(**{name: value})


@every
def test_values_that_are_not_allowed(variant):
    with pytest.raises(ValueError, match=r"dtype=torch.float16: must be torch.float32 or torch.float64"):
        variant.build(dtype=torch.float16)
    with pytest.raises(ValueError, match="init='glorot': must be one of theory"):
        variant.build(init="glorot")
    if variant.mixing:
        with pytest.raises(ValueError, match="mixing_init='zeros': must be one of natural, random"):
            variant.build(mixing_init="zeros")
    if variant.kind.facts.rope:
        with pytest.raises(ValueError, match=r"hidden=7: must be divisible by \d with rope"):
            variant.build(hidden=7, rope=True)


@every
def test_options_that_it_does_not_have(variant):
    missing = [option for option in ("causal", "rope", "qk_norm") if not getattr(variant.kind.facts, option)]
    for option in missing:
        with pytest.raises(ValueError, match=f"{option}=True: {variant.kind.__name__} has no {option}"):
            variant.build(**{option: True})
    if not variant.kind.facts.mask:
        with pytest.raises(ValueError, match="mask"):
            variant.build()(random_inputs(0, T, 9), causal_mask(T))


@every
def test_masks_that_are_not_allowed(variant):
    if not variant.kind.facts.mask:
        pytest.skip("has no mask")
    x = random_inputs(0, 2, T, 9)
    empty = torch.ones(T, T, dtype=torch.bool)
    empty[2] = False
    upper = torch.ones(T, T, dtype=torch.bool).triu(1)
    upper[-1] = True
    for causal in (False, True):
        module = variant.build(causal=causal)
        with pytest.raises(ValueError, match=r"mask row \(2,\) has no True"):
            module(x, empty)
        with pytest.raises(ValueError, match=r"must be torch\.bool"):
            module(x, empty.float())
        with pytest.raises(ValueError, match=r"mask of shape \(5, 5\): must end in \(6, 6\)"):
            module(x, causal_mask(5))
    with pytest.raises(ValueError, match="has no True"):  # nothing is left of it under the causal mask
        variant.build(causal=True)(x, upper)


@every
def test_inputs_that_do_not_fit(variant):
    module = variant.build(causal=True)
    for call in (module, module.reference, lambda x: module.step(x, module.start())):
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
    shown = repr(variant.build(causal=True))
    assert all(part in shown for part in ("d_in=9", "d_out=3", "heads=4", "hidden=8", "causal=True"))


def test_options_make_the_same_again():
    given_options = {"init": "kaiming_normal", "seed": 3, "prefix": "a.", "dtype": torch.float64}
    switches = {"causal": True, "rope": True, "qk_norm": True}
    module = GroupedQueryAttention(9, 3, 4, 8, **given_options, **switches)
    assert module.options() == given_options | switches
    again = GroupedQueryAttention(9, 3, 4, 8, **module.options())
    assert again.query.equal(module.query)
