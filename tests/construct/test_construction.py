"""Every construction is for one source, told from others whatever was done to it, and has a ticket like any other."""

import copy

import numpy as np
import pytest
import torch
from helpers import random_inputs, random_target
from torch.nn.utils import parametrize

import slth
from slth.attention import ATTENTIONS, MultiHeadAttention
from slth.construct import attention, feed_forward, language_model, linear, product, transformer, variant
from slth.models.transformer import FeedForward, LanguageModel, Product, Table, Transformer


def kha(seed):
    return ATTENTIONS["kha_linear"](2, 2, 1, 4, shared_width=12, mixing_init="theory", seed=seed)


def model(seed, hidden=16, kind=Product):
    sizes = {Product: (hidden,), Table: ()}[kind]
    more = {"std": 1.0} if kind is Table else {}
    parts = [
        kind(*shape, *sizes, **more, seed=seed, name=name, dtype=torch.float32)
        for name, shape in {"embedding": (3, 2), "positions": (4, 2), "head": (2, 3)}.items()
    ]
    widths = (hidden, 2, hidden) if kind is Product else (2,)
    return LanguageModel(parts[0], parts[1], Transformer(2, 1, 1, hidden, widths, seed=seed), parts[2])


def one_target():
    return random_target(2, 2, 1, hidden=4)


ROUTES = {  # what constructs, its target, its source by seed
    "product": (
        lambda target, source: product(target.matrix(), source),
        lambda: Table(3, 2, std=0.5, seed=9, name="target", dtype=torch.float32),
        lambda seed: Product(3, 2, 24, seed=seed, name="source", dtype=torch.float32),
    ),
    "attention": (attention, one_target, lambda seed: MultiHeadAttention(2, 2, 1, 16, seed=seed)),
    "variant": (variant, one_target, lambda seed: ATTENTIONS["mea"](2, 2, 1, 16, norm=False, seed=seed)),
    "projections": (variant, one_target, kha),
    "feed forward": (feed_forward, lambda: FeedForward((2, 2)), lambda seed: FeedForward((2, 16, 2), seed=seed)),
    "transformer": (
        transformer,
        lambda: Transformer(2, 1, 1, 4, (2,), seed=9),
        lambda seed: Transformer(2, 1, 1, 16, (16, 2, 16), seed=seed),
    ),
    "language model": (language_model, lambda: model(9, 4, Table), model),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_ticket_prunes_its_own_source_in_any_copy_and_no_other(route):
    construct, target, source = ROUTES[route]
    ticket, own = construct(target(), source(1)), source(1)
    name, mask = next((name, mask) for name, mask in ticket.masks.items() if not mask.all())
    for each in (own, own, copy.deepcopy(own).double(), source(1)):  # the second time it is pruned already
        ticket.prune(each)
        assert not each.get_parameter(name)[~mask].any()
        assert each.get_parameter(name)[mask].equal(source(1).get_parameter(name)[mask].to(each.get_parameter(name)))
    other = source(2)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"source '\S+' is not that of this construction's source"):
        ticket.prune(other)
    assert all(tensor.equal(before[key]) for key, tensor in other.state_dict().items())
    with pytest.raises(TypeError, match=r"source=Linear.*must be an? "):
        ticket.prune(torch.nn.Linear(2, 2))
    shown = repr(ticket)
    assert "\n" not in shown
    assert len(shown) < 250
    assert f"{len(ticket.masks)} weights, " in shown
    assert f"({ticket.keep:.4g})" in shown


def test_a_source_with_other_scales_or_one_other_weight_is_another():
    ticket = attention(one_target(), source := MultiHeadAttention(2, 2, 1, 16))
    rescaled, changed = copy.deepcopy(source), copy.deepcopy(source)
    rescaled.scale_vo.fill_(2.0)
    with torch.no_grad():
        changed.value[ticket.masks["value"].nonzero()[0].unbind()] += 1.0
    for other, name in ((rescaled, "scale_vo"), (changed, "value")):
        with pytest.raises(ValueError, match=f"source '{name}' is not that of this construction's source"):
            ticket.prune(other)


