"""ReLU networks hidden in random ones: Lemma 2 and Theorem 10."""

import copy
import itertools

import numpy as np
import pytest
import torch
from helpers import brute_force
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slth.construct import pruned
from slth.construct.relu import _share_out, feed_forward, relu_linear, relu_reach
from slth.models.transformer import FeedForward
from slth.weights import inits

#: (d_in, d_out, hidden): 1 to 10 candidates per half, remainders, other widths out than in.
CASES = [(1, 1, 8), (2, 2, 4), (2, 3, 23), (3, 1, 25), (3, 3, 60), (4, 2, 33)]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def uniform(seed, *shape):
    return inits.uniform(shape, 1.0, seed=seed, name="test").double().numpy()


def problem(case, seed=0):
    """A target with entries in [-1/2, 1/2], and two random factors."""
    d_in, d_out, hidden = case
    return uniform(seed, d_in, d_out) / 2, uniform(seed + 100, d_in, hidden), uniform(seed + 200, hidden, d_out)


def maps(first, second, ticket):
    """P and N (d_in, d_out): what the pruned network makes of the positive and negative part of an input."""
    first, second = first * ticket.mask_first, second * ticket.mask_second
    return np.maximum(first, 0) @ second, np.maximum(-first, 0) @ second


def networks(widths, hidden, seed=0):
    """A float64 target whose layers have spectral norm 1, and a source with `hidden` units in front of each layer."""
    target = FeedForward(widths, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        for weight in target.layers:
            weight /= torch.linalg.matrix_norm(weight, ord=2)
    inside = [width for pair in zip(widths[:-1], [hidden] * (len(widths) - 1), strict=True) for width in pair]
    return target, FeedForward([*inside, widths[-1]], seed=seed + 100)


def signed_inputs(d, seed=0, count=50):
    """Inputs of norm 1 (positive, negative and mixed), the coordinate vectors, and 0."""
    x = np.random.default_rng(seed).normal(size=(count, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return torch.from_numpy(np.concatenate((np.abs(x), -np.abs(x), x, np.eye(d), -np.eye(d), np.zeros((1, d)))))


def norms(x):
    return torch.linalg.vector_norm(x.detach(), dim=-1)


# ---------------------------------------------------------------- the units are shared out


def most_that_can_be_given(positive, size):
    """Oracle: units given to halves by augmenting paths, `size` places in each of the 2 d_in halves."""
    d_in, hidden = positive.shape
    holders = {}  # place -> unit

    def place(unit, seen):
        for j, k in itertools.product(range(d_in), range(size)):
            spot = (bool(positive[j, unit]), j, k)
            if spot not in seen:
                seen.add(spot)
                if spot not in holders or place(holders[spot], seen):
                    holders[spot] = unit
                    return True
        return False

    return sum(place(unit, set()) for unit in range(hidden))


@settings(max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 4), st.integers(2, 20))))
def test_units_are_shared_out_once_by_sign_and_as_many_as_can_be(positive):
    d_in, hidden = positive.shape
    size = hidden // (2 * d_in)
    units = _share_out(positive, size)
    assert units.shape == (2, d_in, size)
    given_out = units[units >= 0]
    assert len(set(given_out.tolist())) == given_out.size  # no unit twice
    for half, j in np.ndindex(2, d_in):
        taken = units[half, j][units[half, j] >= 0]
        assert (positive[j, taken] == (half == 0)).all()
    assert given_out.size == most_that_can_be_given(positive, size)


