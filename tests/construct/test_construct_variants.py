"""Constructions of every attention: masks, sums, relatives, errors."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import brute_force, largest_error, random_target
from variant_pairs import MERGED, THEORY, by_head, each, each_merged, each_rectangular, entry_errors, of, pair

from slth.attention import (
    GroupedQueryAttention,
    LinearKnockingHeads,
    MultiHeadAttention,
    MultiheadExplicitAttention,
    TiedLinearKnockingHeads,
)
from slth.attention.functional import repeat_heads
from slth.construct import attention, variant

# ---------------------------------------------------------------- weights and masks


@each
def test_a_weight_is_exactly_zero_or_bit_for_bit_the_random_one(source):
    target, module = pair(source)
    before = [copy.deepcopy(m.state_dict()) for m in (target, module)]
    ticket = variant(target, module, side=source.side)
    for m, state in zip((target, module), before, strict=True):  # not touched yet
        assert all(tensor.equal(state[name]) for name, tensor in m.state_dict().items())
    assert set(ticket.masks) == {name for name, _ in module.named_parameters()}
    ticket.prune(module)
    for name, weight in module.named_parameters():
        mask, random = ticket.masks[name], before[1][name]
        assert (mask.dtype, mask.shape) == (torch.bool, random.shape)
        assert weight[mask].equal(random[mask])
        assert (weight[~mask] == 0).all()
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert ticket.keep == kept / sum(weight.numel() for weight in module.parameters())


@each_merged
def test_shared_factors_have_the_structure_and_each_heads_own_the_sums(source):
    target, module = pair(source, hidden=25)  # blocks of 9, 8, 8 for inputs, 13, 12 for outputs
    ticket = variant(target, module, side=source.side)
    by_input, by_output = (
        torch.stack([torch.tensor([k in units for k in range(25)]) for units in np.array_split(np.arange(25), parts)])
        for parts in (3, 2)
    )
    solved = {"query", "output" if source.side == "input" else "value"}
    for name, mask in ticket.masks.items():
        if name in solved:
            assert 0.2 < mask.float().mean() < 0.8
        elif name == "output":
            assert (mask == by_output.T).all()
        elif not name.startswith("mix_"):
            assert (mask == by_input).all()
        elif isinstance(module, MultiheadExplicitAttention):
            assert mask.all()
        else:
            assert mask.equal(torch.eye(25, dtype=torch.bool))
    assert (ticket.candidates_qk, ticket.candidates_vo) == (8, 8 if source.side == "input" else 12)
    assert ticket.side == source.side


# ---------------------------------------------------------------- every sum is the best there is


def chains(module):
    """Candidates of every entry, from the formulas: of W_QK (heads, d_in, d_in, n), of W_VO (heads, d_in, d_out, n)."""
    heads, n = module.heads, module.hidden
    key, value = (of(module, "key_value" if hasattr(module, "key_value") else role) for role in ("key", "value"))
    scale = {role: np.ones(n) for role in ("query", "key", "value")}
    if isinstance(module, MultiheadExplicitAttention):
        key, value = (
            np.einsum("adn,ag->gdn", of(module, role), of(module, f"mix_{role}")) for role in ("key", "value")
        )
    elif isinstance(module, TiedLinearKnockingHeads):
        mixing = {"query": "mix_query", "key": "mix_value", "value": "mix_value"}
        scale = {role: np.diag(of(module, name)) for role, name in mixing.items()}
    elif isinstance(module, LinearKnockingHeads):
        for role in scale:
            if hasattr(module, f"mix_{role}"):
                scale[role] = np.diag(of(module, f"mix_{role}"))
    key, value = by_head(key * scale["key"], heads), by_head(value * scale["value"], heads)
    qk = np.einsum("hik,hjk->hijk", of(module, "query") * scale["query"], key) / np.sqrt(n)
    return qk, np.einsum("hik,hko->hiok", value, of(module, "output"))


def least_errors(candidates, wanted, units):
    """Least |sum - wanted| for each entry of a matrix (heads, a, b); units(head, i, j) are those of an entry."""
    found = np.empty(wanted.shape)
    for at in np.ndindex(*wanted.shape):
        own = candidates[at][units(*at)]
        found[at] = brute_force(own[None], wanted[at][None])[2][0]
    return found


@each_merged
def test_each_entry_is_met_as_well_as_brute_force_would(source):
    target, module = pair(source, hidden=16)  # 6, 5, 5 candidates for inputs, 8 for outputs
    ticket = variant(target, module, side=source.side)
    inputs, outputs = (np.array_split(np.arange(16), parts) for parts in (3, 2))
    wanted = [matrix.detach().numpy() for matrix in target.merged()]
    rules = (lambda h, i, j: inputs[j], (lambda h, i, o: inputs[i] if source.side == "input" else outputs[o]))
    for got, want, candidates, units in zip(ticket.merged, wanted, chains(module), rules, strict=True):
        errors = np.abs(got.detach().numpy() - want)
        assert np.allclose(errors, least_errors(candidates, want, units), rtol=0, atol=1e-12)


@each_rectangular
def test_each_entry_of_a_projection_is_met_as_well_as_brute_force_would(source):
    source = replace(source, options=source.options | {"shared_width": 26})  # 7, 7, 6, 6 for features, 13 for outputs
    target, module = pair(source)
    ticket = variant(target, module)
    features, outputs = (np.array_split(np.arange(26), parts) for parts in (4, 2))
    columns = np.repeat(np.arange(4), [len(units) for units in features])  # the feature that a unit feeds
    for role in ("query", "key"):
        mix = of(module, f"mix_{role}")[np.arange(26), columns]
        candidates = np.einsum("hik,c->hick", of(module, role) * mix, np.ones(4))
        want = by_head(of(target, role), 4)
        best = least_errors(candidates, want, lambda h, i, c: features[c])
        assert np.allclose(largest_error(ticket, role).numpy(), best.max((1, 2)), rtol=0, atol=1e-12)
    # units 0 to 12 serve output 0 through features 0 (7 of them) and 1, the others output 1 through features 2 and 3
    columns = np.repeat(np.arange(4), [7, 6, 7, 6])
    through = of(module, "mix_value")[np.arange(26), columns][:, None] * of(module, "output")[:, columns]
    want = by_head(of(target, "value"), 4) @ of(target, "output")
    best = least_errors(np.einsum("hik,hko->hiok", of(module, "value"), through), want, lambda h, i, o: outputs[o])
    assert np.allclose(largest_error(ticket, "vo").numpy(), best.max((1, 2)), rtol=0, atol=1e-12)
    assert (ticket.candidates_qk, ticket.candidates_vo) == (6, 13)


# ---------------------------------------------------------------- relatives


@pytest.mark.parametrize("side", ["input", "output", "auto"])
def test_with_a_key_and_value_for_each_head_values_and_outputs_are_those_of_multi_head_attention(side):
    target = random_target(3, 2, 4)
    one = variant(target, GroupedQueryAttention(3, 2, 4, 25, seed=3), side=side)
    two = attention(target, MultiHeadAttention(3, 2, 4, 25, seed=3), side=side)
    assert one.side == two.side
    for name in ("value", "output"):
        assert one.masks[name].equal(two.masks[name])
    assert largest_error(one, "vo").equal(largest_error(two, "vo"))
    assert one.candidates_qk == two.candidates_qk


def test_queries_and_keys_are_those_of_multi_head_attention_with_the_two_exchanged():
    target, source = random_target(3, 2, 4), MultiHeadAttention(3, 2, 4, 25, seed=3)
    one = variant(target, GroupedQueryAttention(3, 2, 4, 25, seed=3))
    for module in (target, source):
        module.query, module.key = module.key, module.query
    two = attention(target, source)
    assert one.masks["query"].equal(two.masks["key"])
    assert one.masks["key"].equal(two.masks["query"])
    assert torch.allclose(largest_error(one, "qk"), largest_error(two, "qk"), rtol=1e-6)


def test_shared_keys_and_values_are_as_good_as_copies_of_them():
    target = random_target(3, 2, 4)
    shared = GroupedQueryAttention(3, 2, 4, 24, kv_heads=2, seed=1)
    own = GroupedQueryAttention(3, 2, 4, 24, seed=1)
    with torch.no_grad():
        for role in ("key", "value"):
            getattr(own, role).copy_(repeat_heads(getattr(shared, role), 4))
        own.query.copy_(shared.query)
        own.output.copy_(shared.output)
    one, two = (variant(target, module, side="input") for module in (shared, own))
    assert all(one.masks[name].equal(two.masks[name]) for name in ("query", "output"))
    assert one.certificate.bound == two.certificate.bound


def test_explicit_attention_is_grouped_attention_of_its_mixtures():
    target = random_target(3, 2, 4)
    module = MultiheadExplicitAttention(3, 2, 4, 24, components=3, kv_heads=2, norm=False, **THEORY).double()
    mixed = GroupedQueryAttention(3, 2, 4, 24, kv_heads=2, dtype=torch.float64)
    with torch.no_grad():
        for role in ("key", "value"):
            mixture = torch.einsum("adn,ag->gdn", getattr(module, role), getattr(module, f"mix_{role}"))
            getattr(mixed, role).copy_(mixture)
        mixed.query.copy_(module.query)
        mixed.output.copy_(module.output)
    one, two = (variant(target, source, side="input") for source in (module, mixed))
    assert all(one.masks[name].equal(two.masks[name]) for name in ("query", "output"))


# ---------------------------------------------------------------- the error over candidates


def slope(build, candidates=(6, 12, 18), draws=8):
    """log2 of the median error of an entry, gained for each candidate more: of 576 entries at each of three counts."""
    medians = []
    for count in candidates:
        errors = []
        for seed in range(draws):
            target, source = random_target(3, 3, 4, seed=1000 + seed), build(3, 3, 4, 3 * count, seed=seed)
            multi_head = isinstance(source, MultiHeadAttention)
            ticket = (attention if multi_head else variant)(target, source, side="input", threads=1)
            assert ticket.candidates_qk == ticket.candidates_vo == count
            errors.append(entry_errors(ticket, target))
        medians.append(float(torch.cat(errors).median()))
    return np.polyfit(candidates, np.log2(medians), 1)[0]


@pytest.fixture(scope="module")
def multi_head_slope():
    return slope(MultiHeadAttention)


def test_multi_head_errors_halve_with_every_candidate(multi_head_slope):
    assert -1.1 < multi_head_slope < -0.8


@pytest.mark.parametrize("source", [MERGED[i] for i in (3, 4, 5, 8, 10)], ids=lambda s: s.name)
def test_errors_fall_as_those_of_multi_head_attention(source, multi_head_slope):
    assert abs(slope(source.build) / multi_head_slope - 1) <= 0.2


@pytest.mark.parametrize("side", ["input", "output"])
def test_mixing_as_the_theory_has_it_meets_a_target_that_faded_mixing_cannot(side):
    """At 16 candidates; entries of "random" are of the order of 1 / sqrt(48), and their products do not reach."""
    errors, unreachable = {}, {}
    for mixing_init in ("theory", "random"):
        found = []
        for seed in range(6):
            source = LinearKnockingHeads(3, 3, 4, 48, mixing_init=mixing_init, seed=seed)
            found.append(variant(random_target(3, 3, 4, seed=seed), source, side=side))
        errors[mixing_init] = torch.cat([largest_error(ticket, "vo") for ticket in found]).median()
        unreachable[mixing_init] = sum(ticket.unreachable for ticket in found)
    assert errors["theory"] < 0.1 * errors["random"]
    assert unreachable["theory"] < 0.1 * unreachable["random"]
