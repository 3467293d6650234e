"""One loop trains anything, says early what is wrong, and goes on after any end as if there had been none."""

import importlib
import itertools
import json
import logging
import math
import os
import signal
import sys
import time
from dataclasses import make_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import regression
import torch
from helpers import call_in_a_process
from hypothesis import given, settings
from hypothesis import strategies as st
from regression import METHODS, assert_same, batches, error, evaluate, loss, net, state, wrapped
from torch import nn
from torch.utils.data import DataLoader, Dataset

import slth
from slth import Ticket, files
from slth.search import Bernoulli, Biprop, CheckpointError, EdgePopup, Frozen, IteRand, Search, controls
from slth.threads import one_torch_thread
from slth.wrapping import handle

STEPS, SAVE_EVERY = 24, 5
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Stopped(Exception):
    """What ends a run in the middle."""


class Noisy(Dataset):
    """Examples with noise from torch's own generator, as an augmentation would add it."""

    def __len__(self):
        return 90

    def __getitem__(self, index):
        return regression.INPUTS[index] + 0.01 * torch.randn(16), regression.OUTPUTS[index]


def loader():
    """Shuffled batches of 16, six an epoch, the last one smaller."""
    return DataLoader(Noisy(), batch_size=16, shuffle=True)


def fit(model, data=batches, steps=STEPS, loss=loss, **options):
    options = {"lr": 0.02, "progress": False, "evaluate": evaluate, "every": 7} | options
    return slth.fit(model, data, loss, steps, **options)


def until(step, data=batches):
    """Batches of a run that ends before a step."""

    def batch(number):
        if number == step:
            raise Stopped
        return data(number)

    return batch


def interrupted(model, path, step=13, **options):
    """Run up to a step, leaving the checkpoint of before."""
    with pytest.raises(Stopped):
        fit(model, until(step), checkpoint=path, save_every=SAVE_EVERY, **options)


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


# ---------------------------------------------------------------- going on


@every_method
@pytest.mark.parametrize("data", [lambda: batches, loader], ids=["function", "loader"])
def test_a_run_goes_on_as_if_it_had_not_ended(tmp_path, method, data):
    options = {"method": method, "save_every": SAVE_EVERY}
    whole = wrapped(dropout=0.2)
    result = fit(whole, data(), checkpoint=tmp_path / "whole", **options)
    assert result.resumed_at == 0
    with pytest.raises(Stopped):
        fit(wrapped(dropout=0.2), checkpoint=tmp_path / "parts", **options, data=data(), loss=until_call(17))
    model = wrapped(dropout=0.2)
    torch.rand(3)
    again = fit(model, data(), checkpoint=tmp_path / "parts", **options)
    assert again.resumed_at == 15
    assert again.rows == result.rows
    assert_same(state(whole), state(model))
    assert Ticket.of(whole).to_bytes() == Ticket.of(model).to_bytes()
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def until_call(number):
    """The loss, but for one call."""
    calls = itertools.count()

    def value(model, batch):
        if next(calls) == number:
            raise Stopped
        return loss(model, batch)

    return value


@settings(max_examples=12)
@given(
    st.sampled_from(sorted(METHODS)),
    st.lists(st.integers(1, STEPS - 1), min_size=1, max_size=3),
    st.integers(1, 9),
)
def test_a_run_may_end_often(tmp_path_factory, name, ends, save_every):
    folder = tmp_path_factory.mktemp("often")
    options = {"method": METHODS[name], "save_every": save_every, "checkpoint": folder / "c"}
    whole = wrapped(dropout=0.2)
    fit(whole, method=METHODS[name])
    for end in sorted(ends):
        with pytest.raises(Stopped):
            fit(wrapped(dropout=0.2), until(end), **options)
    model = wrapped(dropout=0.2)
    assert fit(model, **options).resumed_at == max(ends) // save_every * save_every
    assert_same(state(whole), state(model))


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
        lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, centered=True, momentum=0.5),
        lambda parameters: torch.optim.AdamW([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(parameters)]),
    ],
)
def test_any_optimiser_goes_on(tmp_path, optimiser):
    whole, model = wrapped(), wrapped()
    fit(whole, optimiser=optimiser)
    interrupted(wrapped(), tmp_path / "c", optimiser=optimiser)
    assert fit(model, optimiser=optimiser, checkpoint=tmp_path / "c").resumed_at == 10
    assert_same(state(whole), state(model))


