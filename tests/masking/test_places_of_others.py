"""Buffers and weights beside masked ones: what tickets, searches and wrap make of them."""

import copy
import logging
import pickle
import re

import pytest
import torch
from tables import one_case
from torch import nn
from two_layers import Tied, X, net, wrapped

import slth
from slth.wrapping import random_weight

# ---------------------------------------------------------------- odd buffers


def with_buffer(odd, persistent=True):
    model = net()
    model.register_buffer("odd", odd, persistent=persistent)
    return model


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.eye(4).to_sparse(), r"odd is Tensor, torch\.sparse_coo: a ticket holds plain dense tensors"),
        (lambda: torch.ones(3, device="meta"), "odd is on meta: a ticket holds plain dense tensors with values"),
        (lambda: torch.arange(3.0).expand(2, 3), r"odd is an expanded view, .* must be its clone"),
    ],
)
def test_a_buffer_that_no_ticket_holds_is_named_and_can_be_left_out(make, message):
    with pytest.raises(slth.ticket.TicketError, match=message):
        slth.Ticket.of(slth.wrap(with_buffer(make()), weights="theory"))
    model = slth.wrap(with_buffer(make(), persistent=False), weights="theory")
    assert slth.Ticket.of(model).apply(with_buffer(make(), persistent=False))(X).equal(model(X))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.int8, torch.bool])
def test_buffers_of_other_dtypes_come_along(dtype):
    model = slth.wrap(with_buffer(torch.ones(3).to(dtype)), weights="theory")
    other = slth.Ticket.from_bytes(slth.Ticket.of(model).to_bytes()).apply(with_buffer(torch.zeros(3).to(dtype)))
    assert other.odd.float().equal(torch.ones(3)) if not dtype.is_complex else other.odd.real.equal(torch.ones(3))


def test_a_ticket_is_not_applied_to_a_model_without_values():
    ticket = slth.Ticket.of(wrapped())
    with torch.device("meta"):
        empty = net()
    with pytest.raises(slth.ticket.TicketError, match=r"0\.weight is on meta"):
        ticket.apply(empty)


# ---------------------------------------------------------------- what a search trains


def search(model, x=X, **options):
    return slth.fit(model, lambda step: x, lambda m, x: m(x).square().mean(), 20, progress=False, **options)


@pytest.mark.parametrize("method", [None, slth.search.IteRand(every=1)])
def test_a_search_refuses_a_layer_in_the_place_of_a_masked_one(method):
    model = wrapped()
    model[2] = nn.Linear(8, 8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"2\.weight is no longer in the Sequential"):
        search(model, method=method)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("lost", "left"), [("head", "table"), ("table", "head")])
def test_a_search_and_a_ticket_refuse_a_layer_in_the_place_of_a_tied_one(lost, left):
    model = slth.wrap(Tied(), weights="signed_constant")
    setattr(model, lost, nn.Linear(8, 6, bias=False) if lost == "head" else nn.Embedding(6, 8))
    for call in (slth.Ticket.of, lambda m: search(m, torch.arange(6))):
        with pytest.raises(ValueError, match=rf"{lost}\.weight was tied to {left}\.weight and is no longer in the"):
            call(model)
    slth.unwrap(model)


def test_a_search_trains_what_was_added_and_names_it(caplog):
    def told():  # by the search, whatever else is logged
        return [record.getMessage() for record in caplog.records if record.name.startswith("slth")]

    caplog.set_level(logging.WARNING, "slth.search")  # also where the level of all loggers is another
    model = wrapped()
    model.append(nn.Linear(8, 2))
    start = model[3].weight.detach().clone()
    search(model)
    assert not model[3].weight.equal(start)
    assert told() == ["fit: trained densely beside the scores, stored whole in a ticket: 3.weight, 3.bias"]
    caplog.clear()
    search(wrapped())
    assert not told()


def test_a_search_trains_on_where_a_masked_layer_has_moved():
    model = wrapped()
    model[2] = nn.Sequential(model[2], nn.Identity())
    start = model[2][0].parametrizations.weight[0].scores.detach().clone()
    search(model)
    assert not model[2][0].parametrizations.weight[0].scores.equal(start)


@pytest.mark.parametrize("renew", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_masked_weight_is_not_written(renew):
    model = renew(wrapped())
    before = random_weight(model, "0.weight").clone()
    for value in (torch.zeros(8, 8), nn.Parameter(torch.zeros(8, 8)), None):
        with pytest.raises(ValueError, match=r"0\.weight is masked, its random weights are not to be written: slth"):
            model[0].weight = value
    assert random_weight(model, "0.weight").equal(before)
    slth.unwrap(model)
    model[0].weight = nn.Parameter(torch.zeros(8, 8))
    assert not model[0](X - X).sub(model[0].bias).any()


@one_case
@pytest.mark.parametrize(
    "given",
    [
        {"policy": None},
        {"policy": [["0*"]]},
        {"policy": {"qk": 3}},
        {"weights": 3},
        {"weights": {"*": 3}},
        {"parameters": [nn.Linear]},
        {"parameters": nn.Linear},
        {"scores": ["constant"]},
        {"keep": {3: 0.5}},
        {"keep": None},
    ],
    ids=str,
)
def test_wrap_refuses_another_kind_of_value_by_name_and_changes_nothing(given):
    model, [(name, value)] = net(), given.items()
    with pytest.raises(ValueError, match=f"^{name}={re.escape(repr(value))}: must be "):
        slth.wrap(model, **given)
    assert [*dict(model.named_parameters())] == ["0.weight", "0.bias", "2.weight", "2.bias"]
