"""What is saved of a wrapped model, and how: whatever reads it computes the same, or says what differs."""

import copy
import json
import re

import pytest
import torch
from cases import WIDTH
from searched import (
    CASE,
    METHODS,
    X,
    every_method,
    every_network,
    masks_of,
    net,
    same,
    searched,
    values,
    wrapped,
    written,
)
from tables import one_case
from torch import nn

import slth
from slth.search import EdgePopup, controls
from slth.wrapping import effective, handle

POLICIES = {"layer": "layer", "global": "global", "named": {"ends": ["0.*", "4.*"]}}


def refused(model, state, message, **options):
    """Nothing of the model is changed."""
    before, masks, gates = values(model), [m.mask() for m in masks_of(model)], [m.gate for m in masks_of(model)]
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state, **options)
    assert same(values(model), before)
    assert all(m.mask().equal(mask) for m, mask in zip(masks_of(model), masks, strict=True))
    assert [m.gate for m in masks_of(model)] == gates


# ---------------------------------------------------------------- what is loaded computes what was saved


@every_method
@pytest.mark.parametrize("policy", POLICIES)
def test_a_fresh_model_becomes_the_saved_one(method, policy):
    model = searched(method, wrapped(policy=POLICIES[policy]))
    other = wrapped(net(1), policy=POLICIES[policy], seed=1).eval()
    assert not torch.equal(other(X), model(X))
    other.load_state_dict(written(model))
    for mode in (False, True):
        assert torch.equal(other.train(mode)(X), model.train(mode)(X))
    assert same(handle(other).masks(), handle(model).masks())
    assert same(values(other), values(model))
    assert [m.made_by for m in handle(other).weights.values()] == [method] * 3


@every_method
@every_network
def test_networks_of_other_kinds_do_so_too(method, case):
    model = searched(method, wrapped(case.build()), run=case.loss)
    other = wrapped(case.build(1), seed=1)
    other.load_state_dict(written(model))
    assert case.run(other.train(model.training)).equal(case.run(model))
    assert same(effective(other), effective(model))


@every_method
def test_how_weights_were_drawn_is_loaded_too(method):
    model, other = searched(method), wrapped(net(1), seed=1)
    other.load_state_dict(written(model))
    again = wrapped(net(2), weights=None)
    again.load_state_dict(written(other))
    for loaded in (other, again):
        assert slth.Ticket.of(loaded.eval()).to_bytes() == slth.Ticket.of(model).to_bytes()
    assert torch.equal(searched(method, other)(X), searched(method, model)(X))
    other = wrapped()
    assert not slth.Ticket.of(other).over
    other.load_state_dict(wrapped(net(1), weights=None).state_dict())
    assert list(slth.Ticket.of(other).over) == list(handle(other).weights)  # that no seed makes


def test_a_schedule_is_saved_where_it_stands():
    model, states, outputs = wrapped(keep=0.2), [], []
    method = EdgePopup(schedule="linear", arrival=1.0)

    def evaluate(m):
        states.append(written(m)), outputs.append(m(X))
        return {}

    slth.fit(
        model, lambda step: X, lambda m, x: m(x).square().mean(), 4, method=method, evaluate=evaluate, every=1,
        progress=False,
    )  # fmt: skip
    for state, output in zip(states, outputs, strict=True):
        other = wrapped(keep=0.2).eval()
        other.load_state_dict(state)
        assert torch.equal(other(X), output)


def test_weights_trained_under_a_mask_are_loaded_and_wound_back():
    model = searched("edge-popup")
    start = copy.deepcopy(model.state_dict())
    controls.train_weights(model)
    slth.fit(model, lambda step: X, lambda m, x: m(x).square().mean(), 3, progress=False)
    other = wrapped().eval()
    other.load_state_dict(written(model))
    assert torch.equal(other(X), model(X))
    model.load_state_dict(start)  # and its gate still lets the weights be trained
    assert torch.equal(model(X), searched("edge-popup")(X))
    model(X).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.endswith("original"))


def test_what_was_saved_before_there_were_entries_is_loaded_as_ever():
    model = searched("frozen")
    old = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("_extra_state")}
    other = wrapped().eval()
    assert other.load_state_dict(old) == ([], [])
    assert torch.equal(other(X), model(X))
    del old["0.parametrizations.weight.0.scores"]
    assert other.load_state_dict(old, strict=False).missing_keys == ["0.parametrizations.weight.0.scores"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"0\.parametrizations\.weight\.0\.scores"):
        other.load_state_dict(old)


def test_both_names_of_a_tied_weight_may_be_there():
    case = CASE["tied"]
    model, other = wrapped(case.build()), wrapped(case.build(1), seed=1)
    once = model.state_dict()
    assert not any(name.startswith("head.") for name in once)
    twice = dict(once) | {name.replace("embedding.", "head."): tensor for name, tensor in once.items()}
    for state in (once, twice):
        for assign in (False, True):
            other.load_state_dict(state, assign=assign)
            assert case.run(other).equal(case.run(model))
            slots = [layer.parametrizations.weight for layer in (other.embedding, other.head)]
            assert slots[0].original is slots[1].original
    assert case.run(slth.unwrap(other)).equal(case.run(model))
    assert other.head.weight is other.embedding.weight


