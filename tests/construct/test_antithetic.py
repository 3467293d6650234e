"""Antithetic sources: candidates of either sign, equally many, and what that does to errors."""

import numpy as np
import torch
from helpers import random_target

from slth import Ticket, construct
from slth.attention import GroupedQueryAttention, MultiHeadAttention
from slth.weights.recipes import recipe_of

HIDDEN = 40


def source(seed, init="antithetic", hidden=HIDDEN):
    return MultiHeadAttention(2, 1, 1, hidden, init=init, seed=seed)


def test_units_come_in_pairs_of_opposite_key_and_output():
    made = GroupedQueryAttention(3, 4, 4, 6, init="antithetic", seed=1, kv_heads=2)
    scale = np.float32(6**0.25)
    assert made.key[..., ::2].equal(-made.key[..., 1::2])
    assert made.output[..., ::2, :].equal(-made.output[..., 1::2, :])
    assert set(made.key.abs().flatten().tolist()) == {float(scale)}
    assert made.query.min() > 0
    assert made.value.min() > 0
    assert made.query.max() < scale
    for name, weight in made.named_parameters():
        assert recipe_of(made, name).tensor(weight.shape).equal(weight)


def test_no_entry_is_out_of_reach_and_the_mean_error_is_near_the_median():
    target = random_target(2, 1, 1)
    errors = {
        init: np.array([construct.attention(target, source(seed, init)).error_max for seed in range(24)])
        for init in ("antithetic", "theory")
    }
    ours, papers = errors["antithetic"], errors["theory"]
    assert ours.mean() < 3 * np.median(ours)
    assert np.median(ours) < 3 * np.median(papers)


def test_a_ticket_holds_an_antithetic_source_by_its_seed():
    construction = construct.attention(random_target(2, 1, 1), source(5, hidden=12))
    ticket = Ticket.from_bytes(construction.ticket().to_bytes())
    assert not ticket.over
    again = source(6, init="theory", hidden=12)
    ticket.apply(again)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert again(x).equal(construct.pruned(construction.source, construction.masks)(x))
