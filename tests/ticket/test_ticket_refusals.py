"""What has no ticket, and which modules refuse one."""

import copy
import math
from functools import partial

import pytest
import torch
from regression import assert_same, fit, net, state, wrapped
from tables import one_case
from ticketing import blank, found, refused
from torch import nn

import slth
from slth import Ticket, TicketError
from slth.building import built_of
from slth.models import gpt2
from slth.search import Biprop, EdgePopup, Frozen, IteRand, controls
from slth.wrapping import handle, unwrap

# ---------------------------------------------------------------- what has no ticket


def base(**options):
    """A network that torch has drawn, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 48, **options), nn.ReLU(), nn.BatchNorm1d(48), nn.Linear(48, 4, **options))


@pytest.mark.parametrize("method", [EdgePopup(), Biprop(), Frozen(pruned=0.2, locked=0.2)])
def test_a_network_that_no_seed_makes_is_the_base_of_its_ticket(tmp_path, method):
    model = slth.wrap(base())
    fit(model, method, steps=4)
    ticket, expected = Ticket.of(model), state(unwrap(copy.deepcopy(model)))
    ticket.save(tmp_path / "t.safetensors")
    ticket = Ticket.load(tmp_path / "t.safetensors")
    assert (set(ticket.over), ticket.version) == ({"0.weight", "3.weight"}, 2)
    assert ", 2 over a base, " in repr(ticket)
    assert "seeds: none\nover a base: 2 weights that no seed makes" in ticket.describe()
    assert_same(expected, state(ticket.apply(base())))
    if not isinstance(method, Biprop):  # which leaves signs and one size
        assert_same(expected, state(ticket.apply(unwrap(model))))  # pruned already
    other = base()
    with torch.no_grad():
        other[3].weight[ticket.masks()["3.weight"].nonzero()[0].unbind()] += 1e-3
    before = state(other)
    with pytest.raises(TicketError, match=r"3\.weight: is not that of the ticket's base"):
        ticket.apply(other)
    assert_same(before, state(other))
    with pytest.raises(ValueError, match=r"no layer can be served: 0\.weight lies over a base"):
        slth.serve(ticket, base())


def test_only_what_no_seed_makes_lies_over_a_base():
    assert set(Ticket.of(wrapped(weights={"3.*": "kaiming_normal"})).over) == {"0.weight"}
    with pytest.raises(ValueError, match="Sequential is not wrapped"):
        Ticket.of(net())


def test_trained_weights_are_a_base():
    model = found()
    controls.train_weights(model)
    assert not Ticket.of(model).over
    fit(model, steps=2)
    trained = {path: slth.wrapping.random_weight(model, path) for path in handle(model).weights}
    ticket, module = Ticket.of(model), blank()
    assert set(ticket.over) == set(trained)
    with pytest.raises(TicketError, match=r"0\.weight: is not that of the ticket's base"):
        ticket.apply(module)
    with torch.no_grad():
        for path, weight in trained.items():
            module.get_parameter(path).copy_(weight)
    assert_same(state(ticket.apply(module)), state(unwrap(model)))


def test_plain_modules_have_tickets_under_masks():
    module = wrapped()
    masks = handle(module).masks()
    expected = Ticket.of(module)
    plain = net()
    with torch.no_grad():
        for path in masks:
            slth.weights.recipes.fill(plain, {path: slth.weights.recipes.recipe_of(module, path)})
    assert Ticket.of_masks(plain, masks).to_bytes() == expected.to_bytes()
    for wrong, match in (
        ({}, "must be of one parameter or more"),
        ({"nothing": masks["0.weight"]}, "masks of 'nothing': must be of the module's parameters"),
        ({"0.weight": masks["3.weight"]}, r"masks of '0.weight': torch.bool \(4, 48\), must be torch.bool \(48, 16\)"),
        ({"0.weight": masks["0.weight"].float()}, "masks of '0.weight': torch.float32"),
    ):
        with pytest.raises(ValueError, match=match):
            Ticket.of_masks(plain, wrong)
    with pytest.raises(ValueError, match="is wrapped"):
        Ticket.of_masks(module, masks)


def test_how_a_model_is_built_is_said_and_never_executed():
    model = gpt2.build(gpt2.config("tiny", n_layer=1), seed=4)
    config = model.config.to_dict()
    slth.wrap(model, seed=1)
    ticket = Ticket.from_bytes(Ticket.of(model, built=built_of(model)).to_bytes())
    path = "transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel"
    assert ticket.built["class"] == path
    assert ticket.built["config"]["n_embd"] == config["n_embd"]
    assert f"built as: {path}" in ticket.describe()
    assert ticket.to_bytes() != Ticket.of(model).to_bytes()
    odd = wrapped()
    ticket = Ticket.from_bytes(
        Ticket.of(odd, built={"class": "os.system\n\x1b[31m", "arguments": {"x": "\n"}}).to_bytes()
    )
    assert "built as: os.system\\n\\x1b[31m" in ticket.describe()
    assert built_of(odd, depth=2) == {"class": "torch.nn.modules.container.Sequential", "arguments": {"depth": 2}}


@one_case
@pytest.mark.parametrize("built", [[1, 2], "text", {"class": object()}, {"scale": math.inf}])
def test_built_must_be_an_object_of_json(built):
    module = wrapped()
    masks = handle(module).masks()
    plain = slth.unwrap(wrapped())
    for make in (partial(Ticket.of, module), partial(Ticket.of_masks, plain, masks)):
        with pytest.raises(ValueError, match=r"built=.*: must be an object of JSON"):
            make(built=built)


def test_a_gate_of_another_kind_has_no_ticket():
    model = wrapped()
    for masked in handle(model).weights.values():
        masked.gate = lambda masked, weight: masked.pruned(weight).tanh()
    with pytest.raises(TicketError, match="what evaluation sees is neither its weights nor their signs"):
        Ticket.of(model)


def test_redrawn_weights_have_a_ticket():
    model = found(IteRand(every=2, rate=0.5))
    controls.redrawn_weights(model, seed=11)
    ticket = Ticket.of(model)
    assert {draw.seed for weight in ticket.weights for draw in weight.recipe.draws} == {11}
    assert_same(state(ticket.apply(blank())), state(unwrap(model)))


def test_a_name_that_cannot_be_read_has_no_ticket():
    model = nn.Module()
    model.layers = nn.ModuleDict({"a\x1b[2J": nn.Linear(3, 3)})
    with pytest.raises(TicketError, match=r"name 'layers\.a\\x1b\[2J\.weight': must be printable"):
        Ticket.of(slth.wrap(model, weights="kaiming_normal"))


# ---------------------------------------------------------------- other modules


def test_a_wrapped_module_is_refused(data):
    model = wrapped()
    before = state(model)
    with pytest.raises(ValueError, match="a ticket is applied to a plain module: Sequential is wrapped already"):
        Ticket.from_bytes(data).apply(model)
    assert_same(before, state(model))


def others():
    wide, deep, double, half, short = blank(), blank(), blank().double(), blank(), blank()
    wide[0] = nn.Linear(16, 49)
    deep.append(nn.Linear(4, 4))
    half[0].half()
    short[3] = nn.Linear(48, 4, bias=False)
    return [
        (wide, r"0\.bias: is float32 \(49,\), must be float32 \(48,\)"),
        (deep, r"4\.bias is in the module but not in the ticket"),
        (double, r"0\.bias: is float64 \(48,\), must be float32"),
        (half, r"0\.bias: is float16"),
        (short, r"3\.bias is in the ticket but not in the module"),
        (nn.ReLU(), r"0\.bias is in the ticket but not in the module"),
    ]


@one_case
@pytest.mark.parametrize(("module", "match"), others())
def test_another_module_is_refused(data, module, match):
    refused(data, match, module)


def test_weights_of_another_dtype_are_refused():
    model = slth.wrap(nn.Linear(4, 5, bias=False).double(), weights="kaiming_normal")
    refused(Ticket.of(model).to_bytes(), r"weight: is float32 \(5, 4\), must be float64", nn.Linear(4, 5, bias=False))