@torch.no_grad()
def pruned_twin(construction):
    """The source, pruned."""
    twin = copy.deepcopy(construction.source)
    construction.prune(twin)
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("route", ROUTES)
def test_a_ticket_gives_a_fresh_source_the_pruned_ones_bits(route, dtype, tmp_path):
    construct, target, source = ROUTES[route]
    construction = construct(target(), source(1).to(dtype))
    twin = pruned_twin(construction)
    size = construction.ticket().save(tmp_path / "t.safetensors")
    ticket = slth.Ticket.load(tmp_path / "t.safetensors")
    assert not ticket.over
    masks = ticket.masks()  # a mixing tensor of ones that is kept whole needs none
    assert all(mask.equal(masks[name]) if name in masks else mask.all() for name, mask in construction.masks.items())
    for seed in (1, 2):  # a source of another seed is written over
        fresh = ticket.apply(source(seed).to(dtype))
        assert all(tensor.equal(twin.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    construction.prune(construction.source)  # which changes nothing for its ticket
    assert construction.ticket().save(tmp_path / "u.safetensors") == size
    assert (tmp_path / "u.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()
    with torch.no_grad():
        next(construction.source.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="is not that of this construction's source"):
        construction.ticket()


@pytest.mark.parametrize("route", ROUTES)
def test_a_served_ticket_is_bits_and_computes_the_same(route):
    construct, target, source = ROUTES[route]
    construction = construct(target(), source(1))
    expected, served = pruned_twin(construction), slth.serve(construction.ticket(), source(2))
    bits = [module for module in served.modules() if isinstance(module, parametrize.ParametrizationList)]
    assert sum(each.original0.numel() for each in bits) == sum(
        mask[..., 0].numel() * -(-mask.shape[-1] // 8)
        for mask in construction.masks.values()
        if not (mask.all() and route == "variant")
    )
    for name, mask in construction.masks.items():
        owner, _, role = name.rpartition(".")
        weight = getattr(served.get_submodule(owner), role)
        assert weight.equal(expected.get_parameter(name)), (name, mask.shape)
    twin = copy.deepcopy(served)
    assert all(tensor.equal(twin.state_dict()[name]) for name, tensor in served.state_dict().items())
    if isinstance(expected, LanguageModel | Product):
        x = torch.arange(3) if isinstance(expected, LanguageModel) else None
    else:
        x = random_inputs(0, 5, 3, 2).float()
    with torch.no_grad():
        out = [model.matrix() if x is None else model(x) for model in (served, twin, expected)]
    assert out[0].equal(out[2])
    assert out[1].equal(out[2])


def test_a_small_ticket_is_small_and_says_how_its_source_is_built():
    source = MultiHeadAttention(2, 1, 1, 32, seed=7)
    source.scale_vo.fill_(4.0)
    ticket = attention(random_target(2, 1, 1, hidden=4), source).ticket()
    assert len(ticket.to_bytes()) < 1100
    made = {"d_in": 2, "d_out": 1, "heads": 1, "hidden": 32, "seed": 7}
    assert ticket.built == {"class": "slth.attention.mha.MultiHeadAttention", "arguments": made}
    assert "built as: slth.attention.mha.MultiHeadAttention(d_in=2, d_out=1, heads=1, hidden=32, seed=7)" in (
        ticket.describe().splitlines()
    )
    assert "seeds: 7" in ticket.describe().splitlines()


def test_what_is_built_says_the_dtype_that_a_fresh_source_needs():
    ticket = attention(one_target(), MultiHeadAttention(2, 2, 1, 16, seed=1).double()).ticket()
    assert ticket.built["dtype"] == "float64"
    fresh = MultiHeadAttention(**ticket.built["arguments"])
    with pytest.raises(slth.ticket.TicketError, match=r"is float32.*must be float64"):
        ticket.apply(fresh)
    ticket.apply(fresh.to(getattr(torch, ticket.built["dtype"])))
    assert "dtype" not in attention(one_target(), MultiHeadAttention(2, 2, 1, 16)).ticket().built


def test_a_source_with_other_shared_tables_is_another():
    """No mask covers a Table, and yet a construction, and its ticket, are for one source."""

    def source():
        whole = model(1)
        for name in ("embedding", "positions", "head"):
            setattr(whole, name, getattr(model(9, 4, Table), name))
        return whole

    construction, other = language_model(model(9, 4, Table), source()), source()
    with torch.no_grad():
        other.embedding.weight.mul_(3.0)
        construction.prune(source())  # the same
        with pytest.raises(ValueError, match=r"source 'embedding\.weight' is not that of this construction's source"):
            construction.prune(other)
        construction.source.embedding.weight.mul_(3.0)
    with pytest.raises(ValueError, match=r"source 'embedding\.weight' is not that of this construction's source"):
        construction.ticket()


def test_arrays_have_a_ticket_over_themselves():
    rng = np.random.default_rng(0)
    target, first, second = rng.normal(size=(3, 2)), rng.normal(size=(3, 24)), rng.normal(size=(24, 2))
    construction = linear(target, first, second)
    got = (first * construction.mask_first) @ (second * construction.mask_second)
    assert np.allclose(construction.errors["product"].numpy(), got - target, rtol=0, atol=1e-15)
    assert construction.error_max == np.abs(got - target).max()
    ticket = slth.Ticket.from_bytes(construction.ticket().to_bytes())
    assert set(ticket.over) == {"first", "second"}
    source = ticket.apply(linear(target, first, second).source)
    x = torch.ones(1, 3, dtype=torch.float64)
    assert torch.allclose(source(x), x @ torch.from_numpy(got))
    with pytest.raises(slth.TicketError, match="first: is not that of the ticket's base"):
        ticket.apply(linear(target, 2 * first, second).source)


def test_errors_are_those_of_the_pruned_source():
    construction = product(torch.full((2, 3), 0.3), source := Product(2, 3, 30, seed=1, name="p", dtype=torch.float64))
    assert construction.errors["product"].equal(pruned_twin(construction).matrix() - torch.full((2, 3), 0.3).double())
    source.scale.fill_(0.0)
    with pytest.raises(ValueError, match="holds 0: a recorded scale must not be 0"):
        product(torch.zeros(2, 3), source)
    with pytest.raises(ValueError, match=r"source is \(2, 3\): must be \(3, 3\)"):
        product(torch.zeros(3, 3), source)
