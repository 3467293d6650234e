"""One loop trains anything, and says early what is wrong."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from looping import Stopped, fit, loader, until
from regression import assert_same, batches, error, loss, net, state, wrapped
from tables import one_case
from torch import nn
from torch.utils.data import DataLoader

import slth
from slth.search import EdgePopup, Frozen, controls
from slth.wrapping import handle

# ---------------------------------------------------------------- what it does


def test_rows_are_losses_and_evaluations():
    model = wrapped()
    result = fit(model, steps=20, every=6)
    assert [row["step"] for row in result.rows if "train_loss" in row] == list(range(1, 21))
    assert [row["step"] for row in result.rows if "error" in row] == [6, 12, 18, 20]
    assert result.last == {"error": error(model)}
    assert result.resumed_at == 0
    assert result.seconds > 0
    assert not model.training


def test_the_last_evaluation_is_of_the_final_keep():

    def shown(model):
        return sum(int(mask.sum()) for mask in handle(model).masks().values())

    model, seen = wrapped(keep=0.2), []
    fit(
        model, method=EdgePopup(schedule="linear", arrival=1.0), every=1, evaluate=lambda m: seen.append(shown(m)) or {}
    )
    assert seen == sorted(seen, reverse=True)
    assert seen[-2] > seen[-1] == shown(model) == handle(model).kept() == 192


def test_rows_of_losses_are_at_most_a_hundred_or_so():
    result = slth.fit(net(), batches, loss, 250, progress=False)
    assert [row["step"] for row in result.rows] == list(range(2, 251, 2))
    assert result.last == {}


def test_evaluation_is_without_gradients_dropout_and_consequences():
    seen = []

    def watched(model):
        seen.append((model.training, torch.is_grad_enabled(), torch.rand(())))
        return {}

    models = [wrapped(dropout=0.3), wrapped(dropout=0.3)]
    fit(models[0], loader(), evaluate=watched, every=1)
    fit(models[1], loader(), evaluate=None)
    assert {flags[:2] for flags in seen} == {(False, False)}
    assert_same(state(models[0]), state(models[1]))


def rates_of(steps, warmup):
    """The learning rates of two groups at every step, as shares of their highest."""
    built, rates = [], []

    def sgd(parameters):
        built.append(torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 4e-3}], lr=2e-3))
        return built[0]

    def watched(model, batch):
        rates.append([group["lr"] for group in built[0].param_groups])
        return loss(model, batch)

    slth.fit(net(), batches, watched, steps, optimiser=sgd, warmup=warmup, progress=False)
    assert all(first / 2e-3 == pytest.approx(second / 4e-3) for first, second in rates)
    return [first / 2e-3 for first, _ in rates]


@one_case
@pytest.mark.parametrize(("steps", "warmup", "rising"), [(40, 0.25, 10), (40, 0.0, 1), (50, 0.1, 5), (1, 0.1, 1)])
def test_the_learning_rate_rises_by_a_line_and_falls_by_a_cosine(steps, warmup, rising):
    line = [(i + 1) / rising for i in range(rising)]
    falling = steps - rising
    cosine = [0.01 + 0.99 * (1 + math.cos(math.pi * (i + 1) / falling)) / 2 for i in range(falling)]
    assert rates_of(steps, warmup) == pytest.approx(line + cosine)
    assert not cosine or cosine[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(("steps", "warmup"), [(7, 0.9), (30, 0.05), (2, 0.7)])
def test_a_warmup_need_not_be_whole_steps(steps, warmup):
    rates = rates_of(steps, warmup)
    top = rates.index(max(rates))
    assert top in (math.floor(warmup * steps) - 1, math.floor(warmup * steps))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0
    assert max(rates) <= 1
    assert rates[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("clip", [1e-3, None])
def test_gradients_are_clipped(clip):
    model, norms = net(), []

    class Watched(torch.optim.SGD):
        def step(self):
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters())))
            super().step()

    fit(model, steps=5, clip=clip, optimiser=lambda parameters: Watched(parameters, lr=1e-3))
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for norm in norms) == (clip is not None)
    assert clip is not None or min(norms) > 0.1


def test_no_weight_decays():
    model, before = wrapped(), None
    before = state(model)
    slth.fit(model, batches, lambda m, batch: 0.0 * loss(m, batch), 5, lr=0.1, progress=False)
    assert_same(before, state(model))


def test_torch_draws_on_as_if_nothing_had_been():
    models = [wrapped(dropout=0.5), wrapped(dropout=0.5), net(dropout=0.5)]
    before = torch.get_rng_state()
    fit(models[0], loader())
    assert torch.get_rng_state().equal(before)
    with pytest.raises(Stopped):
        fit(models[2], until(3))
    assert torch.get_rng_state().equal(before)
    torch.rand(5)
    fit(models[1], loader())
    assert_same(state(models[0]), state(models[1]))  # nor does what was drawn before matter


def test_the_seed_is_that_of_all_dice():
    models = {seed: wrapped(dropout=0.5) for seed in (0, 1)}
    for seed, model in models.items():
        fit(model, seed=seed)
    assert not state(models[0])["0.parametrizations.weight.0.scores"].equal(
        state(models[1])["0.parametrizations.weight.0.scores"]
    )


def test_each_epoch_has_an_order_of_its_own():
    seen = []
    data = DataLoader(torch.arange(40), batch_size=8, shuffle=True)
    slth.fit(net(), data, lambda m, batch: (seen.append(batch), loss(m, batches(0)))[1], 15, progress=False)
    epochs = [torch.cat(seen[i : i + 5]) for i in (0, 5, 10)]
    assert all(epoch.sort().values.equal(torch.arange(40)) for epoch in epochs)
    assert not any(a.equal(b) for a, b in itertools.combinations(epochs, 2))


def test_any_iterable_will_do():
    seen = []
    slth.fit(net(), [0, 1, 2], lambda m, step: (seen.append(step), loss(m, batches(step)))[1], 7, progress=False)
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_no_bar_where_nobody_sees_it(capfd):
    fit(net(), progress=True, name="quiet")
    assert capfd.readouterr() == ("", "")


def test_a_bar_where_somebody_does(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit(net(), progress=True, name="a search")
    assert "a search" in capfd.readouterr().err
    fit(net(), progress=False)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- what it refuses


@one_case
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps=0: must be an int >= 1"),
        ({"steps": True}, "steps=True"),
        ({"steps": 2.0}, "steps=2.0"),
        ({"every": -1}, "every=-1: must be an int >= 0"),
        ({"save_every": -1}, "save_every=-1"),
        ({"lr": 0.0}, "lr=0.0: must be a finite number > 0"),
        ({"lr": math.inf}, "lr=inf"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": "0.1"}, "lr='0.1'"),
        ({"lr": True}, "lr=True"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"warmup": 1.0}, r"warmup=1.0: must be a number in \[0, 1\)"),
        ({"warmup": -0.1}, "warmup=-0.1"),
    ],
)
def test_values_out_of_range_are_named(options, match):
    model = wrapped()
    before = state(model)
    with pytest.raises(ValueError, match=match):
        fit(model, until(0), **options)
    assert_same(before, state(model))


@pytest.mark.parametrize("method", [EdgePopup(), Frozen(pruned=0.2, locked=0.2), None])
def test_scores_that_are_no_numbers_are_refused_before_a_step(method):
    model = wrapped()
    handle(model).weights["3.weight"].scores.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"3\.weight: scores hold NaN"):
        fit(model, until(0), method=method)


def test_there_must_be_something_to_train():
    model = net().requires_grad_(False)
    with pytest.raises(ValueError, match="Sequential: nothing to train"):
        fit(model, until(0))
    with pytest.raises(ValueError, match="ReLU: nothing to train"):
        fit(nn.ReLU(), until(0))


def test_a_method_needs_scores():
    resting = wrapped()
    controls.train_weights(resting)
    for model in (net(), resting):
        with pytest.raises(ValueError, match=r"method=EdgePopup\(.*: Sequential has no scores to train"):
            fit(model, until(0), method=EdgePopup())


@pytest.mark.parametrize("data", [[], DataLoader([]), iter([(torch.ones(1, 16), torch.ones(1, 4))])])
def test_batches_must_not_run_out(data):
    with pytest.raises(ValueError, match="batches: must give at least one batch"):
        fit(net(), data)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path, bad):
    model, path = wrapped(), tmp_path / "c"

    def breaking(model, batch):
        return torch.tensor(bad) if batch is None else loss(model, batch)

    with pytest.raises(FloatingPointError, match=f"the loss is {bad} at step 13"):
        fit(model, lambda step: batches(step) if step != 13 else None, loss=breaking, checkpoint=path, save_every=5)
    assert all(tensor.isfinite().all() for tensor in state(model).values())
    assert fit(wrapped(), checkpoint=path, save_every=5).resumed_at == 10


@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gradient_that_is_no_number_ends_the_run(clip):
    model = wrapped()
    before = state(model)
    with pytest.raises(FloatingPointError, match="the gradient's norm is nan at step 0"):
        fit(model, loss=lambda m, batch: (0.0 * loss(m, batch)).sqrt(), clip=clip)
    assert_same(before, state(model))


@pytest.mark.parametrize("method", ["iterand", slth.search.IteRand])
def test_a_method_is_a_search(method):
    with pytest.raises(ValueError, match=r"method=.*: must be a search"):
        slth.fit(wrapped(), lambda step: None, lambda m, batch: m, 5, method=method)


@one_case
@pytest.mark.parametrize(
    ("values", "match"),
    [
        (1.5, r"evaluate: gave 1.5, must give numbers by name"),
        ({"a": None}, "evaluate: gave a=None, must be one number"),
        ({"a": "1.5"}, "evaluate: gave a='1.5'"),
        ({"a": torch.ones(2)}, "evaluate: gave a=tensor"),
        ({"a": 1j}, "evaluate: gave a=1j"),
        ({"a": [1.0]}, r"evaluate: gave a=\[1.0\]"),
        ({1: 1.0}, "evaluate: gave the name 1, must be text other than step, train_loss"),
        ({"step": 1.0}, "evaluate: gave the name 'step'"),
        ({"train_loss": 1.0}, "evaluate: gave the name 'train_loss'"),
    ],
)
def test_what_is_measured_is_numbers_by_name(values, match):
    with pytest.raises(ValueError, match=match):
        fit(wrapped(), steps=1, evaluate=lambda model: values)


@one_case
@pytest.mark.parametrize("value", [2, 2.0, True, np.float32(2), np.array([2]), torch.tensor(2), torch.tensor([2.0])])
def test_what_is_measured_becomes_a_float(value):
    (number,) = fit(wrapped(), steps=1, evaluate=lambda model: {"a": value}).last.values()
    assert (number, type(number)) == (1.0 if value is True else 2.0, float)


class Output(dict):
    """As transformers' model outputs: a mapping with attributes."""

    loss = torch.ones(())