def with_norm():
    """A network with running statistics and a tied weight."""
    inner = nn.Linear(16, 16)
    model = nn.Sequential(inner, nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.Dropout(0.1), nn.Linear(16, 4))
    model[3].weight = inner.weight
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(slth.weights.inits.uniform(p.shape, 0.3, seed=0, name=name))
    return model


def sparse():
    """Weights under a mask that stays."""
    model = wrapped()
    controls.train_weights(model)
    return model


@pytest.mark.parametrize(
    "build", [with_norm, sparse, net, lambda: slth.wrap(with_norm(), 0.5), lambda: net(dtype=torch.float64)]
)
def test_any_training_goes_on(tmp_path, build):
    def value(model, batch):
        return loss(model, [part.to(next(model.parameters()).dtype) for part in batch])

    models = [build(), build()]
    options = {"loss": value, "evaluate": None, "save_every": SAVE_EVERY}
    fit(models[0], **options)
    with pytest.raises(Stopped):
        fit(build(), until(17), checkpoint=tmp_path / "c", **options)
    assert fit(models[1], checkpoint=tmp_path / "c", **options).resumed_at == 15
    assert_same(state(models[0]), state(models[1]))


def test_a_run_that_was_done_is_not_done_again(tmp_path):
    model, path = wrapped(), tmp_path / "c"
    result = fit(model, checkpoint=path, method=EdgePopup(schedule="linear"))
    again = wrapped()
    held = fit(again, until(0), checkpoint=path, method=EdgePopup(schedule="linear"))
    assert held.resumed_at == STEPS
    assert held.rows == result.rows
    assert_same(state(model), state(again))
    assert handle(again).kept() == handle(model).kept()
    assert Ticket.of(model).to_bytes() == Ticket.of(again).to_bytes()


def test_measurements_need_not_be_finite(tmp_path):
    def measured(model):
        return {"perplexity": math.inf, "nothing": math.nan}

    fit(wrapped(), evaluate=measured, checkpoint=tmp_path / "c")
    last = fit(wrapped(), until(0), evaluate=measured, checkpoint=tmp_path / "c").last
    assert last["perplexity"] == math.inf
    assert math.isnan(last["nothing"])


def fails(*_):
    raise Stopped


@pytest.mark.parametrize(
    "failing",
    [lambda: {"evaluate": fails, "every": 12}, lambda: {"loss": until_call(12)}, lambda: {"data": until(12)}],
    ids=["evaluate", "loss", "batches"],
)
def test_a_failure_leaves_the_last_checkpoint(tmp_path, failing):
    path, model, whole = tmp_path / "c", wrapped(), wrapped()
    with pytest.raises(Stopped):
        fit(wrapped(), checkpoint=path, save_every=5, **failing())
    assert fit(model, checkpoint=path).resumed_at == 10
    fit(whole)
    assert_same(state(whole), state(model))
    assert os.listdir(tmp_path) == ["c"]


def test_ten_checkpoints_a_run_unless_told(tmp_path, monkeypatch):
    done = []
    write = files.write
    monkeypatch.setattr(files, "write", lambda path, data: (done.append(path), write(path, data)))
    fit(wrapped(), steps=40, checkpoint=str(tmp_path / "c"))
    assert done == [tmp_path / "c"] * 11  # one before the first step


# ---------------------------------------------------------------- other checkpoints


