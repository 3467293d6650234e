"""A small regression that every search learns within a second, for the tests of searches, the loop and tickets."""

import math

import pytest
import torch
from torch import nn

import slth
from slth import search
from slth.search import EdgePopup, Frozen, IteRand
from slth.weights import inits
from slth.wrapping import handle, random_weight

STEPS = 150
METHODS = {name: kind() for name, kind in search.METHODS.items()} | {
    "linear": EdgePopup(schedule="linear"),
    "cubic": EdgePopup(schedule="cubic", arrival=0.5),
    "frozen": Frozen(pruned=0.2, locked=0.2, seed=5),
    "frozen_cubic": Frozen(pruned=0.3, locked=0.1, schedule="cubic"),
    "iterand": IteRand(every=10, rate=0.3),
}

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)

INPUTS = inits.normal((256, 16), 1.0, seed=0, name="inputs")
OUTPUTS = INPUTS @ inits.normal((16, 4), 0.5, seed=0, name="task")


def net(dropout=0.0, dtype=torch.float32):
    """A plain network, 16 -> 4, the same at every call."""
    model = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Dropout(dropout), nn.Linear(48, 4))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(inits.uniform(p.shape, p.shape[-1] ** -0.5, seed=7, name=name))
    return model.to(dtype)


def wrapped(keep=0.4, weights="kaiming_normal", seed=1, dropout=0.0, **options):
    return slth.wrap(net(dropout), keep=keep, weights=weights, seed=seed, **options)


PATHS = ("0.weight", "3.weight")  # of the weights


def weights_of(model):
    """Copies of the random weights under the masks."""
    return {path: random_weight(model, path).detach().clone() for path in handle(model).weights}


def batches(step):
    """(inputs (32, 16), outputs (32, 4)) of a step."""
    rows = ((inits.uniform((32,), 0.5, seed=0, name="rows", stream=step) + 0.5) * len(INPUTS)).long()
    return INPUTS[rows], OUTPUTS[rows]


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


@torch.no_grad()
def error(model):
    """The loss over all data, as evaluation sees it."""
    return float(loss(model.eval(), (INPUTS, OUTPUTS)))


def evaluate(model):
    return {"error": error(model)}


def fit(model, method=None, steps=STEPS, **options):
    options = {"lr": 0.02, "progress": False} | options
    return slth.fit(model, batches, loss, steps, method=method, **options)


def counts(model):
    """(kept, wanted) of each group."""
    masks = handle(model).masks()
    return [
        (
            sum(int(m.parts[i].of(masks[m.path]).sum()) for m, i in group.members),
            math.floor(group.keep * group.size + 0.5),
        )
        for group in handle(model).groups
    ]


def state(model):
    """Copies of all tensors."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not tensor.equal(theirs[name])] == []
