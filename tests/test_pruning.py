"""A ticket of a construction is for one source: told from others whatever was done to it, and shown in a line."""

import copy

import pytest
import torch
from helpers import random_target

from slth.attention import ATTENTIONS, MultiHeadAttention
from slth.construct import attention, feed_forward, language_model, transformer, variant
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
