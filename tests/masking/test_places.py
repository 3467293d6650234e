"""A model that is changed after wrap: its outputs stay through unwrap, and a ticket is right or refused by name."""

import copy
import logging
import pickle
import re

import pytest
import torch
from tables import one_case
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import slth
from slth.wrapping import check_in_place, effective, handle, random_weight

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def net(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8, **options), nn.Tanh(), nn.Linear(8, 8, **options))


def wrapped(**options):
    return slth.wrap(net(), 0.3, **{"weights": "signed_constant"} | options)


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


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 8), nn.Linear(8, 6, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.table(tokens))


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
