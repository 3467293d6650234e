"""Talking heads: what the two mixings make of multi-head attention; what all attentions share is checked elsewhere."""

import pytest
import torch
from helpers import causal_mask, random_inputs, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st

import slth
from slth.attention import MultiHeadAttention, TalkingHeadsAttention, attend

exactly = {"rtol": 1e-12, "atol": 1e-12}
few = settings(max_examples=30)
small = st.integers(1, 4)


def build(**options):
    """A float64 module."""
    sizes = {"d_in": 5, "d_out": 3, "heads": 4, "hidden": 3}
    return TalkingHeadsAttention(**sizes | {"init": "xavier_uniform", "dtype": torch.float64} | options)


@given(small, small, small, st.integers(1, 6), st.booleans(), st.integers(0, 2**32 - 1))
@few
def test_forward_is_the_formula_with_any_number_of_heads(logit_heads, heads, value_heads, hidden, causal, seed):
    module = build(
        logit_heads=logit_heads, heads=heads, value_heads=value_heads, hidden=hidden, causal=causal, seed=seed
    )
    x = random_inputs(seed, 2, 5, 5, norm=2.0)
    assert {name: tuple(weight.shape) for name, weight in module.named_parameters()} == {
        "query": (logit_heads, 5, hidden),
        "key": (logit_heads, 5, hidden),
        "value": (value_heads, 5, hidden),
        "output": (value_heads, hidden, 3),
        "mix_logits": (logit_heads, heads),
        "mix_weights": (heads, value_heads),
    }
    for mask in (None, causal_mask(5), random_mask(seed, 2, 5, 5) | torch.eye(5, dtype=torch.bool)):
        assert torch.allclose(module(x, mask), module.reference(x, mask), **exactly)


def test_the_paper_s_einsums():
    """The reference against the paper's pseudocode, in its own order."""
    module = build(logit_heads=2, value_heads=3)
    x, mask = random_inputs(0, 6, 5), causal_mask(6)
    q, k = (torch.einsum("nd,hdk->nhk", x, weight) for weight in (module.query, module.key))
    v = torch.einsum("md,hdk->mhk", x, module.value)
    products = torch.einsum("nhk,mhk->nmh", q, k) / 3**0.5
    logits = torch.einsum("nmi,ij->nmj", products, module.mix_logits)
    weights = logits.masked_fill(~mask[..., None], -torch.inf).softmax(dim=1)
    mixed = torch.einsum("nmj,jv->nmv", weights, module.mix_weights)
    expected = torch.einsum("nmv,mvk,vko->no", mixed, v, module.output)
    assert torch.allclose(module.reference(x, mask), expected, **exactly)


@pytest.mark.parametrize("options", [{}, {"d_in": 2}, {"causal": True}])
def test_identity_is_multi_head_attention(options):
    module = build(mixing_init="identity", **options)
    same = MultiHeadAttention(module.d_in, 3, 4, 3, init="xavier_uniform", dtype=torch.float64)
    x = random_inputs(0, 2, 6, module.d_in)
    mask = causal_mask(6) if module.causal else None
    assert torch.allclose(module(x), same(x, mask), **exactly)
    for mine, other in zip(module.merged(), same.merged(), strict=True):
        assert torch.allclose(mine, other, **exactly)


def test_identity_with_positions_and_norms_is_attention_with_them():
    module = build(mixing_init="identity", hidden=4, rope=True, qk_norm=True)
    x, positions = random_inputs(0, 6, 5)[None], torch.arange(6)
    q, k = (module._rotated(module._normed(x @ weight), positions) for weight in (module.query, module.key))
    expected = (attend(q / 2.0, k, x @ module.value) @ module.output).sum(-3)
    assert torch.allclose(module(x[0]), expected, **exactly)


def test_the_mask_comes_after_the_mixing():
    """Minus infinity before it would spread over all heads, with both signs."""
    module = build()
    x = random_inputs(0, 2, 6, 5)
    changed = x.clone()
    changed[:, 4:] += 1.0
    mask = causal_mask(6)
    assert module(x, mask).isfinite().all()
    assert torch.allclose(module(x, mask)[:, :4], module(changed, mask)[:, :4], **exactly)


def test_merged_heads_have_ranks_beyond_a_head_s_width():
    """Each softmax head has the query-key products of all logit heads, and the value-output ones of all value heads."""
    module = build(d_in=9, d_out=9, heads=2, logit_heads=4, value_heads=3, hidden=2)
    qk, vo = module.merged()
    assert torch.linalg.matrix_rank(qk).tolist() == [8, 8]
    assert torch.linalg.matrix_rank(vo).tolist() == [6, 6]


@pytest.mark.parametrize(("name", "rows"), [("mix_logits", 100), ("mix_weights", 200)])
def test_mixing_starts_random_and_not_as_the_identity(name, rows):
    module = TalkingHeadsAttention(2, 2, 200, 1, logit_heads=100, seed=2)
    weight = getattr(module, name)
    assert weight.equal(slth.weights.inits.normal(weight.shape, rows**-0.5, seed=2, name=name))
    assert weight.var().item() == pytest.approx(1 / rows, rel=0.05)
    same = TalkingHeadsAttention(2, 2, 200, 1, logit_heads=100, seed=2, mixing_init="random")
    assert getattr(same, name).equal(weight)


def test_masked_randomness_leaves_the_identity():
    module, identity = build(mixing_init="identity_plus_random"), build(mixing_init="identity")
    x = random_inputs(0, 6, 5)
    assert not torch.isclose(module(x), identity(x)).any()
    with torch.no_grad():
        module.mix_logits.zero_()
        module.mix_weights.zero_()
    assert torch.allclose(module(x), identity(x), **exactly)


def test_decoding_keeps_keys_of_logit_heads_and_values_of_value_heads():
    module = build(logit_heads=2, value_heads=6, causal=True)
    cache = module.start()
    module.step(random_inputs(0, 2, 5, 5), cache)
    assert cache.bytes() == 2 * 5 * (2 + 6) * 3 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_heads": 0}, "logit_heads=0: must be an int >= 1"),
        ({"value_heads": -1}, "value_heads=-1: must be an int >= 1"),
        ({"mixing_init": "zeros"}, "must be one of natural, random, identity_plus_random, theory, identity"),
    ],
    ids=str,
)
def test_values_that_are_not_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
