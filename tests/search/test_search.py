"""Methods of search: what all have in common, and each alone."""

import math

import pytest
import regression
import torch
from hypothesis import given
from hypothesis import strategies as st
from regression import PATHS, assert_same, batches, error, every_method, fit, loss, state, weights_of, wrapped
from tables import one_case
from torch import nn

import slth
from slth.masking import masks
from slth.search import Bernoulli, Biprop, EdgePopup, Frozen, IteRand, controls
from slth.weights import inits
from slth.wrapping import effective, handle, random_weight, unwrap


def linear(keep=0.5, shape=(12, 20), **options):
    """One wrapped linear layer and its mask."""
    layer = slth.wrap(nn.Linear(shape[1], shape[0], bias=False), keep=keep, **({"weights": "kaiming_normal"} | options))
    return layer, handle(layer).weights["weight"]


def gradient(masked, weight, grad):
    """The gradient that scores get where what the gate gives gets `grad`."""
    masked.scores.grad = None
    masked.gate(masked, weight).backward(grad)
    return masked.scores.grad


# ---------------------------------------------------------------- what all have in common


@every_method
def test_it_learns_by_its_mask_alone(method):
    model = wrapped()
    start, before = error(model), state(model)
    fit(model, method)
    random = wrapped()
    controls.random_mask(random, seed=0)
    assert error(model) < 0.4 * min(start, error(random))
    after = state(model)
    moved = {name for name, t in before.items() if not t.equal(after[name]) and not name.endswith("_extra_state")}
    weights = {f"{path[0]}.parametrizations.weight.original" for path in PATHS}
    scores = {f"{path[0]}.parametrizations.weight.0.scores" for path in PATHS}
    assert moved == scores | (weights if isinstance(method, IteRand) else set())


@every_method
@pytest.mark.parametrize(
    "options",
    [{"keep": 0.37}, {"policy": "global"}, {"keep": {"0.*": 0.45, "*": 0.6}}, {"policy": {"all": "*"}, "keep": 0.55}],
    ids=["layer", "global", "by name", "group"],
)
def test_it_keeps_exactly_what_it_should(method, options):
    model = wrapped(**options)
    fit(model, method, steps=12)
    for kept, wanted in regression.counts(model):
        assert kept == wanted


@every_method
def test_kept_weights_are_the_random_ones_and_pruned_ones_zero(method):
    model = wrapped()
    fit(model, method, steps=20)
    found, weights, kept = effective(model), weights_of(model), handle(model).masks()
    unwrap(model)
    for path in PATHS:
        value = weights[path]
        if isinstance(method, Biprop):
            value = value.sign() * found[path].abs().max()
        assert found[path].equal(torch.where(kept[path], value, 0.0))
        assert model.get_parameter(path).equal(found[path])


@every_method
def test_weights_have_no_gradient(method):
    model = wrapped()
    fit(model, method, steps=12)
    assert all(p.grad is None for name, p in model.named_parameters() if not name.endswith("scores"))
    assert all(not random_weight(model, path).requires_grad for path in PATHS)


@one_case
@pytest.mark.parametrize("schedule", masks.SCHEDULES)
@pytest.mark.parametrize("arrival", [0.3, 1.0])
def test_keep_comes_down_along_the_schedule(schedule, arrival):
    model, seen, steps = wrapped(keep=0.25), [], 20

    def watched(model, batch):
        value = loss(model, batch)
        seen.append(sum(int(mask.sum()) for mask in handle(model).masks().values()))
        return value

    slth.fit(model, batches, watched, steps, method=EdgePopup(schedule=schedule, arrival=arrival), progress=False)
    keeps = [masks.scheduled_keep(0.25, schedule, step / (arrival * steps)) for step in range(steps)]
    assert seen == [sum(masks.count_kept(n, keep) for n in (16 * 48, 48 * 4)) for keep in keeps]
    assert handle(model).kept() == (16 * 48 + 48 * 4) // 4
    assert (seen[0] == 16 * 48 + 48 * 4) == (schedule != "constant")
    assert seen == sorted(seen, reverse=True)