OTHERS = {
    "seed": {"seed": 1},
    "lr": {"lr": 0.021},
    "steps": {"steps": STEPS + 1},
    "warmup": {"warmup": 0.2},
    "clip": {"clip": 0.5},
    "no clip": {"clip": None},
    "optimiser": {"optimiser": lambda parameters: torch.optim.SGD(parameters, lr=0.02)},
    "its options": {"optimiser": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1)},
    "method": {"method": Biprop()},
    "its seed": {"method": IteRand(every=5, seed=1)},
    "its rate": {"method": IteRand(every=5, rate=0.2)},
    "frozen": {"method": Frozen()},
    "keep": {"build": lambda: wrapped(keep=0.41)},
    "policy": {"build": lambda: wrapped(policy="global")},
    "weights": {"build": lambda: wrapped(weights="signed_constant")},
    "their seed": {"build": lambda: wrapped(seed=2)},
    "scores": {"build": lambda: wrapped(scores="magnitude")},
    "dense": {"build": net, "method": None},
    "trained": {"build": lambda: begun(wrapped())},
    "weights under the mask": {"build": sparse, "method": None},
}


def begun(model):
    """A model with a few steps behind it."""
    fit(model, steps=1)
    return model


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other):
    path, own = tmp_path / "c", {"method": IteRand(every=5)}
    interrupted(wrapped(), path, **own)
    options = own | other
    model = options.pop("build", wrapped)()
    before, content = state(model), path.read_bytes()
    with pytest.raises(CheckpointError, match="c: was written by another search"):
        fit(model, until(0), checkpoint=path, **options)
    assert_same(before, state(model))
    assert path.read_bytes() == content
    assert fit(wrapped(), checkpoint=path, **own).resumed_at == 10


TOLD = {
    "seed": "seed 0 != 1",
    "lr": r"lr 0\.02 != 0\.021",
    "steps": "steps 24 != 25",
    "no clip": "clip 1.0 != None",
    "optimiser": "optimiser AdamW != SGD",
    "its options": r"weight_decay 0\.0 != 0\.1",
    "method": r"\(method IteRand != Biprop\)",
    "its rate": r"\(method\.rate 0\.1 != 0\.2\)",
    "keep": r"keep of 0\.weight 0\.4 != 0\.41",
    "dense": r"method IteRand != none; .*only one of them trains",
    "trained": r"\(the model differs \(weights, scores, masks or buffers",
}


@pytest.mark.parametrize("name", TOLD)
def test_another_run_is_told_what_differs(tmp_path, name):
    path, own = tmp_path / "c", {"method": IteRand(every=5)}
    interrupted(wrapped(), path, **own)
    options = own | OTHERS[name]
    model = options.pop("build", wrapped)()
    with pytest.raises(CheckpointError, match=TOLD[name]):
        fit(model, until(0), checkpoint=path, **options)


def test_settings_that_are_equal_as_numbers_are_the_same_search(tmp_path):
    interrupted(wrapped(keep=1), tmp_path / "c", clip=1, method=Biprop(arrival=1))
    assert fit(wrapped(keep=1.0), checkpoint=tmp_path / "c", clip=1.0, method=Biprop(arrival=1.0)).resumed_at == 10


def named(name, restore=None, **fields):
    """A search of another class under a name, made anew."""
    hooks = {"restore": restore} if restore else {}
    return make_dataclass(name, fields.items(), bases=(Search,), namespace=hooks, frozen=True, kw_only=True)


def test_a_class_of_the_same_name_is_another_search(tmp_path):
    interrupted(wrapped(), tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"another search \(method EdgePopup != [\w.]+\.EdgePopup"):
        fit(wrapped(), until(0), checkpoint=tmp_path / "c", method=named("EdgePopup")())


def test_what_json_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"method\.what of type Tensor: must be numbers, text"):
        fit(wrapped(), until(0), checkpoint=tmp_path / "c", method=named("Own", what=object)(what=torch.zeros(2)))
    assert not (tmp_path / "c").exists()


