"""A served ticket computes what the applied one does, from seeds and one bit a weight."""

import copy
import math

import pytest
import regression
import torch
from tables import one_case
from torch import nn

import slth
from slth import Ticket, TicketError, kernels
from slth.models import gpt2
from slth.search import Biprop, Frozen, IteRand
from slth.search.freezing import Freezing
from slth.ticket.serving import SeededLinear
from slth.weights import inits
from slth.weights.recipes import Draw, Recipe, fill

INITS = ["signed_constant", "kaiming_uniform"]
every_init = pytest.mark.parametrize("init", INITS)
TEXT = torch.arange(10)[None] % 24


def mlp():
    """A plain network 13 -> 6, its rows of no whole bytes, its inputs and outputs of several tiles or less."""
    return nn.Sequential(nn.Linear(13, 40), nn.ReLU(), nn.Sequential(nn.Linear(40, 6, bias=False)))


def inputs(*shape):
    return inits.normal(shape, 1.0, seed=3, name="inputs")


def ticket_of(module, weights, **options):
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.copy_(inits.uniform(p.shape, 0.5, seed=9, name=name))
    return Ticket.of(slth.wrap(module, keep=0.4, weights=weights, seed=2, **options))


def transformer(init="signed", **options):
    """A GPT-2 of one block, rows of three parts in c_attn."""
    config = gpt2.config("tiny", width=0.25, vocabulary=24, length=10, n_layer=1, **options)
    return gpt2.build(config, init=init, base_std=0.2, seed=4).eval()


def seeded(module):
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, SeededLinear)}


def assert_close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


# ---------------------------------------------------------------- outputs


@every_init
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_served_mlp_is_the_applied_one(init, impl):
    ticket = ticket_of(mlp(), init)
    applied, module = ticket.apply(mlp()), mlp()
    served = slth.serve(Ticket.from_bytes(ticket.to_bytes()), module)
    assert served is module
    assert seeded(served).keys() == {"0", "2.0"}
    for name, layer in seeded(served).items():
        assert torch.equal(layer.weight, applied.get_submodule(name).weight)
    with kernels.use(impl), torch.no_grad():
        for shape in [(13,), (1, 13), (2, 5, 13)]:
            assert_close(served(inputs(*shape)), applied(inputs(*shape)))


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("init", ["signed", "theory"])
def test_a_served_gpt2_is_the_applied_one(init, impl):
    ticket = ticket_of(transformer(init), None)  # the embedding and the head, which are tied, included
    applied, served = ticket.apply(transformer(init)), slth.serve(ticket, transformer(init))
    names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert list(seeded(served)) == [f"transformer.h.0.{name}" for name in names]
    assert len(served.transformer.h[0].attn.c_attn.draws) == 3
    for name, layer in seeded(served).items():
        assert torch.equal(layer.weight, applied.get_submodule(name).weight)
    with kernels.use(impl), torch.no_grad():
        assert_close(served(TEXT).logits, applied(TEXT).logits)
    assert served.lm_head.weight is served.transformer.wte.weight