@one_case
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: EdgePopup(schedule="steep"), "schedule='steep': must be one of constant, linear, cubic"),
        (lambda: EdgePopup(arrival=0.0), r"arrival=0.0: must be a number in \(0, 1\]"),
        (lambda: EdgePopup(arrival=1.1), "arrival=1.1"),
        (lambda: Biprop(arrival=math.nan), "arrival=nan"),
        (lambda: Frozen(pruned=1.0), r"pruned=1.0: must be a number in \[0, 1\)"),
        (lambda: Frozen(locked=-0.1), "locked=-0.1"),
        (lambda: Frozen(pruned=0.5, locked=0.5), r"pruned \+ locked = 1.0"),
        (lambda: Frozen(pruned=0.0, locked=0), r"pruned \+ locked = 0"),
        (lambda: IteRand(every=0), "every=0: must be an int >= 1"),
        (lambda: IteRand(every=2.5), "every=2.5"),
        (lambda: IteRand(rate=0.0), r"rate=0.0: must be a number in \(0, 1\]"),
        (lambda: IteRand(rate=1.5), "rate=1.5"),
        (lambda: Bernoulli(sigma=0.0), "sigma=0.0: must be a finite number > 0"),
        (lambda: Bernoulli(sharpness=math.nan), "sharpness=nan"),
        (lambda: Bernoulli(sigma=math.inf), "sigma=inf"),
    ],
)
def test_values_out_of_range_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# ---------------------------------------------------------------- edge-popup and biprop


@pytest.mark.parametrize("method", [EdgePopup(), Biprop()])
def test_gradients_pass_straight_through(method):
    layer, masked = linear()
    with torch.no_grad():
        masked.scores[0, 0] = 0.0
    method.prepare(layer)
    handle(layer).check()
    weight = random_weight(layer, "weight")
    grad = inits.uniform(weight.shape, 1.0, seed=0, name="grad")
    alpha = weight[masked.mask()].abs().mean()
    seen = weight.detach() if type(method) is EdgePopup else alpha * weight.sign()
    sign = torch.where(masked.scores < 0, -1.0, 1.0)
    torch.testing.assert_close(gradient(masked, weight, grad), grad * seen * sign, rtol=1e-6, atol=0)
    assert sign[0, 0] == 1


def test_biprop_has_a_scale_for_each_part():
    module = slth.wrap(nn.MultiheadAttention(8, 2, bias=False), keep=0.5, weights="kaiming_normal", policy="global")
    with torch.no_grad():
        for i, part in enumerate(handle(module).weights["in_proj_weight"].parts):
            part.of(random_weight(module, "in_proj_weight")).mul_(i + 1)
    Biprop().prepare(module)
    found, kept = effective(module)["in_proj_weight"], handle(module).masks()["in_proj_weight"]
    weight = random_weight(module, "in_proj_weight")
    for rows in (slice(0, 8), slice(8, 16), slice(16, 24)):
        alpha = weight[rows][kept[rows]].abs().mean()
        torch.testing.assert_close(found[rows], alpha * weight[rows].sign() * kept[rows], rtol=1e-6, atol=0)
        assert found[rows].unique().numel() == 3


def test_biprop_keeps_nothing_of_a_part_without_harm():
    model = wrapped(policy="global", keep=0.5)
    with torch.no_grad():
        handle(model).weights["3.weight"].scores.zero_()
    Biprop().prepare(model)
    assert effective(model)["3.weight"].count_nonzero() == 0
    fit(model, Biprop(), steps=3)
    assert math.isfinite(error(model))


# ---------------------------------------------------------------- frozen


@pytest.mark.parametrize("schedule", ["constant", "cubic"])
def test_frozen_places_never_move(schedule):
    method = Frozen(pruned=0.3, locked=0.2, seed=4, schedule=schedule)
    model, seen = wrapped(keep=0.5), []

    def watched(model, batch):
        value = loss(model, batch)
        seen.append(handle(model).masks())
        return value

    slth.fit(model, batches, watched, 25, method=method, lr=0.1, progress=False)
    seen.append(handle(model).masks())
    for path, masked in handle(model).weights.items():
        pruned, locked = method.freezing.places(masked.scores.shape, masked.parts, path)
        assert masked.free.equal(~(pruned | locked))
        assert masked.scores[pruned].eq(0).all()
        assert masked.scores[locked].eq(torch.finfo(torch.float32).max).all()
        assert masked.scores.grad[~masked.free].eq(0).all()
        assert masked.scores.grad[masked.free].count_nonzero() > 0
        for mask in seen:
            assert not mask[path][pruned].any()
            assert mask[path][locked].all()
    assert sum(int(mask.sum()) for mask in seen[0].values()) == (672 if schedule == "cubic" else 480)