def test_a_restore_that_fails_leaves_the_masks_as_they_were(tmp_path):
    def failing(self, model, step):
        raise ValueError("cannot restore")

    interrupted(wrapped(), tmp_path / "c", method=named("Own")())
    model = wrapped()
    before = state(model)
    with pytest.raises(ValueError, match="cannot restore"):
        fit(model, until(0), checkpoint=tmp_path / "c", method=named("Own", failing)())
    assert_same(state(model), before)


#: Of files that slth 0.1.0 wrote before checkpoints held settings: what their searches were known by.
OLD = {
    "8cde115a71f632524cded5cc610ae544ab03eca6196a5655d8a8f945ec90685d": {},
    "f6e420462eeeee5020ab60ff0d810c5d40372aec6d9ace24b75347ce690e4fda": {"method": IteRand(every=5)},
    "5c573895955a76318b899465346e1353388adad8005faf944777d4d4bf1ffe9e": {"method": IteRand(), "steps": 1000},
    "e0fd2ba9cf0106c2be833c150a9b6ecdbd831c760c8722835386428a4875cba8": {"method": Frozen(pruned=0, locked=0.2)},
    "fd418b2c79b90800f55206fb7ef5c86912e7755cb10ecdc753fd06cff3f923b2": {
        "method": Bernoulli(),
        "clip": 1,
        "warmup": 0,
        "lr": 1,
    },
}


@pytest.mark.parametrize(("identity", "options"), OLD.items())
def test_checkpoints_of_before_still_go_on(tmp_path, identity, options):
    path, options = tmp_path / "c", {"lr": 0.01} | options
    interrupted(wrapped(), path, **options)
    tensors, content = files.read(path, "checkpoint", [1])
    assert content["identity"] == identity
    del content["began"]
    files.save(path, "checkpoint", 1, tensors, content)
    with pytest.raises(CheckpointError, match=r"another search.*weights, scores, settings or seed differ"):
        fit(wrapped(), until(0), checkpoint=path, **options | {"seed": 5})
    with pytest.raises(Stopped):
        fit(wrapped(), until(11), checkpoint=path, **options)


@pytest.mark.parametrize("progress", [True, False])
def test_a_run_that_goes_on_says_so(tmp_path, caplog, capfd, progress):
    interrupted(wrapped(), tmp_path / "c")
    assert not caplog.records
    with caplog.at_level(logging.INFO, "slth.search"):
        fit(wrapped(), checkpoint=tmp_path / "c", progress=progress, name="mine")
    (record,) = caplog.records
    assert record.getMessage() == f"mine: goes on at step 10 of 24, from checkpoint {tmp_path / 'c'}"
    assert record.levelno == (logging.WARNING if progress else logging.INFO)


def test_a_relative_checkpoint_stays_where_it_was(tmp_path, monkeypatch):
    there = tmp_path / "elsewhere"
    there.mkdir()
    monkeypatch.chdir(tmp_path)

    def wandering(model, batch):
        os.chdir(there)
        return loss(model, batch)

    fit(wrapped(), loss=wandering, checkpoint="c", evaluate=lambda model: os.chdir("/") or {})
    assert not list(there.iterdir())
    monkeypatch.chdir(tmp_path)
    assert fit(wrapped(), until(0), checkpoint="c").resumed_at == STEPS


def test_dense_runs_are_told_apart_by_their_start(tmp_path):
    interrupted(net(), tmp_path / "c")
    other = net()
    with torch.no_grad():
        other[0].bias[3] += 1e-6
    with pytest.raises(CheckpointError, match="another search"):
        fit(other, checkpoint=tmp_path / "c")