def test_a_part_of_a_model_is_saved_and_loaded_alone():
    def second(method):
        return searched(method, wrapped(nn.ModuleList([net(), net()])), run=lambda pair: pair[1](X).square().mean())[1]

    part, other = second("biprop"), wrapped(net(1))
    other.load_state_dict(part.state_dict())
    assert torch.equal(other.eval()(X), part(X))
    refused(other, second("iterand").state_dict(), "is of iterand, the model of biprop")
    refused(second("iterand"), part.state_dict(), "is of biprop, the model of iterand")


class Negated(nn.Module):
    def forward(self, weight):
        return -weight


@pytest.mark.parametrize("position", [0, 1])
def test_a_mask_behind_another_parametrization_is_saved_and_loaded(position):
    def changed(seed, **options):
        model = wrapped(net(seed), seed=seed, **options)
        model[0].parametrizations.weight.insert(position, Negated())
        return model

    model, other = changed(0).eval(), changed(1).eval()
    other.load_state_dict(written(model))
    assert other(X).equal(model(X))
    refused(changed(2, policy="global"), changed(0).state_dict(), r"0\.weight: competes alone")


# ---------------------------------------------------------------- what does not fit


@pytest.fixture(scope="module")
def found():
    """What each method has found; nothing that is loaded changes it."""
    return {method: searched(method) for method in METHODS}


@one_case
@every_method
@pytest.mark.parametrize("other", METHODS)
@pytest.mark.parametrize("strict", [True, False])
def test_another_kind_of_search_is_refused_by_name(method, other, strict, found):
    state = found[method].state_dict()
    if other in ("edge-popup", method):  # to which nothing was added yet
        model = searched(other)
        model.load_state_dict(state, strict=strict)
        assert torch.equal(model(X), found[method](X))
    else:
        message = rf"state_dict of 0\.weight: is of {method}, the model of {other}: load it into a freshly wrapped one"
        refused(found[other], state, message, strict=strict)


@one_case
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("other", POLICIES)
def test_another_policy_is_refused_by_name(policy, other):
    state, model = wrapped(policy=POLICIES[policy]).state_dict(), wrapped(net(1), policy=POLICIES[other], seed=1)
    if policy == other:
        model.load_state_dict(state)
        return
    words = {"layer": "alone", "global": "in 'all weights' from index 0", "named": "in 'ends' from index 0"}
    refused(model, state, rf"0\.weight: competes {words[policy]}, here {words[other]}: wrap this model with the policy")


def other_parts(state):
    return wrapped(nn.MultiheadAttention(WIDTH, 2)).state_dict()


def of_a_later_version(state):
    entry = json.loads(bytes(state[ENTRY].tolist())) | {"version": 2}
    return state | {ENTRY: torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)}


def with_a_gate(told):
    def change(state):
        entry = json.loads(bytes(state[ENTRY].tolist())) | {"gate": told}
        return state | {ENTRY: torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)}

    return change


ENTRY = "5.parametrizations.weight.0._extra_state"
MISFITS = {
    "plain": (lambda state: net(1).state_dict(), r"state_dict has 0\.weight of a module that is not wrapped: load it"),
    "shape": (
        lambda state: state | {"5.parametrizations.weight.0.scores": torch.ones(3, 12)},
        r"state_dict of 5\.weight: has shape \(3, 12\), must be \(4, 12\)",
    ),
    "no tensor": (lambda state: state | {ENTRY: "biprop"}, r"5\.weight: _extra_state is str: must be a uint8 tensor"),
    "garbage": (lambda state: state | {ENTRY: torch.full((9,), 200).byte()}, r"5\.weight: _extra_state is damaged"),
    "half": (lambda state: state | {ENTRY: torch.tensor(list(b'{"version": 1}')).byte()}, "damaged .KeyError: 'parts'"),
    "version": (of_a_later_version, r"5\.weight: _extra_state has version 2: must be 1"),
    "gate": (with_a_gate({"name": "os.system"}), r"5\.weight: has the gate 'os\.system': must be one of edge-popup"),
    "numbers": (with_a_gate({"name": "bernoulli", "sigma": "x"}), r"has the gate 'bernoulli' with .*: must be its"),
}


@one_case
@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("strict", [True, False])
def test_what_cannot_be_loaded_changes_nothing(name, strict):
    change, message = MISFITS[name]
    refused(wrapped(), change(dict(wrapped(net(1), seed=1).state_dict())), message, strict=strict)


def test_other_parts_are_refused_by_name():
    one = slth.wrap(nn.MultiheadAttention(WIDTH, 2))
    state = dict(one.state_dict())
    key = "parametrizations.in_proj_weight.0._extra_state"
    state[key] = torch.tensor(list(bytes(state[key].tolist()).replace(b'"value"', b'"other"'))).byte()
    refused(one, state, r"in_proj_weight: has parts query, key, other along axis 0, must have query, key, value along")


def softened(masked, weight):
    return masked.pruned(weight).tanh()


OWN = re.escape(f"{softened.__module__}.softened")


def test_a_gate_of_ones_own_is_asked_for_by_name():
    def own(model):
        for masked in handle(model).weights.values():
            masked.gate = softened
        return model

    model = own(wrapped())
    refused(wrapped(net(1)), model.state_dict(), rf"0\.weight: has the gate {OWN}, which is not slth's")
    other = own(wrapped(net(1)))
    other.load_state_dict(written(model))
    assert torch.equal(other(X), model(X))
    refused(other, wrapped().state_dict(), rf"is of edge-popup, the model of {OWN}")
