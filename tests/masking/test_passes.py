"""Masks follow scores however these were written, and passes that overlap have masked weights of their own."""

import copy
import gc
import sys
import threading
import weakref

import pytest
import torch
from cases import CASES, WIDTH, every_case
from helpers import together
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import slth
from slth import handle
from slth.masking import Group, passes
from slth.masking.masks import count_kept
from slth.wrapping import effective, random_weight

KEEP = 0.3
CASE = {case.name: case for case in CASES}


def mlp(policy="layer"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 20), nn.Tanh(), nn.Linear(20, 5))
    return slth.wrap(net, KEEP, policy, weights="signed_constant")


def fresh(scores):
    return torch.randn(scores.shape, generator=torch.Generator().manual_seed(scores.numel()))


def through_data(model):
    for scores in handle(model).scores():
        scores.data.copy_(fresh(scores))


def through_numpy(model):
    for scores in handle(model).scores():
        scores.detach().numpy()[...] = fresh(scores).numpy()


def vector_to_parameters(model):
    flat = [fresh(scores).flatten() for scores in handle(model).scores()]
    nn.utils.vector_to_parameters(torch.cat(flat), handle(model).scores())


def new_data(model):
    for scores in handle(model).scores():
        scores.data = fresh(scores)


@torch.no_grad()
def set_(model):
    for scores in handle(model).scores():
        scores.set_(fresh(scores))


def foreach(model):
    torch._foreach_add_([s.data for s in handle(model).scores()], [fresh(s) for s in handle(model).scores()])


def swapped(model):
    """Two values change places: no sum over the scores tells."""
    for scores in handle(model).scores():
        scores.data.copy_(scores.data.flatten().flip(0).reshape(scores.shape))


def elsewhere(model):
    thread = threading.Thread(target=through_data, args=(model,))
    thread.start()
    thread.join()


def averaged(model):
    average = torch.optim.swa_utils.AveragedModel(model)
    through_data(average.module)
    for scores, other in zip(handle(model).scores(), handle(average.module).scores(), strict=True):
        scores.data, other.data = other.data, scores.data


WRITERS = [
    through_data,
    through_numpy,
    vector_to_parameters,
    new_data,
    set_,
    foreach,
    swapped,
    elsewhere,
    averaged,
]


def by_sorting(model, policy):
    """The masks of the scores as they are, by a stable sort."""
    paths = list(handle(model).weights)
    masks = {}
    for group in [paths] if policy == "global" else [[path] for path in paths]:
        scores = [handle(model).weights[path].scores.detach().clone() for path in group]
        flat = torch.cat([s.flatten() for s in scores]).abs()
        mask = torch.zeros(flat.numel(), dtype=torch.bool)
        mask[flat.argsort(descending=True, stable=True)[: count_kept(flat.numel(), KEEP)]] = True
        parts = mask.split([s.numel() for s in scores])
        masks |= {path: m.view_as(s) for path, m, s in zip(group, parts, scores, strict=True)}
    return masks


def outside(model):
    return model[2](model[1](model[0](torch.eye(WIDTH))))


SHOWS = {
    "forward": lambda model: model(torch.eye(WIDTH)),
    "parts": outside,
    "masks": lambda model: list(handle(model).masks().values()),
    "effective": lambda model: list(effective(model).values()),
    "weights": lambda model: [model[0].weight, model[2].weight],
    "ticket": lambda model: list(slth.Ticket.of(model).masks().values()),
    "unwrapped": lambda model: [p for p in slth.unwrap(copy.deepcopy(model)).parameters() if p.dim() == 2],
}


def expected(model, shows, masks):
    weights = [torch.where(mask, random_weight(model, path), 0.0) for path, mask in masks.items()]
    if shows in ("masks", "ticket"):
        return list(masks.values())
    if shows not in ("forward", "parts"):
        return weights
    hidden = nn.functional.linear(torch.eye(WIDTH), weights[0], model[0].bias).tanh()
    return nn.functional.linear(hidden, weights[1], model[2].bias)