def test_a_sparse_run_is_told_by_its_mask(tmp_path):
    interrupted(sparse(), tmp_path / "c")
    other = wrapped(keep=0.5)
    controls.train_weights(other)
    with pytest.raises(CheckpointError, match="another search"):
        fit(other, checkpoint=tmp_path / "c")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda data: data[:-1], "c: cut short"),
        (lambda data: data[:50], "c: "),
        (lambda data: b"", "c: not a safetensors file"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "c: damaged"),
        (lambda data: b"x" * 1000, "c: not a safetensors file"),
        (lambda data: Ticket.of(wrapped()).to_bytes(), "c: a file of kind 'ticket': must be 'checkpoint'"),
        (lambda data: files.seal("checkpoint", 99, {}, {}), "c: version 99"),
        (lambda data: files.seal("checkpoint", 1, {}, {}), "c: was written by another search"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage, match):
    path, model = tmp_path / "c", wrapped()
    interrupted(wrapped(), path, method=Frozen(pruned=0.2, locked=0.2))
    path.write_bytes(damage(path.read_bytes()))
    before, content = state(model), path.read_bytes()
    with pytest.raises(CheckpointError, match=match):
        fit(model, until(0), checkpoint=path, method=Frozen(pruned=0.2, locked=0.2))
    assert_same(before, state(model))
    assert all(masked.free is None for masked in handle(model).weights.values())
    assert path.read_bytes() == content


@pytest.mark.parametrize("method", [Biprop(), Bernoulli(), Frozen(pruned=0.2, locked=0.2), IteRand(every=3)])
@pytest.mark.parametrize(("lost", "rest"), [("model.", {}), ("nothing", {"rest": "{}"})])
def test_a_checkpoint_of_this_search_that_lacks_something_changes_nothing(tmp_path, method, lost, rest):
    path, model = tmp_path / "c", wrapped()
    interrupted(wrapped(), path, method=method)
    tensors, content = files.read(path, "checkpoint", [1])
    files.save(path, "checkpoint", 1, {n: t for n, t in tensors.items() if not n.startswith(lost)}, content | rest)
    before, kinds = state(model), [masked.kind for masked in handle(model).weights.values()]
    with pytest.raises(CheckpointError, match="checkpoint: "):
        fit(model, until(0), checkpoint=path, method=method)
    assert_same(before, state(model))
    assert [masked.kind for masked in handle(model).weights.values()] == kinds == ["edge-popup"] * len(kinds)


@pytest.mark.parametrize("method", [EdgePopup(), Frozen(pruned=0.2, locked=0.2)])
def test_a_checkpoint_that_cannot_be_written_is_known_before(tmp_path, method):
    model = wrapped()
    before = state(model)
    with pytest.raises(FileNotFoundError, match="none"):
        fit(model, until(0), checkpoint=tmp_path / "none" / "c", method=method)
    with pytest.raises(IsADirectoryError):
        fit(model, until(0), checkpoint=tmp_path, method=method)
    assert_same(before, state(model))


# ---------------------------------------------------------------- SIGKILL


def search(folder, name):
    """A whole search with all kinds of dice, its checkpoint in the folder: what it found, as bytes."""
    method = METHODS[name]
    model = wrapped(dropout=0.2)
    method = replace(method, every=4) if isinstance(method, IteRand) else method
    fit(model, loader(), method=method, checkpoint=folder / "c", save_every=SAVE_EVERY)
    return b"".join(tensor.numpy().tobytes() for tensor in state(model).values()) + Ticket.of(model).to_bytes()


def killed_at_batch(number):
    """Die as a batch is made."""
    original, calls = Noisy.__getitem__, itertools.count()
    Noisy.__getitem__ = lambda self, index: die() if next(calls) == number else original(self, index)