@pytest.mark.parametrize("keep", [0.19, 0.81, 1.0])
def test_keep_must_leave_room_for_what_is_frozen(keep):
    model = wrapped(keep=keep)
    before, gates = state(model), [m.gate for m in handle(model).weights.values()]
    with pytest.raises(ValueError, match=rf"keep={keep} in 0\.weight: must be between 0\.2005.* and 0\.7995"):
        fit(model, Frozen(pruned=0.2, locked=0.2))
    assert_same(before, state(model))
    assert [m.gate for m in handle(model).weights.values()] == gates
    assert all(m.free is None and not m.traits for m in handle(model).weights.values())


@pytest.mark.parametrize("keep", [0.2, 0.8])
def test_keep_may_be_at_either_end(keep):
    model = wrapped(keep=keep)
    fit(model, Frozen(pruned=0.2, locked=0.2), steps=2)
    assert all(kept == wanted for kept, wanted in regression.counts(model))


# ---------------------------------------------------------------- bernoulli


def gates(masked, scores, noise, method):
    """z of every weight in float64, threshold and unit those of the mask as it is."""
    unit = masked.scores.detach().double().abs().mean()
    mean = 0.5 + method.sharpness * (scores.abs() - masked.cuts[0].value) / unit
    return (mean + noise).clamp(0.0, 1.0)


@given(st.integers(0, 2**32), st.floats(0.05, 1.0), st.floats(0.2, 4.0))
def test_gates_have_their_own_gradient(seed, sigma, sharpness):
    method = Bernoulli(sigma=sigma, sharpness=sharpness, seed=seed)
    layer, masked = linear(seed=seed, shape=(6, 7))
    layer.train()
    method.prepare(layer)
    method.before_step(layer, step=3, steps=10, optimiser=None)
    handle(layer).check()
    weight, scores = random_weight(layer, "weight").double(), masked.scores.detach().double()
    noise = inits.normal(scores.shape, sigma, seed=seed, name="gate/weight", stream=3).double()
    z = gates(masked, scores, noise, method)
    torch.testing.assert_close(masked.gate(masked, weight), weight * z, rtol=1e-5, atol=1e-6)
    grad = inits.uniform(scores.shape, 1.0, seed=seed, name="grad").double()
    found, h = gradient(masked, weight, grad).double(), 1e-6
    slope = (gates(masked, scores + h, noise, method) - gates(masked, scores - h, noise, method)) / (2 * h)
    smooth = (z > 1e-4) & (z < 1 - 1e-4) & (scores.abs() > h) | (slope == 0)
    torch.testing.assert_close(found[smooth], (grad * weight * slope)[smooth], rtol=1e-3, atol=1e-5)
    assert smooth.float().mean() > 0.9


def test_just_the_kept_gates_are_more_open_than_shut():
    method = Bernoulli()
    _, masked = linear(keep=0.3)
    masked.wrapped.check()
    mean = gates(masked, masked.scores.detach().double(), 0.0, method)
    assert (mean > 0.5).equal(masked.mask())


def test_noise_is_that_of_the_step():
    method = Bernoulli(seed=1)
    layer, masked = linear()
    other, _ = linear()
    method.prepare(layer)
    Bernoulli(seed=2).prepare(other)
    x = inits.uniform((3, 20), 1.0, seed=0, name="x")
    layer.train()
    other.train()
    seen = []
    for step in (0, 1, 0):
        method.before_step(layer, step, 10, optimiser=None)
        seen.append(layer(x))
    assert seen[0].equal(seen[2])
    assert not seen[0].equal(seen[1])
    assert not seen[0].equal(other(x))
    exact = torch.where(masked.mask(), random_weight(layer, "weight"), 0.0)
    assert layer.eval()(x).equal(x @ exact.T)


def test_gates_open_where_everything_is_kept():
    layer, _ = linear(keep=1.0)
    method = Bernoulli(sigma=1e-3, sharpness=1e-3)
    method.prepare(layer)
    method.before_step(layer, 0, 10, optimiser=None)
    x = torch.eye(20)
    torch.testing.assert_close(layer.train()(x), 0.5 * random_weight(layer, "weight").T, rtol=0.02, atol=0)
    with torch.no_grad():
        handle(layer).weights["weight"].scores.zero_()
    assert layer(x).isfinite().all()
