"""Differential attention: its lambda, its norm, and what is left without them; the shared checks are elsewhere."""

import math

import pytest
import torch
from helpers import causal_mask, random_inputs, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case
from torch.nn.functional import rms_norm, scaled_dot_product_attention

import slth
from slth.attention import DifferentialAttention, TalkingHeadsAttention, merged_attention, rope
from slth.attention.differential import VECTORS, lambda_init

exactly = {"rtol": 1e-12, "atol": 1e-12}
few = settings(max_examples=30)
T = 6


def build(**options):
    """A float64 module."""
    sizes = {"d_in": 5, "d_out": 3, "heads": 2, "hidden": 4}
    return DifferentialAttention(**sizes | {"init": "xavier_uniform", "dtype": torch.float64} | options)


def by_torch(module, x, mask=None):
    """Head by head with torch's own attention, which scales by 1 / sqrt(width) itself, and its own norm."""
    half, out = module.hidden // 2, 0
    positions = torch.arange(x.shape[-2])
    turned = (lambda t: rope(t, positions)) if module.rope else (lambda t: t)
    for query, key, value, output in zip(module.query, module.key, module.value, module.output, strict=True):
        maps = [
            scaled_dot_product_attention(
                turned(x @ query[:, part]), turned(x @ key[:, part]), x @ value, attn_mask=mask
            )
            for part in (slice(None, half), slice(half, None))
        ]
        head = maps[0] - module.lambda_() * maps[1]
        if module.norm:
            head = rms_norm(head, (module.hidden,), eps=1e-5) * (1 - lambda_init(module.depth))
        out = out + head @ output
    return out


@given(st.integers(1, 3), st.sampled_from([4, 8]), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
@few
def test_equals_torch_attention_head_by_head(heads, hidden, norm, rope, seed):
    module = build(heads=heads, hidden=hidden, norm=norm, rope=rope, seed=seed, depth=seed % 5)
    x = random_inputs(seed, 2, T, 5, norm=2.0)
    for mask in (None, causal_mask(T), random_mask(seed, 2, T, T)):
        expected = by_torch(module, x, mask)
        assert torch.allclose(module(x, mask), expected, **exactly)
        assert torch.allclose(module.reference(x, mask), expected, **exactly)


def as_talking_heads(module):
    """The talking heads that differential attention is without its norm: lambda is in the weights' mixing."""
    talking = TalkingHeadsAttention(
        module.d_in,
        module.d_out,
        2 * module.heads,
        module.hidden // 2,
        value_heads=module.heads,
        mixing_init="identity",
        **module.options(),
    )
    wide = (module.heads, module.d_in, module.hidden)
    talking.value = torch.nn.Parameter(torch.empty(wide, dtype=torch.float64))
    talking.output = torch.nn.Parameter(torch.empty(wide[0], wide[2], module.d_out, dtype=torch.float64))
    with torch.no_grad():
        for name in ("query", "key"):
            halves = getattr(module, name).unflatten(-1, (2, -1))  # (heads, d_in, 2, hidden / 2)
            getattr(talking, name).copy_(halves.movedim(-2, 1).flatten(0, 1))
        talking.value.copy_(module.value)
        talking.output.copy_(module.output)
        talking.mix_weights.zero_()
        for head in range(module.heads):
            talking.mix_weights[2 * head, head] = 1.0
            talking.mix_weights[2 * head + 1, head] = -module.lambda_()
    return talking


@pytest.mark.parametrize("options", [{}, {"rope": True, "qk_norm": True}, {"causal": True}, {"d_in": 3, "heads": 3}])
def test_without_norm_it_is_talking_heads(options):
    module = build(norm=False, depth=3, **options)
    talking = as_talking_heads(module)
    x = random_inputs(0, 2, T, module.d_in)
    for mask in (None, causal_mask(T)):
        assert torch.allclose(module(x, mask), talking(x, mask), **exactly)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))
@few
def test_without_norm_it_merges_to_twice_the_heads(heads, half, seed):
    module = build(heads=heads, hidden=2 * half, norm=False, seed=seed)
    qk, vo = module.merged()
    assert qk.shape == (2 * heads, 5, 5)
    assert vo.shape == (2 * heads, 5, 3)
    x, mask = random_inputs(seed, 2, T, 5), causal_mask(T)
    assert torch.allclose(merged_attention(x, qk, vo, mask), module.reference(x, mask), **exactly)
    assert torch.allclose(module(x, mask), module.reference(x, mask), **exactly)


def test_norm_stands_between_value_and_output():
    with pytest.raises(
        ValueError, match="DifferentialAttention cannot be merged: norm normalises each head before the output"
    ):
        build().merged()


# ---------------------------------------------------------------- lambda


@pytest.mark.parametrize(("depth", "expected"), [(0, 0.2), (1, 0.35550906759096927), (1000, 0.8)])
def test_lambda_starts_by_depth(depth, expected):
    assert lambda_init(depth) == pytest.approx(expected, abs=1e-15)
    assert lambda_init(depth + 1) >= lambda_init(depth)


