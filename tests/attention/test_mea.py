"""What is special to multi-head explicit attention; what holds for every attention is in test_attention_variants.py."""

import pytest
import torch
from helpers import causal_mask, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case

from slth.attention import (
    GroupedQueryAttention,
    MultiHeadAttention,
    MultiheadExplicitAttention,
    rms_norm,
    rope,
)

T = 6
F64 = {"init": "xavier_uniform", "dtype": torch.float64}
exactly = {"rtol": 1e-12, "atol": 1e-12}


def composite(module, role):
    """Weights of the composite heads, (kv_heads, d_in, hidden)."""
    return torch.einsum("adn,ag->gdn", getattr(module, role), getattr(module, f"mix_{role}"))


def flat(module, role):
    """The same, one column for each head."""
    return composite(module, role).detach().flatten(1).T


# ---------------------------------------------------------------- identities


@pytest.mark.parametrize("hidden", [8, 16])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_identity_without_norm_is_the_plain_attention(kv_heads, hidden):
    x = random_inputs(0, 2, T, 9, norm=3.0)
    for options in ({}, {"rope": True}, {"rope": True, "qk_norm": True}):
        common = {"kv_heads": kv_heads, "causal": True, **F64, **options}
        module = MultiheadExplicitAttention(9, 3, 4, hidden, norm=False, **common)
        assert module.mix_key.equal(torch.eye(kv_heads, dtype=torch.float64))
        same = GroupedQueryAttention(9, 3, 4, hidden, **common)
        assert torch.allclose(module(x), same(x), **exactly)


def test_identity_without_norm_is_multi_head_attention():
    module = MultiheadExplicitAttention(9, 3, 4, 8, norm=False, **F64)
    x = random_inputs(0, 2, T, 9)
    assert torch.allclose(
        module(x, causal_mask(T)), MultiHeadAttention(9, 3, 4, 8, **F64)(x, causal_mask(T)), **exactly
    )


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_rope_commutes_with_the_composition(components, heads, seed):
    keys = random_inputs(seed, components, T, 8)
    mixing = random_inputs(seed + 1, components, heads)
    before, after = (
        torch.einsum("atn,ag->gtn", rope(keys, torch.arange(T)), mixing),
        rope(torch.einsum("atn,ag->gtn", keys, mixing), torch.arange(T)),
    )
    assert torch.allclose(before, after, rtol=0, atol=1e-12)


def test_a_norm_does_not_commute_with_the_composition():
    keys, mixing = random_inputs(0, 3, T, 8), random_inputs(1, 3, 2)
    before, after = (
        torch.einsum("atn,ag->gtn", rms_norm(keys), mixing),
        rms_norm(torch.einsum("atn,ag->gtn", keys, mixing)),
    )
    assert not torch.allclose(before, after, rtol=0.1, atol=0.1)


