"""Wrapped modules copied, stored, loaded, unwrapped."""

import copy
import io

import pytest
import torch
from cases import every_case
from masked_cases import KEEP, MLP, by_hand, described, move, wrapped
from torch import nn

import slth
from slth.wrapping import handle, unwrap, wrap

# ---------------------------------------------------------------- copies and files


@every_case
def test_copies_go_their_own_way(case):
    if case.name == "weight_norm, older":
        with pytest.raises(RuntimeError, match="deepcopy protocol"):  # which torch refuses, wrapped or not
            copy.deepcopy(case.build())
        return
    model = wrapped(case)
    copies = [copy.deepcopy(model)]
    before = case.run(model)
    copies.append(copy.deepcopy(model))
    case.loss(model).backward()
    copies.append(copy.deepcopy(model))
    copies += [copy.deepcopy(each) for each in copies]
    for each in copies:
        assert case.run(each).equal(before)
    move(copies[0])
    after = case.run(copies[0])
    assert not after.equal(before)
    unwrap(copies[1])
    for each in (model, *copies[1:]):
        assert case.run(each).equal(before)
    move(model)
    unwrap(copies[2])
    assert case.run(model).equal(after)
    for each in copies[3:]:
        assert case.run(each).equal(before)
        assert not shared(each, model)


def shared(one, other):
    states = one.state_dict(), other.state_dict()  # both alive: what is made for them has memory of its own
    return {t.data_ptr() for t in states[0].values()} & {t.data_ptr() for t in states[1].values()}


@every_case
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_brings_scores_and_weights_to_another_wrapped_module(case, assign):
    model, other = wrapped(case), wrap(case.build(seed=1), KEEP, seed=1)
    move(model)
    wanted = case.run(model)
    assert not case.run(other).equal(wanted)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert case.run(other).equal(wanted)
    assert all(mask.equal(handle(model).masks()[path]) for path, mask in handle(other).masks().items())
    case.loss(other).backward()
    assert unwrap(other).state_dict().keys() == case.build().state_dict().keys()


def test_scores_stay_float32_where_the_weights_change_type():
    model = wrapped(MLP)
    masks, scores = handle(model).masks(), [s.detach().clone() for s in handle(model).scores()]
    model.bfloat16().double()
    assert {p.dtype for p in unwrap(copy.deepcopy(model)).parameters()} == {torch.float64}
    assert all(s.equal(same) for s, same in zip(scores, handle(model).scores(), strict=True))
    assert all(mask.equal(masks[path]) for path, mask in handle(model).masks().items())
    model(MLP.inputs()[0].double()).sum().backward()


# ---------------------------------------------------------------- unwrapped


@every_case
def test_unwrapped_it_is_a_plain_module_with_zeros_in_place(case):
    module = case.build()
    case.loss(module).backward()  # it was trained, say
    for parameter in list(module.parameters())[::2]:
        parameter.requires_grad_(False)
    called = []
    list(module.modules())[-1].register_forward_hook(lambda *_: called.append(1))
    before = described(module)
    model = wrap(module, KEEP)
    assert all(parameter.grad is None for parameter in model.parameters())
    case.loss(model).backward()
    masks = handle(model).masks()
    with torch.no_grad():
        wanted = case.run(model)
    assert unwrap(model) is model is module
    assert described(module) == before
    plain = by_hand(case, masks)
    assert all(p.equal(plain.get_parameter(name)) for name, p in module.named_parameters())
    with torch.no_grad():
        assert case.run(module.requires_grad_(False)).equal(wanted)
    with pytest.raises(ValueError, match=r"is not wrapped: must come from slth\.wrap"):
        unwrap(module)
    assert case.run(wrap(module, KEEP)).isfinite().all()


@every_case
def test_an_unwrapped_module_can_be_pickled(case):
    module = unwrap(wrapped(case))
    file = io.BytesIO()
    if case.name == "weight_norm":
        with pytest.raises(RuntimeError, match="parametrized modules"):  # which torch refuses, wrapped or not
            torch.save(case.build(), file)
        return
    torch.save(module, file)
    file.seek(0)
    assert case.run(torch.load(file, weights_only=False)).equal(case.run(module))


# ---------------------------------------------------------------- what a state_dict brings along


def small():
    return wrap(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), keep=0.5, weights="signed_constant")


def test_a_state_dict_brings_its_keep():
    model, other = small(), small()
    wanted = {
        path: torch.arange(mask.numel()).reshape(mask.shape) % 3 == 0 for path, mask in handle(model).masks().items()
    }
    handle(model).set_masks(wanted)
    other.load_state_dict(model.state_dict())
    for path, mask in handle(other).masks().items():
        assert torch.equal(mask, wanted[path])


@pytest.mark.parametrize("method", [slth.search.Frozen(), slth.search.IteRand(every=2)], ids=["frozen", "iterand"])
def test_a_state_dict_brings_what_a_search_has_added(method):
    model, other, x = small(), small(), torch.ones(2, 8)
    slth.fit(model, lambda step: x, lambda m, batch: m(batch).square().mean(), 10, method=method)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_a_child_named_module_is_no_wrapper():
    parent = nn.Module()
    parent.module, parent.head = small(), nn.Linear(4, 4)
    with pytest.raises(ValueError, match="not wrapped"):
        handle(parent)