@one_case
@pytest.mark.parametrize(
    ("value", "match"),
    [
        (lambda m, b: {"loss": loss(m, b)}, "loss: gave dict, must give a scalar tensor"),
        (lambda m, b: Output(), "loss: gave Output, must give a scalar tensor, as its .loss is"),
        (lambda m, b: (loss(m, b), 1.0), "loss: gave tuple"),
        (lambda m, b: loss(m, b).item(), "loss: gave float"),
        (lambda m, b: None, "loss: gave NoneType"),
        (lambda m, b: m(b[0]), r"loss: gave a tensor of shape \(32, 4\) and torch.float32"),
        (lambda m, b: m(b[0]).argmax().sum(), r"loss: gave a tensor of shape \(\) and torch.int64"),
        (lambda m, b: loss(m, b).detach(), "loss: gave a tensor without a gradient"),
    ],
)
def test_a_loss_is_one_number_with_a_gradient(value, match):
    with pytest.raises(ValueError, match=match):
        fit(wrapped(), loss=value)


def test_a_loss_of_one_axis_is_one_number():
    models = [wrapped(), wrapped()]
    fit(models[0], steps=3)
    fit(models[1], steps=3, loss=lambda m, b: loss(m, b).reshape(1))
    assert_same(state(models[0]), state(models[1]))