def test_composition_and_norm_by_the_formula():
    module = MultiheadExplicitAttention(
        9, 3, 4, 8, kv_heads=2, components=3, mixing_init="random", rope=True, qk_norm=True, **F64
    )
    x, out, at = random_inputs(0, T, 9), 0, torch.arange(T)
    keys, values = x @ composite(module, "key"), x @ composite(module, "value")
    for h in range(4):
        q, k = rope(rms_norm(x @ module.query[h]), at), rope(rms_norm(keys[h // 2]), at)
        head = (q @ k.mT / 8**0.5).softmax(-1) @ values[h // 2]
        out = out + head / (head.square().mean(-1, keepdim=True) + 1e-5).sqrt() @ module.output[h]
    assert torch.allclose(module(x), out, **exactly)


def test_norm_makes_heads_independent_of_the_scale_of_values():
    module = MultiheadExplicitAttention(9, 3, 4, 8, **F64)
    x = random_inputs(0, 2, T, 9, norm=9.0)
    out = module(x)
    with torch.no_grad():
        module.value.mul_(1e3)
    assert torch.allclose(module(x), out, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- rank


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_without_norm_it_is_within_its_rank_limits(components, seed):
    """A head's logits and values have rank hidden at most, and all heads' weights together that of the components."""
    module = MultiheadExplicitAttention(
        9, 7, 4, 3, components=components, norm=False, mixing_init="random", seed=seed, **F64
    )
    for matrices in module.merged():
        for matrix in matrices:
            assert torch.linalg.matrix_rank(matrix, rtol=1e-10) == 3
    for role in ("key", "value"):
        assert torch.linalg.matrix_rank(flat(module, role), rtol=1e-10) == min(components, 4)


@one_case
@pytest.mark.parametrize(("components", "kv_heads"), [(1, 1), (1, 4), (3, 4), (4, 4), (6, 4), (5, 2)])
def test_natural_mixing_leaves_nothing_empty(components, kv_heads):
    module = MultiheadExplicitAttention(9, 3, 4, 8, kv_heads=kv_heads, components=components)
    for mixing in (module.mix_key, module.mix_value):
        assert mixing.shape == (components, kv_heads)
        assert mixing.any(0).all()
        assert mixing.any(1).all()
        assert torch.linalg.matrix_rank(mixing) == min(components, kv_heads)


# ---------------------------------------------------------------- fewer components


def mea(**options):
    return MultiheadExplicitAttention(9, 3, 4, 8, **{"mixing_init": "random", "causal": True, **F64, **options})


@pytest.mark.parametrize("options", [{}, {"norm": False}, {"rope": True, "qk_norm": True}, {"kv_heads": 2}])
def test_compression_to_the_rank_is_exact(options):
    module = mea(components=2, **options)
    for heads in {2, module.compress(2).module.components}:
        fewer = module.compress(heads)
        x = random_inputs(0, 2, T, 9)
        assert torch.allclose(fewer.module(x), module(x), rtol=1e-10, atol=1e-10)
        assert max(fewer.lost_key, fewer.lost_value) < 1e-12


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_compression_loses_what_it_says_and_no_other_loses_less(heads):
    module = mea(components=4)
    fewer = module.compress(heads)
    assert fewer.module.components == heads
    for role, lost in (("key", fewer.lost_key), ("value", fewer.lost_value)):
        before, after = flat(module, role), flat(fewer.module, role)
        assert torch.linalg.matrix_rank(after, rtol=1e-10) == heads
        assert lost == pytest.approx(float((before - after).norm() / before.norm()), rel=1e-10)
        best = torch.linalg.svdvals(before)[heads:].norm() / before.norm()  # Eckart and Young 1936
        assert lost == pytest.approx(float(best), rel=1e-10)
    assert 0 < fewer.lost_key < 1


def test_compression_of_plain_heads_is_the_papers():
    """With an identity mixing: columns are the flattened heads, U the components, and S folded into the mixing."""
    module = mea(mixing_init="natural")
    fewer = module.compress(2).module
    for role in ("key", "value"):
        columns = getattr(module, role).detach().flatten(1).T  # (d_in * hidden, heads)
        u, s, v = torch.linalg.svd(columns, full_matrices=False)
        product = getattr(fewer, role).detach().flatten(1).T @ getattr(fewer, f"mix_{role}").detach()
        assert torch.allclose(product, u[:, :2] * s[:2] @ v[:2], rtol=1e-10, atol=1e-10)
        components = getattr(fewer, role).detach().flatten(1)
        assert torch.allclose(components @ components.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-10)


def test_compression_cuts_the_cache():
    module = mea(components=4, dtype=torch.float32)
    fewer = module.compress(1)
    held = []
    for each in (module, fewer.module):
        cache = each.start()
        each.step(random_inputs(0, 5, 9).float(), cache)
        held.append(cache.bytes())
    assert held == [5 * fewer.bytes_before, 5 * fewer.bytes_after]
    assert (fewer.bytes_before, fewer.bytes_after) == (4 * 2 * 8 * 4, 1 * 2 * 8 * 4)


def test_compression_leaves_the_module_and_keeps_its_options():
    module = mea(components=4, rope=True, norm=False, kv_heads=2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fewer = module.compress(1).module
    assert all(tensor.equal(before[name]) for name, tensor in module.state_dict().items())
    assert (fewer.kv_heads, fewer.norm, fewer.options()) == (2, False, module.options())
    assert fewer.query.equal(module.query)
    assert fewer.output.equal(module.output)


# ---------------------------------------------------------------- errors


@one_case
@pytest.mark.parametrize("heads", [0, -1, 3, 2.0])
def test_compression_to_no_such_number(heads):
    with pytest.raises(ValueError, match=rf"heads={heads}: must be an int >= 1 and <= 2, for kv_heads=2"):
        mea(components=3, kv_heads=2).compress(heads)


def test_components_below_one():
    with pytest.raises(ValueError, match="components=0: must be an int >= 1"):
        mea(components=0)


def test_the_norm_is_in_the_way():
    with pytest.raises(ValueError, match="cannot be merged: norm normalises each head before the output"):
        mea().merged()
