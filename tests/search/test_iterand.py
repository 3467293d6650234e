"""IteRand draws pruned weights anew."""

from dataclasses import replace

import pytest
import torch
from regression import PATHS, assert_same, batches, fit, loss, state, wrapped

import slth
from slth.search import IteRand, controls
from slth.weights import inits
from slth.weights.recipes import recipe_of
from slth.wrapping import handle, random_weight


def redrawn_at(method, steps):
    """After how many steps weights were drawn anew."""
    model, found = wrapped(), []

    def generations():
        return sum(
            int(m.generation.sum()) for m in handle(model).weights.values() if m.buffer("generation") is not None
        )

    def watched(step):
        found.append(generations())
        return batches(step)

    slth.fit(model, watched, loss, steps, method=method, progress=False)
    found.append(generations())
    return [step for step in range(1, steps + 1) if found[step] > found[step - 1]]


@pytest.mark.parametrize(
    ("method", "steps", "expected"),
    [
        (IteRand(), 100, list(range(10, 91, 10))),
        (IteRand(), 57, list(range(5, 51, 5))),
        (IteRand(), 3, [1, 2]),
        (IteRand(), 2, [1]),
        (IteRand(every=9), 10, [9]),
    ],
)
def test_iterand_redraws_in_a_search_of_any_length(method, steps, expected):
    assert redrawn_at(replace(method, rate=1.0), steps) == expected


@pytest.mark.parametrize(
    ("method", "steps", "match"),
    [
        (IteRand(every=100), 100, "every=100 never redraws in 100 steps, must have every at most 90"),
        (IteRand(every=10), 10, "every=10 never redraws in 10 steps, must have every at most 9"),
        (IteRand(), 1, "every=1 never redraws in 1 steps, must have 2 steps or more"),
    ],
)
def test_iterand_that_would_never_redraw_is_refused(method, steps, match):
    model = wrapped()
    before = state(model)
    with pytest.raises(ValueError, match=f"method=IteRand: {match}"):
        slth.fit(model, lambda step: pytest.fail("a batch was drawn"), loss, steps, method=method, progress=False)
    assert_same(before, state(model))


def of_streams(model, path):
    """The weight that each entry's number of redraws gives, from the definition."""
    masked = handle(model).weights[path]
    draw = recipe_of(model, path).draws[0]
    streams = [
        inits.normal(masked.scores.shape, draw.scale, seed=draw.seed, name=draw.name, stream=stream)
        for stream in range(int(masked.generation.max()) + 1)
    ]
    return torch.stack(streams).gather(0, masked.generation.long()[None])[0]


def test_redraws_come_in_time_to_pruned_weights_alone():
    method = IteRand(every=4, rate=0.5, seed=2)
    model, steps = wrapped(), 20
    method.prepare(model)
    for step in range(steps):
        before = {path: handle(model).weights[path].generation.clone() for path in PATHS}
        with torch.no_grad():
            for masked in handle(model).weights.values():
                masked.scores.add_(inits.uniform(masked.scores.shape, 0.1, seed=0, name=masked.path, stream=step))
        kept = handle(model).masks()
        method.after_step(model, step, steps, None)
        for path in PATHS:
            more = handle(model).weights[path].generation - before[path]
            assert not more[kept[path]].any()
            assert more.max() == (step in (3, 7, 11, 15))
            assert random_weight(model, path).equal(of_streams(model, path))
            if step == 3:
                assert 0.4 < more[~kept[path]].float().mean() < 0.6
    assert all(masked.generation.max() > 1 for masked in handle(model).weights.values())


@pytest.mark.parametrize(("steps", "last"), [(40, 36), (100, 88), (3, None)])
def test_the_last_tenth_is_for_settling(steps, last):
    model = wrapped()
    method = IteRand(every=4, rate=1.0)
    method.prepare(model)
    redrawn = []
    for step in range(steps):
        before = handle(model).weights["0.weight"].generation.clone()
        method.after_step(model, step, steps, None)
        if not before.equal(handle(model).weights["0.weight"].generation):
            redrawn.append(step + 1)
    assert redrawn == list(range(4, (last or 0) + 1, 4))


def test_redraws_stop_where_a_byte_ends():
    model = wrapped()
    method = IteRand(every=1, rate=1.0)
    method.prepare(model)
    for masked in handle(model).weights.values():
        masked.generation.fill_(254)
    for step in range(3):
        method.after_step(model, step, 100, None)
    for path, masked in handle(model).weights.items():
        assert masked.generation[~masked.mask()].eq(255).all()
        assert masked.generation[masked.mask()].eq(254).all()
        assert random_weight(model, path).equal(of_streams(model, path))


def test_weights_that_no_seed_gives_cannot_be_redrawn():
    model = wrapped(weights={"3.*": "kaiming_normal"})
    before = state(model)
    with pytest.raises(ValueError, match=r"0\.weight: its weights did not come from slth\.weights\.inits"):
        fit(model, IteRand())
    assert_same(before, state(model))
    with pytest.raises(ValueError, match=r"0\.weight: its weights did not come from slth\.weights\.inits"):
        controls.redrawn_weights(model, seed=3)
    assert_same(before, state(model))