@pytest.mark.parametrize("depth", [0, 1, 7])
def test_vectors_of_zeros_give_exactly_its_start(depth):
    module = build(depth=depth, lambda_std=0)
    assert module.lambda_().item() == lambda_init(depth)
    assert all((getattr(module, name) == 0).all() for name in VECTORS)


def test_lambda_is_the_difference_of_exponentials():
    module = build(depth=2, lambda_std=1.0, hidden=6)
    q1, k1, q2, k2 = (getattr(module, name).tolist() for name in VECTORS)
    first, second = (math.exp(sum(a * b for a, b in zip(*pair, strict=True))) for pair in ((q1, k1), (q2, k2)))
    assert module.lambda_().item() == pytest.approx(first - second + 0.8 - 0.6 * math.exp(-0.6), rel=1e-12)


def test_vectors_are_drawn_each_by_its_name():
    module = build(hidden=400, seed=3, prefix="a.")
    for name in VECTORS:
        vector = getattr(module, name)
        assert vector.shape == (200,)
        assert vector.equal(slth.weights.inits.normal((200,), 0.1, seed=3, name=f"a.{name}").double())


@pytest.mark.parametrize("norm", [True, False])
def test_lambda_is_trained(norm):
    module = build(norm=norm)
    module(random_inputs(0, 2, T, 5)).square().sum().backward()
    assert all((getattr(module, name).grad != 0).all() for name in VECTORS)


def test_equal_halves_cancel_to_what_lambda_leaves():
    module = build(norm=False, lambda_std=0, depth=4)
    with torch.no_grad():
        for name in ("query", "key"):
            weight = getattr(module, name)
            weight[..., 2:] = weight[..., :2]
    x = random_inputs(0, T, 5)
    left = build(norm=False, lambda_std=0, depth=4)
    left.load_state_dict(module.state_dict())
    with torch.no_grad():
        left.output.mul_(1 - lambda_init(4))
    softmax = scaled_dot_product_attention(*(x @ w[..., :2] for w in (left.query, left.key)), x @ left.value)
    assert torch.allclose(module(x), (softmax @ left.output).sum(0), **exactly)


# ---------------------------------------------------------------- norm


def test_norm_makes_heads_independent_of_the_scale_of_values():
    module = build(depth=1)
    x = random_inputs(0, 2, T, 5)
    with torch.no_grad():
        module.value.mul_(1e3)  # the eps of the norm is small beside them
        out = module(x)
        module.value.mul_(7.0)
    assert torch.allclose(module(x), out, rtol=1e-6, atol=1e-6)


def test_heads_have_the_size_that_depth_says():
    module = build(d_out=4, heads=1, depth=2)
    with torch.no_grad():
        module.value.mul_(1e3)
        module.output.copy_(torch.eye(4))
    size = module(random_inputs(0, T, 5)).square().mean(-1).sqrt()
    assert torch.allclose(size, torch.full_like(size, 1 - lambda_init(2)), rtol=1e-6)


# ---------------------------------------------------------------- as a source, errors


def test_wrap_leaves_the_vectors_unless_they_are_named():
    model = slth.wrap(build(), keep=0.5)
    assert list(slth.handle(model).weights) == ["query", "key", "value", "output"]
    model = slth.wrap(build(), keep=0.5, parameters="*")  # which matches weights, and takes these alone
    assert list(slth.handle(model).weights) == ["query", "key", "value", "output"]
    model = slth.wrap(build(), keep=0.5, parameters="lambda_*")
    assert list(slth.handle(model).weights) == list(VECTORS)
    model = slth.wrap(build(), keep=0.5, parameters=["*", "lambda_*"])
    assert list(slth.handle(model).weights) == ["query", "key", "value", "output", *VECTORS]
    assert all(int(mask.sum()) == (mask.numel() + 1) // 2 for mask in slth.handle(model).masks().values())


def test_there_are_as_many_weights_as_in_multi_head_attention():
    weights = {name: tuple(weight.shape) for name, weight in build().named_parameters() if weight.dim() > 1}
    assert weights == {"query": (2, 5, 4), "key": (2, 5, 4), "value": (2, 5, 4), "output": (2, 4, 3)}


def test_decoding_keeps_both_halves_and_the_values():
    module = build(causal=True)
    cache = module.start()
    module.step(random_inputs(0, 3, T, 5), cache)
    assert cache.bytes() == 3 * T * 2 * (4 + 4) * 8


@one_case
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 3}, "hidden=3: must be divisible by 2$"),
        ({"hidden": 6, "rope": True}, "hidden=6: must be divisible by 4 with rope"),
        ({"depth": -1}, "depth=-1: must be an int >= 0"),
        ({"depth": 1.5}, "depth=1.5: must be an int >= 0"),
        ({"lambda_std": -0.1}, "lambda_std=-0.1: must be a finite number >= 0"),
        ({"lambda_std": math.nan}, "lambda_std=nan: must be a finite number >= 0"),
    ],
    ids=str,
)
def test_values_that_are_not_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
