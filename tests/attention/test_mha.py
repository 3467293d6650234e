import copy

import pytest
import torch
from helpers import causal_mask, direct_attention, random_inputs, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case

from slth.attention import MultiHeadAttention, attend, merged_attention, mha
from slth.weights import inits

ROLES = ("query", "key", "value", "output")
F64 = {"init": "xavier_uniform", "dtype": torch.float64}
small = st.integers(1, 4)
few = settings(max_examples=40)


def scales(heads):
    """None but 1, or a power of two for each head."""
    powers = st.lists(st.sampled_from([0.25, 1.0, 4.0]), min_size=heads, max_size=heads)
    return st.one_of(st.just([1.0] * heads), powers)


@st.composite
def problems(draw):
    """A float64 module, inputs (batch, T, d_in) and a mask of one of the kinds that are allowed, or None."""
    d_in, heads, length = draw(small), draw(small), draw(st.integers(1, 6))
    widths = {"hidden_qk": draw(st.integers(1, 9)), "hidden_vo": draw(st.integers(1, 9))}
    seed = draw(st.integers(0, 2**32 - 1))
    init = draw(st.sampled_from(["theory", "xavier_uniform", "kaiming_normal"]))
    module = MultiHeadAttention(d_in, draw(small), heads, 1, seed=seed, init=init, dtype=torch.float64, **widths)
    module.scale_qk.copy_(torch.tensor(draw(scales(heads))))
    module.scale_vo.copy_(torch.tensor(draw(scales(heads))))
    batch = draw(st.lists(st.integers(1, 3), max_size=3))
    x = random_inputs(seed, *batch, length, d_in, norm=2.0)
    masks = {
        "none": None,
        "full": torch.ones(length, length, dtype=torch.bool),
        "causal": causal_mask(length),
        "any": random_mask(seed, length, length),
        "batch": random_mask(seed, *batch, length, length),
        "keys": random_mask(seed, *batch, 1, length),  # the same for each query, as for padded tokens
        "row": random_mask(seed, 1, length),
    }
    return module, x, masks[draw(st.sampled_from(list(masks)))]


@given(problems())
def test_equals_torch_attention_head_by_head(problem):
    module, x, mask = problem
    expected = direct_attention(module, x, mask)
    assert module(x, mask).shape == expected.shape == (*x.shape[:-1], module.d_out)
    assert torch.allclose(module(x, mask), expected, rtol=1e-12, atol=1e-12)


@given(problems())
@few
def test_merged_and_direct_routes_agree(problem):
    module, x, mask = problem
    assert torch.allclose(merged_attention(x, *module.merged(), mask), module(x, mask), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("d_in", "hidden", "length"), [(2, 40, 512), (32, 8, 65), (16, 256, 257)])