@one_case
@pytest.mark.parametrize(
    ("optimiser", "match"),
    [
        (lambda m: torch.optim.SGD(handle(m).scores(), lr=0.1), "optimiser=SGD: must be a function of the parameters"),
        (lambda m: "adam", "optimiser=str: must be a function"),
        (lambda m: lambda parameters: None, "optimiser: gave NoneType, must give a torch.optim.Optimizer"),
        (lambda m: lambda parameters: torch.optim.LBFGS(parameters), "optimiser: gave LBFGS"),
        (lambda m: lambda parameters: torch.optim.SGD(net().parameters(), lr=0.1), "parameters that are not the model"),
        (
            lambda m: lambda parameters: torch.optim.SGD([*parameters, nn.Parameter(torch.ones(1))], lr=0.1),
            "optimiser: trains parameters that are not the model's",
        ),
    ],
)
def test_an_optimiser_is_made_of_the_parameters(optimiser, match):
    model = wrapped()
    before = state(model)
    with pytest.raises(ValueError, match=match):
        fit(model, until(0), optimiser=optimiser(model))
    assert_same(before, state(model))


def test_an_optimiser_may_name_the_frozen_weights_too():
    models = [wrapped(), wrapped()]
    for model, chosen in zip(models, (lambda p: p, lambda p: models[1].parameters()), strict=True):
        fit(model, steps=3, optimiser=lambda parameters, chosen=chosen: torch.optim.SGD(chosen(parameters), lr=0.1))
    assert_same(state(models[0]), state(models[1]))


@one_case
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": nn.MSELoss()}, r"loss=MSELoss\(\): takes outputs and targets"),
        ({"loss": nn.functional.mse_loss}, "loss=mse_loss: takes outputs and targets"),
        ({"loss": 1.5}, r"loss=1\.5: must be a function \(model, batch\)"),
        ({"loss": lambda model: model}, "loss=.*lambda.*: must be a function"),
        ({"evaluate": {"error": 1.0}}, "evaluate=.*: must be a function model -> numbers by name"),
        ({"evaluate": lambda: {"error": 1.0}}, "evaluate=.*: must be a function"),
        ({"data": "train"}, "batches of type str: must be a function of the step, or an iterable"),
        ({"data": {"inputs": 1}}, "batches of type dict"),
        ({"data": 5}, "batches of type int"),
        ({"data": lambda: 1}, "batches=.*: must be a function of the step"),
        ({"checkpoint": 5}, "checkpoint=5: must be a path"),
        ({"seed": None}, "seed=None: must be an int"),
    ],
)
def test_functions_are_looked_at_before_a_step(options, match):
    model = wrapped()
    before = state(model)
    with pytest.raises(ValueError, match=match):
        fit(model, **{"data": until(0)} | options)
    assert_same(before, state(model))
