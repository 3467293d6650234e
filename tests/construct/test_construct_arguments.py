"""Every public function of slth.construct says alike what it cannot take, and takes any dtype and layout."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import random_target
from tables import one_case
from torch import nn

import slth
from slth.attention import GroupedQueryAttention, LinearKnockingHeads, MultiHeadAttention
from slth.construct import attention, certificate, language_model, linear, subset_sum, transformer, variant
from slth.construct.copies import double
from slth.construct.projections import projections
from slth.construct.relu import feed_forward, relu_linear
from slth.construct.scales import record_attention_scales, record_feed_forward_scales
from slth.models.transformer import FeedForward, LanguageModel, Table, Transformer


def gqa(seed, hidden=12, **options):
    return GroupedQueryAttention(2, 2, 2, hidden, seed=seed, **options)


def knocking(hidden=4, **options):
    return LinearKnockingHeads(2, 2, 2, hidden, shared_width=16, mixing_init="theory", **options)


def model(hidden, seed, ff_widths=(12,)):
    tables = [
        Table(*size, std=1.0, seed=seed, name=name, dtype=torch.float32)
        for size, name in (((5, 2), "e"), ((4, 2), "p"), ((2, 5), "h"))
    ]
    return LanguageModel(tables[0], tables[1], Transformer(2, 1, 1, hidden, ff_widths, seed=seed), tables[2])


def mha(seed, hidden=12):
    return MultiHeadAttention(2, 2, 2, hidden, seed=seed)


#: name -> (function of target and source, a target, a source)
FUNCTIONS = {
    "attention": (attention, mha(1, 3), mha(2)),
    "variant": (variant, mha(1, 3), gqa(2)),
    "variant, shared_width": (variant, gqa(1, 4), knocking()),
    "projections": (projections, gqa(1, 4), knocking()),
    "record_attention_scales": (record_attention_scales, mha(1, 3), mha(2)),
    "feed_forward": (feed_forward, FeedForward((2, 2), seed=1), FeedForward((2, 12, 2), seed=2)),
    "record_feed_forward_scales": (
        record_feed_forward_scales,
        FeedForward((2, 2), seed=1),
        FeedForward((2, 12, 2), seed=2),
    ),
    "transformer": (transformer, Transformer(2, 1, 1, 3, (), seed=1), Transformer(2, 1, 1, 12, (12,), seed=2)),
    "language_model": (
        language_model,
        model(3, 1, ff_widths=()),
        model(12, 2),
    ),
    "certificate": (lambda t, s: certificate(t, s, 1.0), mha(1), mha(2)),
}
each = pytest.mark.parametrize("name", FUNCTIONS)
each_label = pytest.mark.parametrize("label", ["target", "source"])


@pytest.fixture(autouse=True)
def no_work(monkeypatch, request):
    """Refusals come before any work."""
    if "works" not in request.node.name:
        monkeypatch.setattr(subset_sum, "solve", lambda *a, **k: pytest.fail("a subset sum was solved"))


def refused(name, error, match, **given):
    """Call the function with other arguments; nothing that it is given changes."""
    function, target, source = FUNCTIONS[name]
    modules = {"target": copy.deepcopy(target), "source": copy.deepcopy(source)} | given
    states = {k: copy.deepcopy(m.state_dict()) for k, m in modules.items() if isinstance(m, nn.Module)}
    with pytest.raises(error, match=match):
        function(modules["target"], modules["source"])
    for key, state in states.items():
        after = modules[key].state_dict()
        assert all(torch.equal(after[k].nan_to_num(), v.nan_to_num()) for k, v in state.items())


OTHERS = [nn.Linear(2, 2), nn.MultiheadAttention(2, 2), MultiHeadAttention, FeedForward, Transformer, 3, None]


@one_case
@each
@each_label
def test_what_is_no_instance_of_what_is_allowed(name, label):
    for other in OTHERS:
        refused(name, TypeError, f"{label}.*must be ", **{label: other})


@one_case
@each
@each_label
def test_what_is_wrapped_is_to_be_unwrapped_first(name, label):
    wrapped = slth.wrap(copy.deepcopy(FUNCTIONS[name][1 if label == "target" else 2]), keep=0.5, seed=0)
    with pytest.raises(ValueError, match=rf"{label}.*is wrapped or has parametrizations: take them off first"):
        FUNCTIONS[name][0](*({"target": FUNCTIONS[name][1], "source": FUNCTIONS[name][2]} | {label: wrapped}).values())


@one_case
@each
@each_label
def test_weights_and_scales_that_are_not_finite(name, label):
    broken = copy.deepcopy(FUNCTIONS[name][1 if label == "target" else 2])
    tensors = [*broken.parameters(), *(b for b in broken.buffers() if b.is_floating_point())]
    if name == "language_model":  # tables are shared, not solved for
        tensors = list(broken.transformer.parameters())
    for tensor, bad in zip(tensors, itertools.cycle((math.nan, math.inf)), strict=False):
        before = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[0] = bad
        refused(name, ValueError, f"{label} .*NaN or infinite values", **{label: broken})
        with torch.no_grad():
            tensor.copy_(before)


@one_case
@each
@each_label
def test_weights_without_values(name, label):
    meta = copy.deepcopy(FUNCTIONS[name][1 if label == "target" else 2]).to("meta")
    with pytest.raises(ValueError, match=f"{label}.* is on the device meta: must hold values"):
        FUNCTIONS[name][0](*({"target": FUNCTIONS[name][1], "source": FUNCTIONS[name][2]} | {label: meta}).values())


def test_a_source_that_is_the_target_would_change_it():
    same = mha(0)
    with pytest.raises(ValueError, match="source weight 'query' is the target's 'query': must be its own"):
        attention(same, same)
    grouped, shared = gqa(0), gqa(1)
    shared.output = grouped.output
    with pytest.raises(ValueError, match="source weight 'output' is the target's 'output'"):
        variant(grouped, shared)


@pytest.mark.parametrize("name", ["variant", "variant, shared_width", "projections"])
def test_causal_is_alike(name):
    source = copy.deepcopy(FUNCTIONS[name][2])
    source.causal = True
    refused(name, ValueError, "causal: target has False, source True; they must be equal", source=source)


@one_case
@pytest.mark.parametrize("call", [attention, variant], ids=["attention", "variant"])
@pytest.mark.parametrize(
    "options", [{"alpha": "2"}, {"alpha": True}, {"threads": 0}, {"threads": 1.5}, {"threads": "2"}]
)
def test_options_of_another_type(call, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        call(mha(1, 3), mha(2) if call is attention else gqa(2), **options)


def test_a_target_that_does_not_merge_is_named():
    with pytest.raises(ValueError, match="target: GroupedQueryAttention cannot be merged: rope turns"):
        variant(gqa(1, rope=True), gqa(2))


def test_products_beyond_float64():
    target, source = mha(1).double(), mha(2).double()
    with torch.no_grad():
        source.query *= 1e200
        source.key *= 1e200
    with pytest.raises(ValueError, match="source holds NaN or infinite values in W_QK"):
        attention(target, source)
    with torch.no_grad():
        target.value *= 1e200
        target.output *= 1e200
    with pytest.raises(ValueError, match="target holds NaN or infinite values in W_VO"):
        attention(target, mha(2))
    huge = np.full((2, 8), 1e200)
    with pytest.raises(ValueError, match="first and second reach"):
        linear(np.ones((2, 2)), huge, huge.T)


def test_sums_beyond_float64():
    with pytest.raises(ValueError, match="add up to more than float64 holds"):
        solve_for_real(np.full((1, 8), 1e308), np.zeros(1))


solve_for_real = subset_sum.solve


def test_a_scale_that_cannot_be_stored_or_divided_by():
    target, source = mha(1).double(), mha(2)
    with torch.no_grad():
        target.query *= 1e50
    before = copy.deepcopy(source.state_dict())
    with pytest.raises(ValueError, match=r"scale_qk=.*torch.float32 cannot hold it"):
        record_attention_scales(target, source)
    assert all(tensor.equal(before[name]) for name, tensor in source.state_dict().items())
    source.scale_vo[1] = 0.0
    with pytest.raises(ValueError, match="source buffer 'scale_vo' holds 0"):
        attention(mha(1), source)


@one_case
@pytest.mark.parametrize("value", [[[1.0, 1j]], "abc", [[1.0], [1.0, 2.0]], 1.0, [1.0], torch.ones(2, 2) * 1j, None])
def test_arrays_that_are_none(value):
    good = np.ones((2, 8)), np.ones((8, 2))
    for function in (linear, relu_linear):
        with pytest.raises(ValueError, match="target"):
            function(value, *good)


def test_works_for_tensors_and_arrays_alike():
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(2, 2)), rng.uniform(-1, 1, (2, 8)), rng.uniform(-1, 1, (8, 2))
    one = linear(*arrays)
    two = linear(*(torch.from_numpy(a).requires_grad_() for a in arrays))
    three = linear(*(np.asfortranarray(a) for a in arrays))
    for other in (two, three):
        assert (one.mask_second == other.mask_second).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_works_for_targets_of_any_dtype_and_layout(dtype):
    target = random_target(2, 2, 2).to(dtype)
    source = mha(2)
    ticket = attention(target, source)
    plain = attention(copy.deepcopy(target).double(), source)
    assert all(mask.equal(plain.masks[role]) for role, mask in ticket.masks.items())
    with torch.no_grad():
        for module in (target, source):
            for role in ("query", "key", "value", "output"):
                weight = getattr(module, role)
                weight.data = weight.data.mT.contiguous().mT
    strided = attention(target, source)
    assert all(mask.equal(plain.masks[role]) for role, mask in strided.masks.items())
    strided.prune(source)
    assert all((getattr(source, role)[~mask] == 0).all() for role, mask in strided.masks.items())


def test_works_and_prune_says_what_it_cannot_prune():
    ticket = attention(mha(1, 3), mha(2))
    with pytest.raises(TypeError, match=r"source=Linear.*must be an attention"):
        ticket.prune(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"source weight 'query' of shape .*: must be \(2, 2, 12\), the mask's"):
        ticket.prune(mha(2, 13))
    with pytest.raises(ValueError, match="source is wrapped"):
        ticket.prune(slth.wrap(mha(2), keep=0.5, seed=0))


def test_a_double_is_tied_where_the_module_is():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[1].weight = net[0].weight
    net.append(net[0])
    twin = double(net)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert twin[1].weight is twin[0].weight
    assert twin[3] is twin[0]
    for name, tensor in net.state_dict().items():
        copied = twin.state_dict()[name]
        assert copied.equal(tensor.double() if tensor.is_floating_point() else tensor)
        assert copied.data_ptr() != tensor.data_ptr()