def test_larger_sizes(d_in, hidden, length):
    module = MultiHeadAttention(d_in, 5, 3, hidden, **F64)
    x = random_inputs(0, 2, length, d_in, norm=d_in**0.5)
    for mask in (None, causal_mask(length), random_mask(1, length, length)):
        assert torch.allclose(module(x, mask), direct_attention(module, x, mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("d_in", "hidden_qk", "hidden_vo", "width_qk", "width_v"),
    [(4, 4, 4, 4, 4), (4, 5, 5, 4, 3), (4, 3, 9, 3, 3), (4, 9, 2, 4, 2)],
)
def test_factors_wider_than_the_input_are_merged(d_in, hidden_qk, hidden_vo, width_qk, width_v, monkeypatch):
    seen = []

    def recorded(q, k, v, mask):
        seen.append((q.shape[-1], k.shape[-1], v.shape[-1]))
        return attend(q, k, v, mask)

    monkeypatch.setattr(mha, "attend", recorded)
    module = MultiHeadAttention(d_in, 3, 2, 1, hidden_qk=hidden_qk, hidden_vo=hidden_vo, **F64)
    module(random_inputs(0, 5, d_in))
    assert seen == [(width_qk, width_qk, width_v)]


# ---------------------------------------------------------------- what attention is


@given(problems(), st.data())
@few
def test_causal_outputs_do_not_know_the_future(problem, data):
    module, x, _ = problem
    length = x.shape[-2]
    now = data.draw(st.integers(0, length - 1))
    changed = x.clone()
    changed[..., now + 1 :, :] += 1.0
    before, after = (module(tokens, causal_mask(length))[..., : now + 1, :] for tokens in (x, changed))
    assert torch.allclose(before, after, rtol=1e-12, atol=1e-12)


@given(problems())
@few
def test_a_lone_token_passes_through_value_and_output(problem):
    module, x, _ = problem
    x = x[..., :1, :]
    assert torch.allclose(module(x), x @ module.merged()[1].sum(0), rtol=1e-12, atol=1e-12)


@given(problems())
@few
def test_a_mask_of_the_diagonal_makes_every_token_lone(problem):
    module, x, _ = problem
    diagonal = torch.eye(x.shape[-2], dtype=torch.bool)
    assert torch.allclose(module(x, diagonal), x @ module.merged()[1].sum(0), rtol=1e-12, atol=1e-12)


@given(problems(), st.randoms(use_true_random=False))
@few
def test_unmasked_tokens_may_stand_in_any_order(problem, random):
    module, x, _ = problem
    order = list(range(x.shape[-2]))
    random.shuffle(order)
    assert torch.allclose(module(x[..., order, :]), module(x)[..., order, :], rtol=1e-12, atol=1e-12)


@given(problems())
@few
def test_merged_is_the_product_of_the_factors(problem):
    module, _, _ = problem
    qk, vo = module.merged()
    query, key, value, output = (getattr(module, role) for role in ROLES)
    expected = torch.einsum("hin,hjn->hij", query, key) * module.hidden_qk**-0.5
    assert torch.allclose(qk, expected * module.scale_qk[:, None, None], rtol=1e-12, atol=1e-12)
    expected = torch.einsum("hin,hno->hio", value, output)
    assert torch.allclose(vo, expected * module.scale_vo[:, None, None], rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- weights


def test_weights_are_the_named_streams_of_inits():
    module = MultiHeadAttention(3, 2, 4, 16, hidden_vo=5, seed=9)
    assert {role: tuple(weight.shape) for role, weight in module.named_parameters()} == {
        "query": (4, 3, 16),
        "key": (4, 3, 16),
        "value": (4, 3, 5),
        "output": (4, 5, 2),
    }
    for role, scale in {"query": 2.0, "key": 2.0, "value": 1.0, "output": 1.0}.items():  # 16^(1/4) = 2
        weight = getattr(module, role)
        assert weight.equal(inits.uniform(weight.shape, scale, seed=9, name=role))


def test_xavier_is_scaled_by_each_factors_own_fans():
    module = MultiHeadAttention(3, 2, 4, 16, hidden_vo=5, seed=9, init="xavier_uniform")
    for role, fans in {"query": 3 + 16, "key": 3 + 16, "value": 3 + 5, "output": 5 + 2}.items():
        weight = getattr(module, role)
        assert weight.equal(inits.uniform(weight.shape, (6 / fans) ** 0.5, seed=9, name=role))


@one_case
@pytest.mark.parametrize("init", list(inits.INITS))
def test_float64_weights_are_the_float32_ones(init):
    single, double = (
        MultiHeadAttention(3, 2, 2, 7, seed=4, init=init, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    for role in ROLES:
        narrow, wide = getattr(single, role), getattr(double, role)
        assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
        assert wide.equal(narrow.double())


def test_prefix_names_the_streams():
    module = MultiHeadAttention(3, 2, 2, 7, seed=4, prefix="block.0.")
    for role in ROLES:
        weight = getattr(module, role)
        scale = 7**0.25 if role in ("query", "key") else 1.0
        assert weight.equal(inits.uniform(weight.shape, scale, seed=4, name=f"block.0.{role}"))


def test_scales_are_one_until_recorded():
    module = MultiHeadAttention(3, 2, 4, 7)
    assert module.scale_qk.equal(torch.ones(4))
    assert module.scale_vo.equal(torch.ones(4))


def test_seed_decides_every_weight():
    a, same, b = (MultiHeadAttention(3, 2, 2, 7, seed=seed) for seed in (1, 1, 2))
    for role in ROLES:
        assert getattr(a, role).equal(getattr(same, role))
        assert not torch.isclose(getattr(a, role), getattr(b, role)).all(dim=-1).any()


@pytest.mark.parametrize("hidden", [3, 40])
def test_float32_is_near_float64(hidden):
    module = MultiHeadAttention(4, 3, 2, hidden, init="xavier_uniform")
    x = random_inputs(0, 2, 9, 4)
    out = module(x.float())
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), copy.deepcopy(module).double()(x), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- gradients


@given(problems())
@few
def test_gradients_equal_those_of_the_direct_form(problem):
    module, x, mask = problem
    x.requires_grad_()
    inputs = [x, *(getattr(module, role) for role in ROLES)]
    ours = torch.autograd.grad(module(x, mask).square().sum(), inputs)
    factors = [getattr(module, role) for role in ROLES]
    scale = module.scale_qk * module.hidden_qk**-0.5
    logits = torch.einsum("...id,hdn,hen,...je,h->...hij", x, factors[0], factors[1], x, scale)
    if mask is not None:
        mask = mask.unsqueeze(-3) if mask.dim() > 2 else mask
        logits = logits.masked_fill(~mask, -torch.inf)
    terms = (logits.softmax(-1), x, factors[2], factors[3], module.scale_vo)
    theirs = torch.einsum("...hij,...jd,hdn,hno,h->...io", *terms)
    for mine, other in zip(ours, torch.autograd.grad(theirs.square().sum(), inputs), strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("hidden", [2, 9])
def test_every_weight_gets_a_gradient(hidden):
    module = MultiHeadAttention(3, 2, 2, hidden)
    module(random_inputs(0, 2, 5, 3).float()).square().sum().backward()
    for weight in module.parameters():
        assert weight.grad.isfinite().all()
        assert (weight.grad != 0).all()


# ---------------------------------------------------------------- errors


def module_3():
    return MultiHeadAttention(3, 2, 2, 4, dtype=torch.float64)


@pytest.mark.parametrize("row", [0, 2, 3])  # to which others attend; to the last of a causal text none does: padding
def test_mask_row_without_a_true_is_named(row):
    mask = causal_mask(5)
    mask[row] = False
    with pytest.raises(ValueError, match=rf"mask row \({row},\) has no True"):
        module_3()(random_inputs(0, 2, 5, 3), mask)
    batch = torch.stack([causal_mask(5), mask])
    with pytest.raises(ValueError, match=rf"mask row \(1, {row}\) has no True"):
        module_3()(random_inputs(0, 2, 5, 3), batch)
    with pytest.raises(ValueError, match="has no True"):
        merged_attention(random_inputs(0, 2, 5, 3), *module_3().merged(), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_mask_must_be_boolean(dtype):
    with pytest.raises(ValueError, match=f"mask of dtype {dtype}: must be torch.bool"):
        module_3()(random_inputs(0, 5, 3), causal_mask(5).to(dtype))


@pytest.mark.parametrize("width", [2, 4])
def test_inputs_of_another_width(width):
    with pytest.raises(ValueError, match=f"x of width {width}: must be d_in=3"):
        module_3()(random_inputs(0, 5, width))


@one_case
@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["d_in", "d_out", "heads", "hidden_qk", "hidden_vo"])
def test_dimensions_below_one(name, value):
    dims = {"d_in": 3, "d_out": 2, "heads": 2, "hidden": 4}
    with pytest.raises(ValueError, match=f"{name}={value}: must be an int >= 1"):
        MultiHeadAttention(**dims | {name: value})


def test_hidden_below_one():
    with pytest.raises(ValueError, match=r"hidden.*=0: must be an int >= 1"):
        MultiHeadAttention(3, 2, 2, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_dtypes(dtype):
    with pytest.raises(ValueError, match=f"dtype={dtype}: must be torch.float32 or torch.float64"):
        MultiHeadAttention(3, 2, 2, 4, dtype=dtype)


def test_unknown_init():
    with pytest.raises(ValueError, match="init='glorot': must be one of theory"):
        MultiHeadAttention(3, 2, 2, 4, init="glorot")


def test_print_shows_the_dimensions():
    shown = repr(MultiHeadAttention(3, 2, 4, 16, hidden_vo=5))
    assert all(part in shown for part in ("d_in=3", "d_out=2", "heads=4", "hidden_qk=16", "hidden_vo=5"))