@pytest.mark.parametrize(("d_in", "hidden"), [(3, 60), (8, 64), (8, 70), (16, 160)])
def test_every_half_gets_its_full_share_of_random_units(d_in, hidden):
    for seed in range(5):
        units = _share_out(uniform(seed, d_in, hidden) > 0, hidden // (2 * d_in))
        assert (units >= 0).all()


# ---------------------------------------------------------------- Lemma 2


@each_case
def test_each_unit_listens_to_one_coordinate_and_each_half_gets_its_share(case):
    d_in, _, hidden = case
    target, first, second = problem(case, seed=3)
    ticket = relu_linear(target, first, second)
    assert (ticket.mask_first.dtype, ticket.mask_first.shape) == (bool, first.shape)
    assert (ticket.mask_second.dtype, ticket.mask_second.shape) == (bool, second.shape)
    listening = ticket.mask_first.sum(axis=0)
    assert listening.max() == 1
    assert not ticket.mask_second[listening == 0].any()  # nothing is kept of a unit that hears nothing
    shares = [(ticket.mask_first & sign).sum(axis=1) for sign in (first > 0, first < 0)]
    assert np.max(shares) <= hidden // (2 * d_in)
    assert ticket.candidates == np.min(shares)


@each_case
def test_each_entry_is_the_best_subset_of_its_half(case):
    target, first, second = problem(case, seed=3)
    ticket = relu_linear(target, first, second)
    positive, negative = maps(first, second, ticket)
    for (half, sign), (j, o) in itertools.product(enumerate((1, -1)), np.ndindex(target.shape)):
        units = np.flatnonzero(ticket.mask_first[j] & (sign * first[j] > 0))
        products = first[j, units] * second[units, o]
        masks, sums, _ = brute_force(products[None], target[None, j, o])
        assert (ticket.mask_second[units, o] == masks[0]).all()
        achieved = positive[j, o] if sign == 1 else -negative[j, o]
        assert achieved == pytest.approx(sums[0], abs=1e-15)
        low, high = np.minimum(products, 0).sum(), np.maximum(products, 0).sum()
        assert ticket.unreachable[half, j, o] == (not low <= target[j, o] <= high)


@each_case
def test_positive_and_negative_parts_pass_through_their_own_maps(case):
    """ReLU(x first) second = x+ P + x- N."""
    target, first, second = problem(case)
    ticket = relu_linear(target, first, second)
    positive, negative = maps(first, second, ticket)
    for x in signed_inputs(case[0]).numpy():
        got = np.maximum(x @ (first * ticket.mask_first), 0) @ (second * ticket.mask_second)
        assert np.allclose(got, np.maximum(x, 0) @ positive + np.maximum(-x, 0) @ negative, rtol=0, atol=1e-14)


def test_wide_enough_it_is_the_target():
    """20 candidates per half."""
    target, first, second = problem((2, 3, 80))
    ticket = relu_linear(target, first, second)
    positive, negative = maps(first, second, ticket)
    assert ticket.candidates == 20
    assert not ticket.unreachable.any()
    assert np.abs(positive - target).max() < 1e-4
    assert np.abs(negative + target).max() < 1e-4


def test_error_falls_with_the_candidates():
    def median_error(hidden):
        maps_of = [maps(*problem((2, 2, hidden), s)[1:], relu_linear(*problem((2, 2, hidden), s))) for s in range(6)]
        targets = [problem((2, 2, hidden), s)[0] for s in range(6)]
        return np.median([np.abs(p - t).max() for (p, _), t in zip(maps_of, targets, strict=True)])

    errors = [median_error(hidden) for hidden in (8, 40, 80)]
    assert errors[0] > 20 * errors[1] > 400 * errors[2]


def test_a_target_of_zeros_keeps_nothing_of_the_second_layer():
    _, first, second = problem((3, 2, 30))
    ticket = relu_linear(np.zeros((3, 2)), first, second)
    assert not ticket.mask_second.any()
    assert not ticket.unreachable.any()


@pytest.mark.parametrize("target", [np.outer([0.5, -0.3, 0.1], [0.4, 0.9]), np.diag([0.5, 0.0, 0.0])[:, :2]])
def test_a_rank_deficient_target(target):
    _, first, second = problem((3, 2, 96), seed=4)
    positive, negative = maps(first, second, relu_linear(target, first, second))
    assert np.abs(positive - target).max() < 1e-3
    assert np.abs(negative + target).max() < 1e-3
    assert (positive[target == 0] == 0).all()


def test_a_half_without_units_stays_empty_and_says_so():
    """d_in = 1 and all weights positive: nothing hears a negative input."""
    first, second = np.abs(uniform(1, 1, 20)), uniform(2, 20, 2)
    target = np.array([[0.3, -0.4]])
    ticket = relu_linear(target, first, second)
    positive, negative = maps(first, second, ticket)
    assert ticket.candidates == 0
    assert ticket.unreachable.tolist() == [[[False, False]], [[True, True]]]
    assert np.abs(positive - target).max() < 0.05
    assert (negative == 0).all()
    assert ticket.mask_first.sum() == 10


def test_a_half_with_too_few_units_makes_the_best_of_them():
    first = np.concatenate((np.abs(uniform(1, 1, 18)), -np.abs(uniform(2, 1, 2))), axis=1)
    ticket = relu_linear(np.array([[0.2]]), first, uniform(3, 20, 1))
    assert ticket.candidates == 2
    assert (ticket.mask_first & (first > 0)).sum() == 10
    assert (ticket.mask_first & (first < 0)).sum() == 2


def test_reach_is_that_of_both_halves():
    """Inside (low, high) nothing is out of reach; a hair outside, one half or the other is."""
    _, first, second = problem((3, 2, 38), seed=5)
    low, high = relu_reach(first, second)
    assert (low <= 0).all()
    assert (high >= 0).all()
    for edge, outwards in ((low, -1e-9), (high, 1e-9)):
        assert not relu_linear(edge * (1 - 1e-9), first, second).unreachable.any()
        assert relu_linear(edge + outwards, first, second).unreachable.any(axis=0).all()


# ---------------------------------------------------------------- Theorem 10


@pytest.mark.parametrize(("widths", "hidden"), [((2, 2), 21), ((3, 4, 2), 40), ((2, 3, 2, 2), 48)])
def test_a_weight_is_exactly_zero_or_bit_for_bit_the_random_one(widths, hidden):
    target, source = networks(widths, hidden)
    before = [copy.deepcopy(module.state_dict()) for module in (target, source)]
    ticket = feed_forward(target, source)
    for module, state in zip((target, source), before, strict=True):
        assert all(tensor.equal(state[name]) for name, tensor in module.state_dict().items())
    twin = pruned(source, ticket.masks)
    assert set(ticket.masks) == {name for name, _ in source.named_parameters()}
    for name, mask in ticket.masks.items():
        weight, random = twin.get_parameter(name), source.get_parameter(name)
        assert (mask.dtype, mask.shape) == (torch.bool, random.shape)
        assert weight[mask].equal(random[mask])
        assert (weight[~mask] == 0).all()
    assert ticket.entries == 2 * sum(n * m for n, m in itertools.pairwise(widths))
    assert ticket.candidates <= hidden // (2 * max(widths[:-1]))


@pytest.mark.parametrize(("widths", "hidden"), [((1, 1), 20), ((2, 2), 21), ((3, 4, 2), 48), ((2, 3, 2, 2), 48)])
@pytest.mark.parametrize("seed", range(3))
def test_errors_of_the_pairs_bound_the_error_of_the_network(widths, hidden, seed):
    """|pair(x) - x W| <= |[P - W; N + W]| |x|, and a W carries on the error that its input has."""
    target, source = networks(widths, hidden, seed)
    ticket = feed_forward(target, source)
    twin = pruned(source, ticket.masks).double()
    shapes = [(2 * n, m) for n, m in itertools.pairwise(widths)]
    assert [tuple(error.shape) for error in ticket.errors.values()] == shapes
    x = signed_inputs(widths[0], seed)
    wanted, bound = x, torch.zeros(len(x), dtype=torch.float64)
    for i, (weight, error) in enumerate(zip(target.layers, ticket.errors.values(), strict=True)):
        wanted = (wanted.relu() if i else wanted).detach()
        bound = bound + torch.linalg.matrix_norm(error, ord=2) * (norms(wanted) + bound)  # |W| = 1
        wanted = wanted @ weight
    assert (norms(twin(x) - target(x)) <= bound * (1 + 1e-9) + 1e-14).all()


@pytest.mark.parametrize("seed", range(4))
def test_half_of_the_bound_is_no_bound(seed):
    """In one dimension the bound is met to a factor of sqrt 2 at the coordinate vectors 1 and -1."""
    target, source = networks((1, 1), 12, seed)
    ticket = feed_forward(target, source)
    bound = torch.linalg.matrix_norm(ticket.errors["layers.0"], ord=2)
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    error = norms(pruned(source, ticket.masks).double()(x) - target(x)).max()
    assert bound / 2 < error <= bound * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_breaks_the_bound(seed):
    """Of a tight ticket: a unit's product of more than twice the bound, added or dropped, shows at its coordinate."""
    target, source = networks((2, 2), 60, seed)
    ticket = feed_forward(target, source)
    bound = float(torch.linalg.matrix_norm(ticket.errors["layers.0"], ord=2))
    x = signed_inputs(2, count=1)
    twin = pruned(source, ticket.masks).double()
    assert norms(twin(x) - target(x)).max() <= bound * (1 + 1e-9)
    first, second = (weight.detach().double() for weight in source.layers)
    heard = (first * ticket.masks["layers.0"]).abs().amax(dim=0)
    flips = (heard[:, None] * second.abs() > 2.1 * bound).nonzero().tolist()
    assert len(flips) > 0.8 * 2 * 60
    for unit, out in flips:
        masks = {name: mask.clone() for name, mask in ticket.masks.items()}
        masks["layers.1"][unit, out] ^= True
        assert norms(pruned(source, masks).double()(x) - target(x)).max() > bound


def test_recorded_scales_are_taken_as_they_are():
    """A target 8 times as large, a source with a scale of 8: the same masks, errors 8 times as large."""
    target, source = networks((2, 3, 2), 40)
    larger, scaled = copy.deepcopy(target), copy.deepcopy(source)
    with torch.no_grad():
        larger.layers[0] *= 8
    larger.scales[1] = 8
    scaled.scales[1] = scaled.scales[3] = 8
    ticket, same = feed_forward(target, source), feed_forward(larger, scaled)
    assert all(mask.equal(same.masks[name]) for name, mask in ticket.masks.items())
    assert all(torch.allclose(same.errors[name], 8 * error, rtol=1e-12) for name, error in ticket.errors.items())


def test_a_scale_of_the_first_layer_of_a_pair_counts_as_well():
    target, source = networks((2, 2), 60)
    source.scales[0], source.scales[1] = 0.5, 4.0
    ticket = feed_forward(target, source)
    assert ticket.unreachable == 0
    x = signed_inputs(2)
    error = norms(pruned(source, ticket.masks).double()(x) - target(x)).max()
    assert error <= torch.linalg.matrix_norm(ticket.errors["layers.0"], ord=2) * (1 + 1e-9)
    assert error < 1e-2


def test_threads_change_nothing_and_float32_targets_are_widened():
    target, source = networks((3, 3), 50)
    one, two = (feed_forward(target, source, threads=threads) for threads in (1, 2))
    assert all(mask.equal(two.masks[name]) for name, mask in one.masks.items())
    target = target.float()
    narrow, wide = feed_forward(target, source), feed_forward(copy.deepcopy(target).double(), source)
    assert all(mask.equal(wide.masks[name]) for name, mask in narrow.masks.items())
    assert narrow.errors["layers.0"].dtype == torch.float64


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value):
    target, first, second = problem((2, 2, 12))
    for matrix, name in ((target, "target"), (second, "second")):
        broken = matrix.copy()
        broken[0, 0] = value
        parts = (broken, first, second) if name == "target" else (target, first, broken)
        with pytest.raises(ValueError, match=f"{name} hold.? NaN or infinite values"):
            relu_linear(*parts)
    wanted, source = networks((2, 2), 12)
    with torch.no_grad():
        wanted.layers[0][1, 1] = value
    with pytest.raises(ValueError, match="target layer 0 holds NaN or infinite values"):
        feed_forward(wanted, source)


def test_a_source_that_is_not_finite():
    for unit in range(9):
        target, source = networks((2, 2), 9)
        with torch.no_grad():
            source.layers[0][0, unit] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            feed_forward(target, source)


def test_shapes_and_widths_that_do_not_fit():
    target, first, second = problem((2, 2, 12))
    with pytest.raises(ValueError, match="hidden=3: must be >= 4"):
        relu_linear(target, first[:, :3], second[:3])
    with pytest.raises(ValueError, match=r"first \(2, 12\) and second \(11, 2\)"):
        relu_linear(target, first, second[:11])
    wanted, _ = networks((2, 2), 12)
    with pytest.raises(ValueError, match="source of 1 layers: must have twice the target's 1"):
        feed_forward(wanted, FeedForward((2, 2)))
    with pytest.raises(ValueError, match=r"source layers 0, 1 map \(2, 3\): must be \(2, 2\)"):
        feed_forward(wanted, FeedForward((2, 12, 3)))
    with pytest.raises(ValueError, match="hidden=3: must be >= 4"):
        feed_forward(wanted, FeedForward((2, 3, 2)))