@pytest.mark.parametrize(
    ("write", "shows", "policy"),
    [pytest.param(write, shows, "layer", id=f"{write.__name__}, {shows}") for write in WRITERS for shows in SHOWS]
    + [pytest.param(swapped, shows, "global", id=f"swapped, {shows}, global") for shows in SHOWS],
)
def test_masks_follow_scores_however_these_are_written(write, shows, policy):
    model = mlp(policy)
    SHOWS[shows](model)  # masks are in use
    before = by_sorting(model, policy)
    write(model)
    masks = by_sorting(model, policy)
    assert all(not mask.equal(before[path]) for path, mask in masks.items())
    found, wanted = SHOWS[shows](model), expected(model, shows, masks)
    if isinstance(wanted, list):
        assert all(one.equal(other) for one, other in zip(found, wanted, strict=True))
    else:
        assert found.equal(wanted)


# ---------------------------------------------------------------- passes that overlap


@every_case
def test_replicas_compute_what_the_model_does_with_tensors_of_their_own(case, monkeypatch):
    replicate = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(replicate, "_get_device_index", lambda device, optional=False: device)
    monkeypatch.setattr(
        replicate,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [
            [t * factor if t.is_floating_point() else t for t in tensors] for factor in devices
        ],
    )  # the second "device" is told by tensors twice as large
    model, double = slth.wrap(case.build(), KEEP, "global"), slth.wrap(case.build(), KEEP, "global")
    with torch.no_grad():
        for tensor in [*double.parameters(), *double.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(2)
    replicas = replicate.replicate(model, [1, 2])
    found = together(lambda i: case.run(replicas[i]))
    for out, wanted in zip(found, (case.run(model), case.run(double)), strict=True):
        assert out.equal(wanted)
    if case.training or not case.loss(model).requires_grad:
        return
    model.zero_grad()
    wanted = torch.autograd.grad(case.loss(model), handle(model).scores())
    replica = replicate.replicate(model, [1])[0]
    got = torch.autograd.grad(case.loss(replica), handle(model).scores())
    assert all(one.equal(other) for one, other in zip(got, wanted, strict=True))


def test_threads_that_train_one_model_have_each_their_own_pass():
    barrier = threading.Barrier(2)

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            barrier.wait(20)  # both passes are open
            out = x @ self.layer.weight.mT
            barrier.wait(20)
            return out @ self.layer.weight.mT

    model, x = slth.wrap(Meeting(), KEEP), torch.eye(4)
    one, other = together(lambda i: torch.autograd.grad(model(x).sum(), handle(model).scores())[0])
    assert one.any()
    assert one.equal(other)


class Again(nn.Module):
    """Calls itself, the scores moved in between."""

    def __init__(self):
        super().__init__()
        self.layer, self.between = nn.Linear(WIDTH, WIDTH), None

    def forward(self, x, depth=1):
        x = self.layer(x)
        return x + self(x, depth - 1) + self.layer(x) if depth else x


def test_a_module_called_in_its_own_forward():
    torch.manual_seed(0)
    model = slth.wrap(Again(), KEEP)
    plain, x = slth.unwrap(copy.deepcopy(model)), torch.randn(3, WIDTH)
    assert model(x, 2).equal(plain(x, 2))
    with pytest.raises(TypeError):
        model(x, depth="1")
    through_data(model)
    assert model(x, 2).equal(slth.unwrap(copy.deepcopy(model))(x, 2))


class Interrupted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.stop = nn.Linear(WIDTH, WIDTH, bias=False), True

    def forward(self, x):
        x = self.first(x)
        if self.stop:
            raise KeyboardInterrupt
        return x


def test_what_an_interrupted_pass_leaves_is_not_used():
    model, x = slth.wrap(Interrupted(), KEEP), torch.eye(WIDTH)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    through_data(model)
    wanted = effective(model)["first.weight"]
    assert model.first.weight.equal(wanted)
    assert model.first(x).equal(wanted.mT)


def test_a_collection_frees_what_an_interrupted_pass_held():
    model, x = slth.wrap(Interrupted(), KEEP), torch.eye(WIDTH)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    model, x = weakref.ref(model), weakref.ref(x)
    gc.collect()
    assert model() is None
    assert x() is None


class Meddling(nn.Module):
    """Does something to its layers between two reads of each."""

    def __init__(self, meddle):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.meddle = meddle

    def forward(self, x):
        before = self.first(x), self.second(x)
        return before, self.meddle(self, x), (self.first(x), self.second(x))


@torch.no_grad()
def write_scores(model, x):
    for layer in (model.first, model.second):
        scores = layer.parametrizations.weight[0].scores
        scores.copy_(fresh(scores))


def call_with_others(model, x):
    state = {name: fresh(tensor) for name, tensor in model.first.state_dict().items() if name.endswith("scores")}
    return functional_call(model.first, state, x)


def call_with_weight(model, x):
    original = {"parametrizations.weight.original": fresh(random_weight(model, "first.weight"))}
    return functional_call(model.first, original, x)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("policy", ["layer", "global"])
def test_scores_written_within_a_pass_count_from_then_on(policy, grad):
    model, x = slth.wrap(Meddling(write_scores), KEEP, policy), torch.eye(WIDTH)
    with torch.set_grad_enabled(grad):
        old = effective(model)
        before, _, after = model(x)
        new = effective(model)
    for i, name in enumerate(("first.weight", "second.weight")):
        assert before[i].equal(old[name].mT)
        assert after[i].equal(new[name].mT)
        assert not before[i].equal(after[i])


@pytest.mark.parametrize("call", [call_with_others, call_with_weight])
@pytest.mark.parametrize("policy", ["layer", "global"])
def test_a_part_called_with_other_tensors_within_a_pass(policy, call):
    model, x = slth.wrap(Meddling(call), KEEP, policy), torch.eye(WIDTH)
    before, within, after = model(x)
    assert within.equal(call(model, x))
    assert not within.equal(before[0])
    for one, other in zip(before, after, strict=True):
        assert one.equal(other)


class Blocks(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(nn.LSTM(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)[0] if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)[0]
        return x


@pytest.mark.parametrize("policy", ["layer", "global"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_recomputed_in_backward_have_the_same_gradients(policy, reentrant):
    x = torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grads = []
    for kind in (None, reentrant):
        torch.manual_seed(0)
        model = slth.wrap(Blocks(kind), KEEP, policy)
        model(x).square().sum().backward()
        grads.append([scores.grad for scores in handle(model).scores()])
    for one, other in zip(*grads, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_recomputed_in_backward_are_cut_once(reentrant, monkeypatch):
    model, cuts = slth.wrap(Blocks(reentrant), KEEP, "global"), []
    cut = Group.cut
    monkeypatch.setattr(Group, "cut", lambda self, *rest: cuts.append(self) or cut(self, *rest))
    loss = model(torch.randn(3, 2, WIDTH, requires_grad=True)).square().sum()
    assert len(cuts) == 1
    loss.backward()
    assert len(cuts) == 2
    assert not passes._thread.backward


class Twice(nn.Module):
    """Reads a weight before, and twice within, what is computed again."""

    def __init__(self, **how):
        super().__init__()
        self.first, self.second, self.how = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), how

    def inner(self, x):
        return self.second(self.first(x).tanh() + self.first(x))

    def forward(self, x):
        x = self.first(x)
        for _ in range(2):
            x = checkpoint(self.inner, x, **self.how) if self.how else self.inner(x)
        return x


@pytest.mark.parametrize("how", [{"use_reentrant": True}, {"use_reentrant": False}], ids=str)
def test_a_weight_read_several_times_in_recomputed_layers_has_the_same_gradient(how):
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grads = []
    for options in ({}, how):
        torch.manual_seed(0)
        model = slth.wrap(Twice(**options), KEEP)
        model(x).square().sum().backward()
        grads.append([scores.grad for scores in handle(model).scores()])
        assert not passes._thread.backward
    for one, other in zip(*grads, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


def test_a_model_evaluated_while_another_thread_trains_it_stays_in_training():
    model = slth.wrap(nn.Linear(4, 4), KEEP)
    modes = []
    handle(model).weights["weight"].gate = lambda masked, weight: modes.append(masked.training) or masked.pruned(weight)
    model.train()
    effective(model)
    model(torch.eye(4))
    assert modes == [False, True]
    assert all(module.training for module in model.modules())
