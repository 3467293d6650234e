"""A search goes on after any end as if there had been none."""

import itertools
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from looping import SAVE_EVERY, STEPS, Stopped, fit, interrupted, loader, sparse, until
from regression import METHODS, assert_same, batches, every_method, loss, net, state, wrapped
from torch import nn

import slth
from slth import Ticket, files
from slth.search import EdgePopup
from slth.wrapping import handle


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


@settings(max_examples=6)
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
