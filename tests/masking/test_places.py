"""A model that is changed after wrap: its outputs stay through unwrap, and a ticket is right or refused by name."""

import copy

import pytest
import torch
from tables import one_case
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from two_layers import Tied, X, net, wrapped

import slth
from slth.wrapping import check_in_place, effective, handle, random_weight


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


class LowRank(nn.Module):
    """As peft's layers: the layer itself is inside, called base_layer."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.b(self.a(x))


def before_ours(model):
    model[0].parametrizations.weight.insert(0, Doubled())


def low_rank(model):
    model[0] = LowRank(model[0])


def baked(model):
    parametrize.remove_parametrizations(model[0], "weight")


CHANGES = {
    "spectral_norm": (lambda m: parametrizations.spectral_norm(m[0]), r"0\.weight: _SpectralNorm was put on it"),
    "orthogonal": (
        lambda m: parametrizations.orthogonal(m[2], use_trivialization=False),
        r"2\.weight: _Orthogonal was put on it after wrap",
    ),
    "a user's": (
        lambda m: parametrize.register_parametrization(m[0], "weight", Doubled()),
        r"0\.weight: Doubled was put on it after wrap",
    ),
    "before ours": (before_ours, r"0\.weight: Doubled was put on it after wrap"),
    "new head": (lambda m: m.__setitem__(2, nn.Linear(8, 3)), r"2\.weight is no longer in the Sequential"),
    "inserted": (lambda m: m.insert(0, nn.Identity()), r"0\.weight has become 1\.weight"),
    "removed": (lambda m: m.pop(2), r"2\.weight is no longer in the Sequential"),
    "removed first": (lambda m: m.pop(0), r"0\.weight is no longer in the Sequential"),
    "low rank on top": (low_rank, r"0\.weight has become 0\.base_layer\.weight"),
    "parametrization removed": (baked, r"0\.weight is no longer in the Sequential"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("copied", [False, True])
def test_masks_come_off_and_a_ticket_says_what_stands_in_its_way(change, copied):
    model = wrapped()
    model[0].weight  # noqa: B018 # outside a forward pass
    do, message = CHANGES[change]
    do(model)
    model.eval()
    with torch.no_grad():
        before = model(X)
    if copied:
        model = copy.deepcopy(model)
    for call in (slth.Ticket.of, check_in_place):
        with pytest.raises(ValueError, match=message):
            call(model)
    slth.unwrap(model)
    with torch.no_grad():
        assert model(X).equal(before)
    slth.wrap(model, 0.5)
    slth.unwrap(model)


def test_what_does_not_touch_masked_weights_leaves_the_ticket_right():
    model = wrapped(parameters="0.weight")
    model[2] = nn.Linear(8, 3)
    model.append(nn.Linear(3, 2))
    other = net()
    other[2] = nn.Linear(8, 3)
    other.append(nn.Linear(3, 2))
    slth.Ticket.of(model).apply(other)
    assert other(X).equal(model(X))


def test_a_layer_takes_its_requires_grad_along():
    model = net()
    model[2].requires_grad_(False)
    slth.wrap(model)
    model.insert(0, nn.Linear(8, 8).requires_grad_(False))
    slth.unwrap(model)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, False, False]


def test_what_stands_on_one_of_tied_weights_stays_on_it():
    tokens = torch.arange(6)
    model = slth.wrap(Tied(), weights="signed_constant")
    parametrizations.spectral_norm(model.head)
    before = model.eval()(tokens)
    slth.unwrap(model)
    assert model(tokens).equal(before)
    assert model.head.parametrizations.weight.original is model.table.weight


@pytest.mark.parametrize("held", ["a layer", "a parametrization", "a layer of a copy"])
def test_a_weight_that_is_tied_across_the_border_is_masked_inside_alone(held):
    model = net(bias=False)
    model[2].weight = model[0].weight
    if held == "a parametrization":
        parametrizations.spectral_norm(model[2])
        model.eval()
    slth.wrap(model[0])
    if held == "a layer of a copy":
        model = copy.deepcopy(model)
    with torch.no_grad():
        before = model(X)
    slth.unwrap(model[0])
    with torch.no_grad():
        assert model(X).equal(before)
    assert (model[0].weight == 0).any()
    assert all(p.requires_grad for p in model.parameters())


def test_parameters_stay_the_objects_that_an_optimiser_holds():
    model = net()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    slth.unwrap(slth.wrap(model, 0.3))
    assert [id(p) for p in optimiser.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


@one_case
@pytest.mark.parametrize(
    "share",
    [
        lambda m: setattr(m[2].weight, "data", m[0].weight.data),
        lambda m: setattr(m[2].weight, "data", m[0].weight.data.t()),
        lambda m: setattr(m[2].weight, "data", m[0].weight.data[::2]),
        lambda m: m.register_buffer("mirror", m[0].weight.data[3]),
        lambda m: setattr(m[0].bias, "data", m[0].weight.data[0]),
    ],
    ids=["whole", "transposed", "rows", "buffer", "bias"],
)
def test_shared_memory_that_is_no_tie_is_refused_by_name(share):
    model = net()
    share(model)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"0\.weight.* share memory but are not one tensor: must be tied"):
        slth.wrap(model, weights="signed_constant")
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_views_of_one_storage_without_a_common_entry_are_two_weights():
    whole = torch.randn(8, 16)
    model = net()
    model[0].weight.data, model[2].weight.data = whole[:, :8], whole[:, 8:]
    slth.wrap(model)
    before = model(X)
    assert slth.unwrap(model)(X).equal(before)


def test_in_inference_mode_masks_go_on_and_come_off_as_outside():
    model = net()
    with torch.inference_mode():
        slth.wrap(model, weights="signed_constant")
    slth.fit(model, lambda step: X, lambda m, x: m(x).square().mean(), 2, progress=False)
    before = model(X)
    with torch.inference_mode():
        slth.unwrap(model)
    assert model(X).equal(before)
    model(X).sum().backward()
    with torch.inference_mode():
        made = net()
    with pytest.raises(ValueError, match=r"0\.weight was made in torch\.inference_mode"):
        slth.wrap(made)


def test_a_weight_that_is_gone_is_named_wherever_it_is_asked_for():
    model = wrapped()
    model.pop(2)
    for call in (effective, lambda m: random_weight(m, "2.weight")):
        with pytest.raises(ValueError, match=r"2\.weight is no longer in the Sequential: its layer was replaced"):
            call(model)


# ---------------------------------------------------------------- parts and wholes


def test_of_nested_modules_the_one_to_unwrap_is_named():
    inside, around = net(), slth.wrap(net())
    slth.wrap(inside[0])
    part = (
        r"Sequential (is not wrapped but )?has a wrapped part, '0': that part \(model\.get_submodule\('0'\)\) must be "
    )
    for call in (slth.wrap, slth.Ticket.of(slth.wrap(net(), weights="theory")).apply):
        with pytest.raises(ValueError, match=part + "unwrapped first"):
            call(inside)
    step = {"steps": 1, "method": slth.search.EdgePopup(), "progress": False}
    for call in (slth.unwrap, handle, slth.Ticket.of, lambda m: slth.fit(m, lambda s: X, lambda m, x: x.sum(), **step)):
        with pytest.raises(ValueError, match=part + "given instead"):
            call(inside)
    whole = (
        r"Linear (is not wrapped but )?is a part of a wrapped module, as the holder of 0\.weight: that module must be "
    )
    with pytest.raises(ValueError, match=whole + "unwrapped first"):
        slth.wrap(around[0])
    with pytest.raises(ValueError, match=whole + "given instead"):
        slth.unwrap(around[0])
    slth.wrap(inside[2])
    with pytest.raises(ValueError, match=r"Sequential has wrapped parts, '0', '2': each of them"):
        slth.wrap(inside)
    for part in (inside[0], inside[2]):
        slth.unwrap(part)
    slth.unwrap(slth.wrap(inside))


@pytest.mark.parametrize("policy", ["layer", "global"])
def test_a_layer_that_was_copied_in_loses_its_own_mask_with_the_whole(policy):
    model = wrapped(policy=policy).eval()
    model.append(copy.deepcopy(model[0]))
    with torch.no_grad():
        model[3].parametrizations.weight[0].scores.mul_(-1).add_(0.1)
        before = model(X)
    with pytest.raises(ValueError, match=r"3\.weight has a mask that is not of this wrap"):
        slth.Ticket.of(model)
    for each in (copy.deepcopy(model), model):
        assert slth.unwrap(each)(X).equal(before)
        assert not list(slth.masking.places.places(each))
        assert all(p.requires_grad for p in each.parameters())
        each.load_state_dict(net().append(nn.Linear(8, 8)).state_dict())
        slth.unwrap(slth.wrap(each))


@pytest.mark.parametrize("way", ["copied", "copied with the whole", "taken out", "in a plain one", "a wrapped one"])
def test_the_masks_of_a_layer_without_its_whole_come_off(way):
    model = wrapped(policy="global").eval()
    layer = {
        "copied": lambda: copy.deepcopy(model[0]),
        "copied with the whole": lambda: copy.deepcopy(model).pop(0),
        "taken out": lambda: model.pop(0),
        "in a plain one": lambda: nn.Sequential(copy.deepcopy(model[0])),
        "a wrapped one": lambda: slth.wrap(
            nn.Sequential(nn.Identity()).append(nn.Linear(8, 8))  # with a layer that has masks already
        ).append(copy.deepcopy(model[0])),
    }[way]()
    with torch.no_grad():
        before = layer.eval()(X)
    if way != "a wrapped one":
        with pytest.raises(ValueError, match=r"is not wrapped but holds the mask of 0\.weight .*: unwrap it"):
            handle(layer)
        with pytest.raises(ValueError, match=r"holds the mask of 0\.weight .*: unwrap it"):
            slth.wrap(layer)
    assert slth.unwrap(layer)(X).equal(before)
    slth.unwrap(slth.wrap(layer))
    with pytest.raises(ValueError, match=r"is not wrapped: must come from slth\.wrap"):
        slth.unwrap(layer)
    assert len(handle(model).weights) == 2
    slth.unwrap(model)


def test_scores_that_are_no_numbers_stay_until_they_are():
    for mend in (
        lambda m: slth.search.controls.random_mask(m, 0),
        lambda m: handle(m).weights["2.weight"].scores.data.nan_to_num_(),
    ):
        model = wrapped(policy="global")
        handle(model).weights["2.weight"].scores.data[1, 2] = torch.nan
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=r"scores hold NaN.*random_mask.*set_masks.*nan_to_num_"):
            slth.unwrap(model)
        with pytest.raises(ValueError, match="scores hold NaN"):
            effective(model)
        assert all(value.equal(state[n]) for n, value in model.state_dict().items() if "scores" not in n)
        mend(model)
        before = model.eval()(X)
        assert slth.unwrap(model)(X).equal(before)
