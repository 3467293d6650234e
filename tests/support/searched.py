"""Networks that were searched, and what is saved of them."""

import io

import pytest
import torch
from cases import CASES, WIDTH
from torch import nn

import slth
from slth.masking import Masked
from slth.search import Bernoulli, Biprop, EdgePopup, Frozen, IteRand

CASE = {case.name: case for case in CASES}
METHODS = {
    "edge-popup": EdgePopup(),
    "biprop": Biprop(),
    "bernoulli": Bernoulli(sigma=0.25, seed=3),
    "frozen": Frozen(pruned=0.2, locked=0.1, seed=2),
    "iterand": IteRand(every=1, rate=0.5),
}
NETWORKS = ["tied", "torch attention, packed", "lstm", "gpt2"]
every_method = pytest.mark.parametrize("method", METHODS)
every_network = pytest.mark.parametrize("case", [CASE[name] for name in NETWORKS], ids=NETWORKS)


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(WIDTH, 12), nn.Tanh(), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, 4)
        )


def wrapped(module=None, keep=0.5, weights="kaiming_uniform", **options):
    return slth.wrap(net() if module is None else module, keep=keep, weights=weights, **options)


X = torch.linspace(-2.0, 2.0, 3 * WIDTH).cos().reshape(3, WIDTH)


def searched(method, model=None, steps=3, run=None):
    model = wrapped() if model is None else model
    run = run or (lambda module: module(X).square().mean())
    slth.fit(model, lambda step: X, lambda m, _: run(m), steps, method=METHODS.get(method), lr=0.1, progress=False)
    return model


def written(model):
    """The state_dict as it comes from a file that is not trusted."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def masks_of(model):
    return [m for m in model.modules() if isinstance(m, Masked)]