def killed_at_write(number, before):
    """Die in a checkpoint's write: as half of it is written, as all of it is, or as it has just taken its place."""
    original, calls = (os.replace if before == "replaced" else os.fsync), itertools.count()

    def call(*args):
        mine = next(calls) // (1 if before == "replaced" else 2) == number  # the folder is synchronised, too
        if before == "replaced":
            original(*args)
        elif mine and before == "torn":
            os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
        if mine:
            die()
        original(*args) if before != "replaced" else None

    setattr(os, "replace" if before == "replaced" else "fsync", call)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = {
    "first batch": (lambda: killed_at_batch(0), 0),
    "some batch": (lambda: killed_at_batch(203), 10),
    "last batch": (lambda: killed_at_batch(355), 20),
    "first write, torn": (lambda: killed_at_write(0, "torn"), 0),
    "first write, written": (lambda: killed_at_write(0, "written"), 0),
    "first write, replaced": (lambda: killed_at_write(0, "replaced"), 0),
    "third write, torn": (lambda: killed_at_write(2, "torn"), 5),
    "third write, written": (lambda: killed_at_write(2, "written"), 5),
    "last write, replaced": (lambda: killed_at_write(5, "replaced"), 24),
}


def in_child(work, *args):
    """Do work in a process of its own, a copy of this one: its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*args)
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child):
    """The exit code of a child, -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def find(folder, name):
    (folder / "found").write_bytes(search(folder, name))


def search_and_die(folder, name, moment):
    MOMENTS[moment][0]()
    search(folder, name)


def kill_searches(folder):
    """Every method killed at some moments and run again, in processes of their own; each ends as if it had not been."""
    moments = itertools.cycle(MOMENTS)
    for name in METHODS:
        whole = folder / name
        whole.mkdir()
        assert ended(in_child(find, whole, name)) == 0
        for moment in itertools.islice(moments, 2):
            parts = folder / f"{name}, {moment}"
            parts.mkdir()
            assert ended(in_child(search_and_die, parts, name, moment)) == -signal.SIGKILL, parts
            left = {file.name for file in parts.iterdir()}
            assert len(left - {"c"}) == ("torn" in moment or "written" in moment), parts
            step = step_of(parts / "c") if "c" in left else 0
            assert step == MOMENTS[moment][1], parts
            assert ended(in_child(find, parts, name)) == 0
            same(whole, parts)


def step_of(path):
    return json.loads(files.read(path, "checkpoint", [1])[1]["rest"])["step"]


def kill_at_any_time(folder, name="iterand"):
    """One search killed again and again, later and later, until it gets to its end."""
    whole, parts = folder / "whole", folder / "parts"
    for path in (whole, parts):
        path.mkdir()
    assert ended(in_child(find, whole, name)) == 0
    delay, kills = 0.02, 0
    while True:
        child = in_child(find, parts, name)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        if ended(child) == 0:
            break
        delay, kills = 1.4 * delay, kills + 1
    assert kills > 1
    same(whole, parts)


def same(whole, parts):
    assert (parts / "found").read_bytes() == (whole / "found").read_bytes(), parts
    assert (parts / "c").read_bytes() == (whole / "c").read_bytes(), parts
    assert sorted(file.name for file in parts.iterdir()) == ["c", "found"], parts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_a_killed_search_ends_as_if_it_had_not_been(tmp_path):
    assert call_in_a_process(__file__, "as_a_process", str(tmp_path)) == ""


def as_a_process(folder):
    importlib.import_module("torch._dynamo")  # every optimiser does: once, before processes are forked
    with one_torch_thread():
        kill_searches(Path(folder))
        kill_at_any_time(Path(folder))


@pytest.mark.parametrize("method", ["iterand", slth.search.IteRand])
def test_a_method_is_a_search(method):
    with pytest.raises(ValueError, match=r"method=.*: must be a search"):
        slth.fit(wrapped(), lambda step: None, lambda m, batch: m, 5, method=method)


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


@pytest.mark.parametrize("value", [2, 2.0, True, np.float32(2), np.array([2]), torch.tensor(2), torch.tensor([2.0])])
def test_what_is_measured_becomes_a_float(value):
    (number,) = fit(wrapped(), steps=1, evaluate=lambda model: {"a": value}).last.values()
    assert (number, type(number)) == (1.0 if value is True else 2.0, float)


class Output(dict):
    """As transformers' model outputs: a mapping with attributes."""

    loss = torch.ones(())


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
