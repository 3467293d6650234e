"""Any module hidden in random products: the same network bit for bit, and how far a cheap ticket is off."""

import copy
import math

import numpy as np
import pytest
import torch
from cases import CASES, WIDTH, Case, numbers
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case
from torch import nn

import slth
from slth.construct import Code, merge, module
from slth.construct.networks.maps import linear_maps
from slth.masking.parameters import Part
from slth.ticket import TicketError, Weight, packing
from slth.weights.recipes import Draw, Recipe


def encoder_decoder():
    return nn.Transformer(WIDTH, 2, 1, 1, 2 * WIDTH, dropout=0.0, batch_first=True)


def pair():
    return numbers(2, 5, WIDTH), numbers(2, 3, WIDTH)


KINDS = ["bert", "vit", "gpt2", "llama", "convolutions, evaluation", "torch attention, separate", "lstm", "bfloat16"]
HIDDEN = [case for case in CASES if case.name in KINDS] + [Case("encoder and decoder", encoder_decoder, pair)]


def linear(dtype=torch.float32):
    return nn.Linear(WIDTH, 5).to(dtype)


@pytest.mark.parametrize("case", HIDDEN, ids=lambda case: case.name)
def test_an_exact_ticket_is_the_network_bit_for_bit(case):
    net = case.build()
    construction = module(net, exact=True)
    assert construction.exact
    hidden = {name for name in slth_weights(net) if not is_table(net, name)}
    assert construction.entries == sum(net.get_parameter(name).numel() for name in hidden)
    assert construction.recorded.keys() == {name for name, _ in named(net)} - hidden
    other = case.build(seed=1)
    merge(slth.Ticket.from_bytes(construction.ticket().to_bytes()), other)
    for twin in (construction.network(), other):
        assert type(twin) is type(net)
        assert all(a.equal(b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))
    assert case.run(other).equal(case.run(net))


def slth_weights(net):
    wrapped = slth.wrap(copy.deepcopy(net))
    return slth.wrapping.handle(wrapped).weights


def is_table(net, name):
    """Of the cases here: whatever an embedding holds, and ViT's parameters that are added."""
    owner = net.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, nn.Embedding) or name.endswith(("position_embeddings", "cls_token"))


def named(net):
    yield from net.named_parameters()
    yield from ((name, buffer) for name, buffer in net.named_buffers() if name in net.state_dict())


def test_few_candidates_err_by_what_is_said_and_certified():
    net = nn.Sequential(linear(), nn.Tanh(), nn.Linear(5, 3))
    coarse, fine = (module(net, candidates=n) for n in (8, 16))
    assert (coarse.unreachable, coarse.entries, coarse.bits) == (0, 95, 95 * 8)
    assert fine.error_max < coarse.error_max / 20
    assert not coarse.exact
    x = numbers(50, WIDTH)
    for name, layer, merged in (("0.weight", net[0], coarse.network()[0]), ("2.weight", net[2], coarse.network()[2])):
        difference = merged.weight - layer.weight
        assert (difference.T.double() - coarse.errors[name]).abs().max() < 1e-9
        inputs = x[:, : layer.in_features].double()
        moved = torch.linalg.vector_norm(inputs @ coarse.errors[name], dim=1)
        bound = coarse.certificates[name] * torch.linalg.vector_norm(inputs, dim=1)
        assert (moved <= bound).all()
        assert (moved > 0.3 * bound).any()
    assert f"errors at most {coarse.error_max:.3g}" in repr(coarse)


@pytest.mark.parametrize("name", ["torch attention, packed", "tied", "bfloat16"])
@pytest.mark.parametrize("options", [{"candidates": 26}, {"code": Code(1.5, 4)}], ids=["stages", "code"])
def test_a_network_may_keep_its_factors(name, options):
    case = next(case for case in CASES if case.name == name)
    construction = module(case.build(), embeddings=True, **options)
    merged, factored = construction.network(), construction.network(factors=True)
    for path, weight in merged.named_parameters(remove_duplicate=False):
        prefix, _, last = path.rpartition(".")
        assert getattr(factored.get_submodule(prefix), last).equal(weight)
    torch.testing.assert_close(case.run(factored), case.run(merged))
    factors = [p for n, p in factored.named_parameters() if ".original" in n]
    assert {p.dtype for p in factors} == {torch.float32}
    assert any((p == 0).float().mean() == 0.5 for p in factors)


def test_attentions_are_certified_where_their_form_allows():
    net = nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval()
    construction = module(net, candidates=6)
    (bound,) = (each.bound for each in construction.attention_certificates(2.0).values())
    x = numbers(20, 5, WIDTH)
    x *= 2.0 / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    moved = torch.linalg.vector_norm(net(x, x, x)[0] - construction.network()(x, x, x)[0], dim=-1).max()
    assert bound / 50 < moved < bound
    bert = next(case for case in CASES if case.name == "bert").build()
    exact = module(bert, exact=True).attention_certificates(1.0)
    assert list(exact) == [f"encoder.layer.{i}.attention.self" for i in range(2)]
    assert all(0 <= each.bound < 1e-9 for each in exact.values())


def test_pruning_alone_makes_the_weights():
    construction = module(linear(), candidates=6)
    source = copy.deepcopy(construction.source)
    before = source.get_parameter("net.weight.0.second").clone()
    first, second = before[0::2], before[1::2]
    assert first.equal(-second)
    construction.prune(source)
    mask, after = construction.masks["net.weight.0.second"], source.get_parameter("net.weight.0.second")
    assert after.equal(torch.where(mask, before, 0.0))
    assert mask[0::2].equal(~mask[1::2])  # one of each pair
    ((_, matrix),) = source.merged()
    assert torch.from_numpy(matrix).float().equal(construction.network().weight.T)


