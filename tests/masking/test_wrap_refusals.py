"""What cannot be wrapped, and stays as it was."""

import copy

import pytest
import torch
from masked_cases import described, mlp
from tables import one_case
from torch import nn

import slth
from slth.wrapping import effective, handle, unwrap, wrap


def with_nan():
    module = mlp()
    with torch.no_grad():
        module[2].weight[1, 3] = float("nan")
    return module


def on_meta():
    module = mlp()
    module[2].to("meta")
    return module


def already():
    return wrap(mlp(), 0.5)


def inside():
    return nn.Sequential(wrap(nn.Linear(3, 2), 0.5), nn.Linear(2, 2))


REFUSED = {
    "keep of nothing": (mlp, {"keep": 0}, r"keep=0: must be a number in \(0, 1\]"),
    "keep of too much": (mlp, {"keep": 1.2}, r"keep=1.2: must be a number in \(0, 1\]"),
    "keep below zero": (mlp, {"keep": {"*": -0.5}}, r"keep=-0.5: must be a number in \(0, 1\]"),
    "keep that is no number": (mlp, {"keep": "half"}, r"keep='half': must be a number in \(0, 1\]"),
    "keep that matches nothing": (
        mlp,
        {"keep": {"1.*": 0.5, "*": 0.5}},
        r"keep: the pattern '1\.\*' matches no weight that is masked, of 0\.weight, 2\.weight",
    ),
    "keep that leaves some out": (mlp, {"keep": {"0.*": 0.5}}, r"keep: no pattern of 0\.\* matches 2\.weight"),
    "two keeps in a group": (
        mlp,
        {"keep": {"0.*": 0.5, "2.*": 0.25}, "policy": "global"},
        r"keep=\[0.25, 0.5\] within the group 'all weights': must be one share",
    ),
    "two keeps in a named group": (
        mlp,
        {"keep": {"0.*": 0.5, "2.*": 0.25}, "policy": {"both": "*"}},
        r"keep=\[0.25, 0.5\] within the group 'both': must be one share",
    ),
    "policy": (mlp, {"policy": "block"}, 'policy=\'block\': must be "layer", "global" or patterns by group name'),
    "policy that matches nothing": (
        mlp,
        {"policy": {"qk": ["*query*"]}},
        r"policy: the pattern '\*query\*' matches no",
    ),
    "parameters": (
        mlp,
        {"parameters": "3.weight"},
        r"parameters='3\.weight': matches no parameter; there are 0\.weight, 0\.bias",
    ),
    "weights": (mlp, {"weights": "glorot"}, "weights='glorot': must be one of theory"),
    "weights by pattern": (mlp, {"weights": {"0.*": "theory", "2.*": "glorot"}}, "weights='glorot': must be one of"),
    "weights that match nothing": (mlp, {"weights": {"9.*": "theory"}}, r"weights: the pattern '9\.\*' matches no"),
    "scores": (mlp, {"scores": "uniform"}, "scores='uniform': must be one of kaiming_uniform, magnitude, constant"),
    "seed": (mlp, {"seed": 0.5, "weights": "theory"}, "seed=0.5: must be an int"),
    "not a number": (with_nan, {"weights": {"0.*": "theory"}, "scores": "magnitude"}, r"2\.weight holds NaN"),
    "meta": (on_meta, {"weights": "theory"}, r"2\.weight: must have values before it is wrapped"),
    "lazy": (lambda: nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2)), {}, r"1\.weight: must have values before"),
    "integers": (
        lambda: nn.ParameterDict({"a": nn.Parameter(torch.ones(3, 2, dtype=torch.int8), requires_grad=False)}),
        {},
        r"a is torch\.int8 of shape \(3, 2\): must be floating-point and not empty",
    ),
    "nothing to mask": (lambda: nn.LayerNorm(3), {}, "LayerNorm: nothing to mask; it holds weight, bias"),
    "nothing at all": (nn.ReLU, {}, "ReLU: nothing to mask; it holds no parameters"),
    "wrapped": (already, {}, "Sequential is wrapped already: unwrap it first"),
    "wrapped inside": (inside, {}, "Sequential has a wrapped part, '.*': that part .* must be unwrapped first"),
}


@one_case
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_changed(name):
    make, options, message = REFUSED[name]
    module = make()
    before, values = described(module), copy.deepcopy(module.state_dict())
    with pytest.raises((ValueError, TypeError), match=message):
        wrap(module, **{"keep": 0.5} | options)
    assert described(module) == before
    for name, value in module.state_dict().items():
        if not value.is_meta and not isinstance(value, nn.parameter.UninitializedTensorMixin):
            assert torch.equal(value.nan_to_num(7.0), values[name].nan_to_num(7.0))


def test_only_what_is_wrapped_has_masks():
    for call in (handle, unwrap, effective):
        with pytest.raises(ValueError, match=r"Sequential is not wrapped: must come from slth\.wrap"):
            call(mlp())


def test_the_package_offers_it():
    assert slth.wrap is wrap
    assert slth.unwrap is unwrap
