"""Controls: random masks, redrawn weights, training under a mask."""

import copy

import pytest
import regression
from regression import (
    PATHS,
    STEPS,
    error,
    every_method,
    fit,
    state,
    weights_of,
    wrapped,
)
from torch import nn

import slth
from slth.search import IteRand, controls
from slth.wrapping import effective, handle, random_weight, unwrap


@pytest.fixture(scope="module")
def _found():
    model = wrapped()
    fit(model)
    return model


@pytest.fixture
def found(_found):
    return copy.deepcopy(_found)


def shares(model):
    return [(path, int(mask.sum())) for path, mask in handle(model).masks().items()]


def test_a_random_mask_keeps_as_much_elsewhere(found):
    before, error_before = handle(found).masks(), error(found)
    controls.random_mask(found, seed=3)
    after = handle(found).masks()
    assert shares(found) == [(path, int(mask.sum())) for path, mask in before.items()]
    for path in PATHS:  # two masks of keep 0.4 agree at 0.52 of all places
        assert 0.42 < (before[path] == after[path]).float().mean() < 0.62
    assert error(found) > 2 * error_before
    other = copy.deepcopy(found)
    controls.random_mask(other, seed=4)
    assert not handle(other).masks()["0.weight"].equal(after["0.weight"])
    controls.random_mask(other, seed=3)
    assert handle(other).masks()["0.weight"].equal(after["0.weight"])


def test_a_random_mask_is_of_the_final_keep():
    model = wrapped()
    handle(model).set_progress("cubic", 0.1)
    controls.random_mask(model, seed=0)
    assert all(kept == wanted for kept, wanted in regression.counts(model))


def test_a_shuffled_mask_keeps_as_much_of_each_part():
    module = slth.wrap(nn.MultiheadAttention(16, 2), keep=0.3, weights="kaiming_normal", policy="global")
    masks = handle(module).masks()
    before = masks["in_proj_weight"]
    before[16:32], before[32:] = before[:16], ~before[:16]
    handle(module).set_masks(masks)
    controls.shuffled_mask(module, seed=1)
    after = handle(module).masks()["in_proj_weight"]
    for rows in (slice(0, 16), slice(16, 32), slice(32, 48)):
        assert before[rows].sum() == after[rows].sum()
        agree = (before[rows] == after[rows]).float().mean()
        assert agree < 0.75
    assert not after[16:32].equal(after[:16])  # each in an order of its own


def test_a_shuffled_mask_forgets_what_was_learned(found):
    before, kept = error(found), shares(found)
    controls.shuffled_mask(found, seed=0)
    assert shares(found) == kept
    assert error(found) > 2 * before


def test_redrawn_weights_are_others_under_the_same_mask(found):
    before, weights, kept = error(found), weights_of(found), handle(found).masks()
    controls.redrawn_weights(found, seed=9)
    again = wrapped(seed=9)
    for path in PATHS:
        assert random_weight(found, path).equal(random_weight(again, path))
        assert (random_weight(found, path) != weights[path]).all()
        assert handle(found).masks()[path].equal(kept[path])
    assert error(found) > 2 * before


def test_redrawn_weights_have_been_drawn_once():
    model = wrapped()
    fit(model, IteRand(every=2, rate=1.0), steps=10)
    assert handle(model).weights["0.weight"].generation.any()
    controls.redrawn_weights(model, seed=9)
    assert not handle(model).weights["0.weight"].generation.any()
    assert random_weight(model, "0.weight").equal(random_weight(wrapped(seed=9), "0.weight"))


@every_method
def test_weights_are_trained_under_a_mask_that_stays(method):
    model = wrapped()
    fit(model, method, steps=12)
    controls.train_weights(model)
    weights, kept, before = weights_of(model), handle(model).masks(), error(model)
    scores = {path: masked.scores.detach().clone() for path, masked in handle(model).weights.items()}
    fit(model, steps=40)
    assert error(model) < 0.5 * before
    for path in PATHS:
        moved = random_weight(model, path) != weights[path]
        assert not moved[~kept[path]].any()
        assert moved[kept[path]].float().mean() > 0.8  # all but those of units that are never active
        assert (effective(model)[path] != 0).equal(kept[path])
    for path, masked in handle(model).weights.items():
        assert masked.scores.equal(scores[path])
        assert masked.scores.grad is None
    unwrap(model)
    assert all((model.get_parameter(path) != 0).equal(kept[path]) for path in PATHS)


def test_a_plain_module_is_trained_densely():
    model = regression.net()
    before, start = state(model), error(model)
    result = fit(model, steps=STEPS, evaluate=regression.evaluate)
    assert result.last["error"] == error(model) < 0.1 * start
    assert all(not tensor.equal(before[name]) for name, tensor in model.state_dict().items())