@pytest.mark.parametrize("case", HIDDEN, ids=lambda case: case.name)
def test_a_code_takes_the_bits_that_it_says_and_its_ticket_is_the_network(case):
    net = case.build()
    construction = module(net, code=Code(2, 4, scale="row"), seed=3)
    padded = sum(rows * -(-columns // 4) * 4 for rows, columns in (each.shape for each in construction.errors.values()))
    rows = sum(len(each) for each in construction.errors.values())
    assert construction.bits == 2 * padded + 16 * rows
    ticket = construction.ticket()
    masks = sum(ticket.tensors[name].numel() for name in ("masks", "coded") if name in ticket.tensors)
    assert masks <= padded // 4 + len(construction.errors)  # 2 bits each
    other = case.build(seed=1)
    merge(slth.Ticket.from_bytes(ticket.to_bytes()), other)
    twin = construction.network()
    assert all(a.equal(b) for a, b in zip(other.state_dict().values(), twin.state_dict().values(), strict=True))
    for name, error in construction.errors.items():
        power = dict(targets(net))[name].square().mean()
        assert 0.03 < error.square().mean() / power < 0.3, name


def targets(net):
    """(name, matrix (inputs, outputs)) of each linear map."""
    yield from ((each.name, each.matrix(net.get_parameter(each.parameter)).double()) for each in linear_maps(net))


def test_zeros_take_no_part_and_small_weights_no_coarse_stage():
    net = nn.Linear(40, 40, bias=False)
    with torch.no_grad():
        net.weight[0] = 0.0
        net.weight[1] *= 2.0**-30
    construction = module(net, exact=True)
    assert construction.exact
    stages = construction.hidden["weight"].stages
    used = [np.unpackbits(stage.used, count=1600).reshape(40, 40) for stage in stages]
    assert not any(each[:, 0].any() for each in used)
    assert not used[0][:, 1].any()
    assert used[0][:, 2:].all()
    assert all(math.frexp(stage.units.scale)[0] == 0.5 for stage in stages)


def test_a_tied_embedding_is_recorded_or_hidden_once():
    case = next(case for case in CASES if case.name == "tied")
    net = case.build()
    plain, whole = module(net, candidates=4), module(net, candidates=4, embeddings=True)
    assert "embedding.weight" in plain.recorded
    assert set(whole.errors) - set(plain.errors) == {"embedding.weight"}
    assert whole.network().head.weight is not net.head.weight
    merged = whole.network()
    assert merged.head.weight is merged.embedding.weight


def test_eight_bit_integers_are_met():
    net = linear()
    net.weight = nn.Parameter(torch.arange(-40, 40).reshape(5, WIDTH).to(torch.int8), requires_grad=False)
    construction = module(net, exact=True)
    assert construction.network().weight.equal(net.weight)
    assert construction.candidates < 16


@given(st.lists(st.booleans(), min_size=24, max_size=24), st.sampled_from([0, 1]))
def test_any_mask_of_pairs_is_packed(bits, axis):
    shape = (4, 6)
    draw = Draw("uniform", 1.0, 0, "w")
    weight = Weight("w", shape, "float32", sum(bits), Recipe((draw,), pairs=(axis, -1)), (Part(),))
    mask = torch.tensor(bits)
    tensors = packing.packed([weight], {"w": mask}, {}, {})
    assert packing.multipliers_of([weight], tensors)["w"].equal(mask.reshape(shape))


def nan():
    net = linear()
    with torch.no_grad():
        net.weight[0, 0] = math.nan
    return net


@one_case
@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (linear(), {"candidates": 0}, "candidates=0: must be an int >= 1 and <= 40"),
        (linear(), {"candidates": 25, "exact": True}, "candidates=25: must be an int >= 1 and <= 24"),
        (linear(), {"code": Code(), "exact": True}, r"code=Code\(bits=2.0, .*: must be None where exact is True"),
        (linear(), {"code": Code(), "candidates": 8}, "must be None where exact is True or candidates are given"),
        (linear(), {"threads": 0}, "threads=0: must be an int >= 1"),
        (nan(), {}, "net 'weight' holds NaN or infinite values: all must be finite"),
        (nn.LayerNorm(3), {}, "net=LayerNorm: must have a linear map"),
        (linear().to("meta"), {}, "net 'weight' is on the device meta: must hold values"),
        (linear(torch.float8_e4m3fn), {}, "net 'weight' of dtype torch.float8_e4m3fn: must be one of float64, float32"),
        (nn.Linear, {}, "net=Linear: is a class, must be an instance"),
        (slth.wrap(linear()), {}, "is wrapped"),
    ],
)
def test_what_cannot_be_hidden_is_refused_in_one_line(net, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        module(net, **options)
    assert "\n" not in str(refusal.value)


def test_a_ticket_is_merged_into_its_like_alone():
    net = linear()
    ticket = module(net, candidates=4).ticket()
    for other, message in (
        (nn.Linear(WIDTH, 6), "must have the target's linear maps"),
        (nn.Linear(WIDTH, 5, bias=False), "net 'bias' is None: must be"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=message):
            merge(ticket, other)
        assert all(a.equal(b) for a, b in zip(before.values(), other.state_dict().values(), strict=True))
    with pytest.raises(TicketError, match=r"no source of slth\.construct\.module"):
        merge(slth.Ticket.of(slth.wrap(linear(), weights="theory")), linear())


def test_the_ticket_of_a_hidden_network_says_how_it_is_written_into_it():
    ticket = module(nn.Sequential(nn.Linear(4, 4))).ticket()
    with pytest.raises(TicketError, match=r"built as the one it was taken from; slth\.construct\.merge writes it"):
        ticket.apply(nn.Sequential(nn.Linear(4, 4)))
