"""The function of every attention, and what it refuses."""

import copy

import pytest
import torch
from attentions import T, causal, every, exactly, masked, softmax
from helpers import causal_mask, random_inputs, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case
from torch.func import functional_call

from slth.attention import (
    ATTENTIONS,
    TalkingHeadsAttention,
    merged_attention,
)

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


# ---------------------------------------------------------------- the table


@one_case
@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_by_name_alone(name):
    module = ATTENTIONS[name](8, 8, 2, 8)
    x = random_inputs(0, T, 8).float()
    assert module(x).shape == (T, 8)
    assert torch.allclose(module(x), module.reference(x), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- errors


@one_case
@every
def test_sizes_below_one(variant):
    for name, value in (("d_in", 0), ("d_out", -1), ("heads", 2.0), ("hidden", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}: must be an int >= 1"):
            variant.build(**{name: value})


@one_case
@every
def test_widths_that_its_parts_do_not_divide(variant):
    for step, more in ((variant.facts.width_step, {}), (variant.facts.rope_step, {"rope": True})):
        if variant.facts.rope or not more:
            assert variant.build(hidden=2 * step, **more).hidden == 2 * step
            if step > 1:
                with pytest.raises(ValueError, match=f"hidden={step + 1}: must be divisible by {step}"):
                    variant.build(hidden=step + 1, **more)


@one_case
@every
def test_values_that_are_not_allowed(variant):
    with pytest.raises(ValueError, match=r"dtype=torch.float16: must be torch.float32 or torch.float64"):
        variant.build(dtype=torch.float16)
    with pytest.raises(ValueError, match="init='glorot': must be one of theory"):
        variant.build(init="glorot")
    if variant.mixes:
        with pytest.raises(ValueError, match="mixing_init='zeros': must be one of natural, random"):
            variant.build(mixing_init="zeros")


@one_case
@every
def test_options_that_it_does_not_have(variant):
    missing = [option for option in ("causal", "rope", "qk_norm") if not getattr(variant.facts, option)]
    for option in missing:
        with pytest.raises(ValueError, match=f"{option}=True: {variant.kind.__name__} "):
            variant.build(**{option: True})
    if not variant.facts.mask:
        with pytest.raises(ValueError, match="mask"):
            variant.build()(random_inputs(0, T, 9), causal_mask(T))


@one_case
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


@one_case
@every
def test_inputs_that_do_not_fit(variant):
    module = variant.build(**variant.causal)
    step = [lambda x: module.step(x, module.start())] if variant.facts.causal else []
    for call in (module, module.reference, *step):
        with pytest.raises(ValueError, match="x of width 8: must be d_in=9"):
            call(random_inputs(0, T, 8))
        with pytest.raises(ValueError, match=r"x of shape \(9,\): must be \(..., T, d_in\)"):
            call(random_inputs(0, 9))


@one_case
@every
def test_decoding_needs_causal(variant):
    with pytest.raises(ValueError, match="causal=False: decoding token by token needs causal=True"):
        variant.build().start()
