"""Recorded scales: powers of two that bring a target into the reach of a source."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slth.attention import MultiHeadAttention
from slth.construct import attention, linear, record_scales
from slth.construct.factors import reach
from slth.construct.relu import feed_forward, relu_reach
from slth.construct.scales import (
    record_attention_scales,
    record_feed_forward_scales,
    record_product_scale,
    scale_for,
)
from slth.models.transformer import FeedForward, LanguageModel, Product, Table, Transformer
from slth.weights import inits


def is_power_of_two(scale):
    return math.frexp(scale)[0] == 0.5


def holds(target, low, high, scale):
    """Entries at most 1/2, and within 3/4 of their reach wherever there is any."""
    return (np.abs(target) / scale <= 0.5).all() and beyond(target, low, high, scale) == 0


def beyond(target, low, high, scale):
    """What lies beyond 3/4 of reach, added up over the entries that have any."""
    room = 0.75 * np.where(target > 0, high, -low)
    return np.maximum(np.abs(target) - scale * room, 0.0)[room > 0].sum()


entries = st.floats(-1e6, 1e6, width=32)  # of 24 bits: the logarithm of a float64 just above a power of two rounds down
rooms = st.one_of(st.just(0.0), st.floats(2**-20, 2**10, width=32))


# ---------------------------------------------------------------- the rule


@given(st.data(), st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_it_doubles_the_least_that_does_while_that_pays(data, shape):
    target = data.draw(arrays(float, shape, elements=entries))
    low = -data.draw(arrays(float, shape, elements=rooms))
    high = data.draw(arrays(float, shape, elements=rooms))
    assume(target.any())
    scale, size = scale_for(target, low, high), np.abs(target).max()
    assert is_power_of_two(scale)
    assert 2 * size <= scale < 16 * size
    left = beyond(target, low, high, scale)
    if scale >= 4 * size:  # it was doubled
        assert left <= 0.7001 * beyond(target, low, high, scale / 2)
    if scale < 8 * size:  # it might have been doubled once more
        assert beyond(target, low, high, 2 * scale) >= 0.6999 * left


@given(st.integers(-300, 300))
def test_a_power_of_two_more_or_less_is_a_power_of_two_in_the_scale(exponent):
    target, low, high = np.array([[0.3, -0.9]]), np.array([[-0.4, -2.0]]), np.array([[0.1, 2.0]])
    assert scale_for(target * 2.0**exponent, low, high) == scale_for(target, low, high) * 2.0**exponent


def test_zeros_and_entries_that_no_scale_can_reach():
    low, high = np.array([-1.0, 0.0]), np.array([1.0, 1.0])
    assert scale_for(np.zeros(2), low, high) == 1
    assert scale_for(np.array([0.0, -7.0]), low, high) == 16  # no candidate below 0
    assert scale_for(np.array([0.5, -0.3]), low, high) == scale_for(np.array([0.5, 0.0]), low, high) == 1


def test_entries_just_above_a_power_of_two():
    target = np.array([512.0 * (1 + 2**-52)])
    assert holds(target, np.array([-1e9]), np.array([1e9]), scale_for(target, np.array([-1e9]), np.array([1e9])))


# ---------------------------------------------------------------- of a source


def feed_forward_pair(gain, hidden=96, d=3):
    target = FeedForward((d, d, d), dtype=torch.float64)
    with torch.no_grad():
        for weight in target.layers:
            weight *= gain
    return target, FeedForward((d, hidden, d, hidden, d), seed=1)


def attention_pair(gain, hidden=60):
    target = MultiHeadAttention(3, 2, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        target.query *= gain
        target.value *= gain
    return target, MultiHeadAttention(3, 2, 2, hidden, seed=1)


def weights(module):
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def same(one, two):
    return all(one[name].equal(two[name]) for name in one) and set(one) == set(two)


@pytest.mark.parametrize("gain", [1e-4, 1.0, 7.3, 1e5])
def test_feed_forward_scales_bring_everything_into_reach_and_touch_no_weight(gain):
    target, source = feed_forward_pair(gain)
    before = weights(source)
    record_feed_forward_scales(target, source)
    assert same(before, weights(source))
    assert source.scales[0] == source.scales[2] == 1
    for i, layer in enumerate(target.layers):
        scale = source.scales[2 * i + 1].item()
        assert is_power_of_two(scale)
        factors = (source.layers[2 * i + j].detach().double().numpy() for j in (0, 1))
        assert holds(layer.detach().numpy(), *relu_reach(*factors), scale)
    assert feed_forward(target, source).unreachable == 0


@pytest.mark.parametrize("gain", [1e-3, 1.0, 7.3, 1e4])
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("hidden", [9, 60])
def test_attention_scales_bring_everything_into_reach_and_touch_no_weight(gain, side, hidden):
    target, source = attention_pair(gain, hidden)
    before = weights(source)
    record_attention_scales(target, source, side)
    assert same(before, weights(source))
    query, key, value, output = (getattr(source, role).detach().double().numpy() for role in before)
    qk, vo = (matrices.detach().numpy() for matrices in target.merged())
    norm = source.hidden_qk**-0.5
    for h in range(2):
        low, high = reach(query[h], key[h].T)
        if hidden == 60:  # of 3 candidates, some entry has none of its sign
            assert holds(qk[h], low * norm, high * norm, source.scale_qk[h].item())
            assert holds(vo[h], *reach(value[h], output[h], side=side), source.scale_vo[h].item())
        assert is_power_of_two(source.scale_qk[h].item())
        assert is_power_of_two(source.scale_vo[h].item())
    if hidden == 60:
        assert attention(target, source, side=side).unreachable == 0


def test_heads_have_scales_of_their_own():
    target, source = attention_pair(1.0)
    with torch.no_grad():
        target.value[1] *= 64
    record_attention_scales(target, source)
    assert source.scale_vo[1] >= 16 * source.scale_vo[0]


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_product_gets_a_scale(side):
    wanted = 30 * inits.normal((9, 3), 1.0, seed=0, name="wanted").double()
    source = Product(9, 3, 180, seed=1, name="x", dtype=torch.float32)
    before = weights(source)
    record_product_scale(wanted, source, side)
    assert same(before, weights(source))
    first, second = (source.get_parameter(name).detach().double().numpy() for name in ("first", "second"))
    assert holds(wanted.numpy(), *reach(first, second, side=side), source.scale.item())
    assert not linear((wanted / source.scale).numpy(), first, second, side=side).unreachable


def test_scales_change_masks_and_errors_not_weights():
    """A target 40 times too large: out of reach without a scale, within 1 % with one."""
    target, source = feed_forward_pair(40, hidden=120)
    plain, scaled = copy.deepcopy(source), source
    record_feed_forward_scales(target, scaled)
    assert same(weights(plain), weights(scaled))
    before, after = feed_forward(target, plain), feed_forward(target, scaled)
    assert any(not mask.equal(after.masks[name]) for name, mask in before.masks.items())
    assert before.unreachable > 0
    for layer, wrong, right in zip(target.layers, before.errors.values(), after.errors.values(), strict=True):
        size = layer.abs().max()
        assert wrong.abs().max() > 0.5 * size
        assert right.abs().max() < 0.01 * size


def test_recording_again_changes_nothing():
    for record, (target, source) in (
        (record_feed_forward_scales, feed_forward_pair(40)),
        (record_attention_scales, attention_pair(40)),
    ):
        record(target, source)
        once = copy.deepcopy(source.state_dict())
        record(target, source)
        assert all(tensor.equal(once[name]) for name, tensor in source.state_dict().items())
        assert any((tensor != 1).any() for name, tensor in once.items() if "scale" in name)


def test_scales_of_the_target_are_part_of_it():
    target, source = feed_forward_pair(1.0)
    larger, other = feed_forward_pair(1.0)
    larger.scales.fill_(16)
    record_feed_forward_scales(target, source)
    record_feed_forward_scales(larger, other)
    assert other.scales[1::2].equal(16 * source.scales[1::2])


def test_few_candidates_do_not_blow_up_the_scale():
    """6 candidates per half: the ticket is not much worse than with the scale of the largest entry alone."""

    def error(scale):
        source.scales[1] = scale
        return next(iter(feed_forward(target, source).errors.values())).norm()

    target, source = FeedForward((16, 16), dtype=torch.float64), FeedForward((16, 16 * 2 * 6, 16), seed=1)
    record_feed_forward_scales(target, source)
    assert error(source.scales[1].item()) < 1.5 * error(2.0 * target.layers[0].abs().max().item())


def test_a_scale_of_the_first_layer_of_a_pair_counts_as_well():
    target, source = feed_forward_pair(1.0)
    source.scales[0] = 2.0**-6
    record_feed_forward_scales(target, source)
    assert feed_forward(target, source).unreachable == 0


# ---------------------------------------------------------------- of a whole model


def language_model(product, seed, hidden=40):
    def matrix(rows, columns, name):
        if product:
            return Product(rows, columns, 8 * min(rows, columns), seed=seed, name=name, dtype=torch.float64)
        return Table(rows, columns, std=5.0, seed=seed, name=name, dtype=torch.float64)

    widths = () if not product else (hidden,)
    model = Transformer(3, 2, 1, 4 if not product else hidden, widths, norm=True, seed=seed, dtype=torch.float64)
    return LanguageModel(matrix(7, 3, "embedding"), matrix(5, 3, "positions"), model, matrix(3, 7, "head"))


def test_a_language_model_has_all_of_its_scales_recorded():
    target, source = language_model(False, 0), language_model(True, 1)
    before = weights(source)
    record_scales(target, source)
    assert same(before, weights(source))
    for name in ("embedding", "positions", "head"):
        assert getattr(source, name).scale > 2  # entries of 5 sigma: far from 1
    alone = language_model(True, 1).transformer
    record_scales(target.transformer, alone)
    state = source.transformer.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in alone.state_dict().items())
    names = {name for name, tensor in state.items() if "scale" in name and (tensor != 1).any()}
    assert {name.partition(".attention")[0].partition(".feed")[0] for name in names} == {"blocks.0", "blocks.1"}


def test_what_belongs_to_different_kinds_is_refused():
    target = language_model(False, 0)
    with pytest.raises(ValueError, match="target LanguageModel and source Transformer: must be both"):
        record_scales(target, target.transformer)


def test_models_that_do_not_fit_are_refused_before_any_change():
    def refused(target, source, message):
        before = copy.deepcopy(source.state_dict())
        with pytest.raises(ValueError, match=message):
            record_scales(target, source)
        assert all(
            tensor.equal(before[name]) for name, tensor in source.state_dict().items() if tensor.isfinite().all()
        )

    target, model = language_model(False, 0), Transformer
    refused(target.transformer, model(3, 1, 1, 40, (40,), norm=True, seed=1), "blocks: target has 2, source 1")
    refused(target.transformer, model(3, 2, 3, 40, (40,), norm=True, seed=1), "heads: target has 1, source 3")
    refused(target.transformer, model(3, 2, 1, 40, (), norm=True, seed=1), "must have twice the target's 1")
    refused(target.transformer, model(4, 2, 1, 40, (40,), norm=True, seed=1), "d: target has 3, source 4")
    other = language_model(True, 1)
    other.head = Product(3, 8, 24, seed=1, name="head", dtype=torch.float64)
    refused(target, other, r"source head is \(3, 8\): must be \(3, 7\)")
    with torch.no_grad():
        target.transformer.blocks[1].feed_forward.layers[0][0, 0] = torch.inf
    refused(target, language_model(True, 1), "target layer 0 holds NaN")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_target_that_is_not_finite(bad):
    with pytest.raises(ValueError, match="NaN"):
        scale_for(np.array([bad, 1.0]), -np.ones(2), np.ones(2))


def test_attention_scales_are_in_units_of_the_theory_init():
    """At most two doublings above the least power of two, whatever the source's width: n_K must not enter."""
    target = MultiHeadAttention(8, 8, 2, 4, init="xavier_uniform", seed=1, dtype=torch.float64)
    for hidden in (8 * 24, 8 * 96):
        source = MultiHeadAttention(8, 8, 2, hidden, seed=2, dtype=torch.float64)
        record_attention_scales(target, source)
        for matrix, scale in zip(target.merged(), (source.scale_qk, source.scale_vo), strict=True):
            largest = matrix.detach().abs().amax((-2, -1)) / scale
            assert (largest <= 0.5).all()
            assert (largest > 0.5 / 8).all()