def test_gradients_reach_inputs_and_biases():
    ticket = ticket_of(mlp(), "kaiming_uniform")
    found = []
    for model in (ticket.apply(mlp()), slth.serve(ticket, mlp())):
        x = inputs(3, 13).requires_grad_()
        model(x).square().sum().backward()
        found.append((x.grad, model[0].bias.grad))
    for wanted, got in zip(*found, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_another_dtype_rounds_weights_as_a_dense_layer_does(dtype):
    ticket = ticket_of(mlp(), "kaiming_uniform")
    applied, served = ticket.apply(mlp()).to(dtype), slth.serve(ticket, mlp()).to(dtype)
    x = inputs(7, 13).to(dtype)
    found = served(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, applied(x), rtol=0.02, atol=0.02)


def test_autocast():
    ticket = ticket_of(transformer(), None)
    applied, served = ticket.apply(transformer()), slth.serve(ticket, transformer())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted, found = applied(TEXT).logits, served(TEXT).logits
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_layers_whose_weight_others_read():
    """A transformer layer of torch reads weights past the layers' own forward where it evaluates."""

    def layer():
        return nn.TransformerEncoderLayer(8, 2, 20, dropout=0.0, batch_first=True).eval()

    ticket = ticket_of(layer(), "signed_constant", parameters="linear*.weight")
    applied, served = ticket.apply(layer()), slth.serve(ticket, layer())
    assert seeded(served).keys() == {"linear1", "linear2"}
    with torch.no_grad():
        assert_close(served(inputs(2, 5, 8)), applied(inputs(2, 5, 8)))


def two_parts(dim):
    """A network whose first weight is drawn in two parts, from streams of their own, along an axis."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    drawn = Recipe((Draw("uniform", 0.5, 0, "a", stream=7), Draw("sign", 0.2, 1, "b")), dim)
    fill(model, {"0.weight": drawn, "1.weight": Recipe((Draw("uniform16", 0.5, 0, "c"),))})
    return model


@pytest.mark.parametrize(("dim", "names"), [(0, {"0", "1"}), (1, {"1"})])  # along the outputs; the inputs
def test_parts_of_a_weight(dim, names):
    ticket = ticket_of(two_parts(dim), None)
    applied, served = ticket.apply(two_parts(dim)), slth.serve(ticket, two_parts(dim))
    assert seeded(served).keys() == names
    assert_close(served(inputs(4, 6)), applied(inputs(4, 6)))


def test_a_partly_frozen_mask_is_a_mask():
    model = regression.wrapped(weights="kaiming_uniform")
    regression.fit(model, Frozen(pruned=0.2, locked=0.2, seed=5), steps=4)
    ticket = Ticket.of(model)
    assert all(weight.traits == (Freezing(0.2, 0.2, 5),) for weight in ticket.weights)
    applied, served = ticket.apply(regression.net()), slth.serve(ticket, regression.net())
    assert seeded(served).keys() == {"0", "3"}
    assert_close(served(regression.INPUTS), applied(regression.INPUTS))


# ---------------------------------------------------------------- memory


def test_weights_take_one_bit():
    applied, module = ticket_of(mlp(), "signed_constant"), mlp()
    dense = dict(module.named_parameters())
    served = slth.serve(applied, module)
    assert served[0].bits.dtype == torch.uint8
    assert served[0].bits.nbytes == 40 * math.ceil(13 / 8)
    assert served[2][0].bits.nbytes == 6 * math.ceil(40 / 8)
    assert dict(served.named_parameters()).keys() == {"0.bias"}
    assert served[0].bias is dense["0.bias"]
    assert served.state_dict().keys() == {"0.bits", "0.bias", "2.0.bits"}


def test_parts_take_one_bit():
    served = slth.serve(ticket_of(transformer(), None, parameters="*c_attn.weight"), transformer())
    (layer,) = seeded(served).values()
    assert layer.bits.shape == (3, 36, math.ceil(36 / 8))  # of a weight (36, 3 * 36)
    assert {name for name, _ in layer.named_parameters()} == {"bias"}


def test_bits_are_the_masks():
    ticket = ticket_of(mlp(), "signed_constant")
    served = slth.serve(ticket, mlp())
    assert torch.equal(kernels.unpack_mask(served[0].bits[0], 13), ticket.masks()["0.weight"])


def test_copies_and_state_dicts_are_whole():
    ticket, other = (ticket_of(mlp(), "signed_constant", scores=scores) for scores in ("kaiming_uniform", "constant"))
    served, blank = slth.serve(ticket, mlp()), slth.serve(other, mlp())
    x = inputs(2, 13)
    assert not torch.equal(blank(x), served(x))
    blank.load_state_dict(served.state_dict())
    assert torch.equal(blank(x), served(x))
    assert torch.equal(copy.deepcopy(served)(x), served(x))


# ---------------------------------------------------------------- what stays dense


def test_a_layer_that_no_kernel_draws_stays_dense():
    ticket = ticket_of(mlp(), {"0.*": "kaiming_normal", "*": "signed_constant"})
    applied, served = ticket.apply(mlp()), slth.serve(ticket, mlp())
    assert seeded(served).keys() == {"2.0"}
    assert torch.equal(served[0].weight, applied[0].weight)
    assert_close(served(inputs(4, 13)), applied(inputs(4, 13)))


def test_tied_layers_stay_dense():
    def tied():
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
        model[1].weight = model[0].weight
        return model

    ticket = ticket_of(tied(), "signed_constant")
    applied, served = ticket.apply(tied()), slth.serve(ticket, tied())
    assert seeded(served).keys() == {"2"}
    assert served[1].weight is served[0].weight
    assert_close(served(inputs(4, 8)), applied(inputs(4, 8)))


def test_a_layer_alone_is_replaced():
    ticket = ticket_of(nn.Linear(9, 5), "signed_constant")
    served = slth.serve(ticket, nn.Linear(9, 5))
    assert isinstance(served, SeededLinear)
    assert_close(served(inputs(2, 9)), ticket.apply(nn.Linear(9, 5))(inputs(2, 9)))


# ---------------------------------------------------------------- refusals


def refused(ticket, module, match, kind=ValueError):
    before = regression.state(module)
    layers = list(module.modules())
    with pytest.raises(kind, match=match):
        slth.serve(ticket, module)
    regression.assert_same(before, regression.state(module))
    assert list(module.modules()) == layers


def test_no_layer_to_serve_is_refused_with_reasons():
    refused(ticket_of(mlp(), "kaiming_normal"), mlp(), r"0\.weight is drawn by 'normal', must be by uniform")
    conv = ticket_of(nn.Sequential(nn.Conv1d(3, 4, 2)), "signed_constant")
    refused(conv, nn.Sequential(nn.Conv1d(3, 4, 2)), r"0\.weight is no weight of an nn\.Linear or Conv1D")


@pytest.mark.parametrize(("method", "why"), [(Biprop(), "made binary"), (IteRand(every=2, rate=0.3), "redrawn")])
def test_what_a_search_has_changed_is_refused(method, why):
    model = regression.wrapped(weights="kaiming_uniform")
    regression.fit(model, method, steps=4)
    refused(Ticket.of(model), regression.net(), f"was {why} by its search")


def test_modules_that_do_not_fit_are_refused():
    ticket = ticket_of(mlp(), "signed_constant")
    refused(
        ticket, nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Sequential(nn.Linear(40, 6))), "2.0.bias", TicketError
    )
    wrapped = slth.wrap(mlp(), keep=0.5)
    with pytest.raises(ValueError, match="is wrapped"):
        slth.serve(ticket, wrapped)
    with pytest.raises(ValueError, match="no layer can be served"):
        slth.serve(ticket, slth.serve(ticket, mlp()))


@one_case
@pytest.mark.parametrize(
    ("draws", "bias", "match"),
    [
        ([Draw("normal", 1.0, 0, "w")], None, "draws by 'normal'"),
        ([], None, "0 parts of 4 outputs"),
        ([Draw("sign", 1.0, 0, name) for name in "abc"], None, "3 parts of 4 outputs"),
        ([Draw("sign", 1.0, 0, "w")], nn.Parameter(torch.zeros(3)), r"bias \(3,\): must be \(4,\)"),
    ],
)
def test_layers_that_are_none_are_refused(draws, bias, match):
    with pytest.raises(ValueError, match=match):
        SeededLinear(draws, torch.ones(4, 6, dtype=torch.bool), bias)


def test_a_layer_tells_what_it_is():
    served = slth.serve(ticket_of(mlp(), "signed_constant"), mlp())
    assert repr(served[0]).startswith("SeededLinear(13, 40, sign 0.")


def test_a_path_is_no_ticket():
    with pytest.raises(TypeError, match="reads from a file"):
        slth.serve("ticket.safetensors", nn.Linear(2, 2))
