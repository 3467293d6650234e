"""When masks are looked at anew: after steps, writes, copies of scores."""

import copy

import pytest
import torch
from cases import CASES, WIDTH, every_case
from masked_cases import CASE, MLP, OPTIMISERS, by_hand, move, read, sorted_masks, wrapped
from torch import nn

from slth.weights import inits
from slth.wrapping import effective, handle, random_weight


@every_case
def test_weights_read_outside_a_forward_pass_are_masked_by_the_scores_of_the_moment(case):
    model = wrapped(case)
    before = handle(model).masks()
    move(model)
    seen = read(model)
    for path, mask in handle(model).masks().items():
        assert not mask.equal(before[path])
        for place in handle(model).paths[path]:
            assert seen[place].equal(random_weight(model, path).masked_fill(~mask, 0.0))


def test_a_part_of_the_model_alone_is_masked_and_gives_gradients():
    case = CASE["gpt2"]
    model = wrapped(case)
    move(model)
    plain = by_hand(case, copy.deepcopy(handle(model)).masks())
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    out, wanted = (net.transformer.h[1](x) for net in (model, plain))
    assert out.equal(wanted)
    out.sum().backward()
    inside = [m for path, m in handle(model).weights.items() if path.startswith("transformer.h.1.")]
    assert len(inside) == 4
    assert all(masked.scores.grad.any() for masked in inside)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_what_an_optimiser_does_is_seen_in_the_next_pass(optimiser):
    model = wrapped(MLP)
    built = OPTIMISERS[optimiser](handle(model).scores())
    for _ in range(3):
        before = sorted_masks(model)
        built.zero_grad()
        MLP.loss(model).backward()
        built.step()
        masks = sorted_masks(model)
        assert any(not mask.equal(before[path]) for path, mask in masks.items())
        assert MLP.run(model).equal(MLP.run(by_hand(MLP, masks)))


def test_scores_that_are_replaced_are_seen():
    model = wrapped(MLP)
    fresh = [inits.uniform((20, WIDTH), 1.0, seed=seed, name="fresh") for seed in range(40)]
    for scores in zip(fresh[::2], fresh[1::2], strict=True):
        for each in scores:  # the second may lie where the first of all has lain
            handle(model).weights["0.weight"].scores = nn.Parameter(each)
        assert MLP.run(model).equal(MLP.run(by_hand(MLP, sorted_masks(model))))


def test_nan_among_the_scores_is_named_and_can_be_put_right():
    model = wrapped(MLP)
    before = MLP.run(model)
    scores = handle(model).weights["2.weight"].scores
    kept = scores.detach().clone()
    with torch.no_grad():
        scores[1, 2] = float("nan")
    for call in (MLP.run, read, effective, lambda model: handle(model).masks()):
        with pytest.raises(ValueError, match=r"2\.weight: scores hold NaN"):
            call(model)
    with torch.no_grad():
        scores.copy_(kept)
    assert MLP.run(model).equal(before)


@pytest.mark.parametrize(
    ("case", "stop"),
    [
        *((case, RuntimeError) for case in CASES),
        *((CASE[name], KeyboardInterrupt) for name in ("gpt2", "lstm", "tied")),
    ],
    ids=lambda given: getattr(given, "name", str(given)),
)
def test_a_forward_pass_that_was_broken_off_leaves_nothing_behind(case, stop):
    model = wrapped(case)
    wanted = case.run(model)
    last = list(handle(model).weights.values())[-1]
    gate = last.gate

    def broken(masked, weight):
        raise stop

    last.gate = broken
    move(model)
    with pytest.raises(stop):
        case.run(model)
    last.gate = gate
    move(model)  # back
    if stop is RuntimeError:  # no hook of torch's hears of an interrupt
        masks = handle(model).masks()
        for path, places in handle(model).paths.items():
            random = random_weight(model, path)
            assert all(read(model)[place].equal(random.masked_fill(~masks[path], 0.0)) for place in places)
    assert case.run(model).equal(wanted)
    case.loss(model).backward()
