"""What a construction of a variant says of itself, and what cannot be constructed."""

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from helpers import causal_mask, largest_error, random_inputs, random_mask, random_target
from tables import one_case
from variant_pairs import MERGED, RECTANGULAR, each, each_merged, each_rectangular, gqa_target, pair, pruned

from slth.attention import (
    ATTENTIONS,
    DifferentialAttention,
    GroupedQueryAttention,
    GroupedTiedAttention,
    LinearKnockingHeads,
    MLPKnockingHeads,
    MultiHeadAttention,
    MultiheadExplicitAttention,
    MultiHeadLinearAttention,
    MultiQueryAttention,
    TalkingHeadsAttention,
    TiedLinearKnockingHeads,
    TiedMLPKnockingHeads,
)
from slth.construct import AttentionConstruction, variant
from slth.construct.certificates import certificate
from slth.construct.projections import projections

# ---------------------------------------------------------------- what the ticket says of itself


@each_merged
def test_errors_and_certificate_are_those_of_the_pruned_source(source):
    target, module = pair(source)
    ticket = variant(target, module, side=source.side, alpha=1.5)
    got, wanted = pruned(module, ticket).merged(), target.merged()
    assert all(torch.allclose(a, b, rtol=0, atol=1e-15) for a, b in zip(ticket.merged, got, strict=True))
    for name, ours, theirs in zip(("qk", "vo"), got, wanted, strict=True):
        difference = (ours - theirs).detach()
        assert torch.allclose(ticket.errors[name], difference, rtol=0, atol=1e-15)
    assert float(ticket.certificate.bound) == pytest.approx(float(certificate(wanted, got, 1.5).bound))
    assert ticket.entries == 4 * (3 * 3 + 3 * 2)
    assert 0 <= ticket.unreachable <= ticket.entries


@each
def test_pruned_source_is_as_near_to_the_target_as_certified(source):
    target, module = pair(source, seed=3, hidden=60)
    ticket = variant(target, module, side=source.side)
    ours = pruned(module, ticket)
    assert ticket.certificate.alpha == 3**0.5
    for length in (1, 2, 13):
        x = random_inputs(length, 4, length, 3, norm=3**0.5, inside=True)
        for mask in (None, causal_mask(length), random_mask(1, 4, length, length)):
            error = torch.linalg.vector_norm(ours(x, mask) - target(x, mask), dim=-1).amax()
            assert error <= ticket.certificate.bound <= ticket.certificate.lemma8 + 1e-9
            assert error < 0.5 * torch.linalg.vector_norm(target(x, mask), dim=-1).amax()


@each_rectangular
def test_a_certificate_of_projections_holds_for_the_worst_tokens_of_many(source):
    """Few candidates, so that errors are large; pairs of tokens, of the largest norm allowed."""
    source = replace(source, options=source.options | {"shared_width": 8})
    for seed in range(3):
        target, module = pair(source, seed=seed)
        ticket = variant(target, module, alpha=2.0)
        x = random_inputs(seed, 500, 2, 3, norm=2.0)
        error = torch.linalg.vector_norm(pruned(module, ticket)(x) - target(x), dim=-1).amax()
        assert error > 0.01
        assert error <= ticket.certificate.bound


@pytest.mark.parametrize("source", [MERGED[2], MERGED[4], MERGED[5], MERGED[11], *RECTANGULAR], ids=lambda s: s.name)
def test_a_planted_ticket_is_found(source):
    """A target that is itself a pruned source is met up to rounding."""
    target, module = pair(source)
    planted = pruned(module, variant(target, module))
    ticket = variant(planted, module)
    assert max(largest_error(ticket, "qk").max(), largest_error(ticket, "vo").max()) < 1e-13
    assert ticket.unreachable == 0


def test_projections_are_met_by_themselves():
    source = RECTANGULAR[-1]  # with rope and qk_norm
    source = replace(source, options=source.options | {"shared_width": 96})  # 24 candidates for each feature
    target, module = pair(source)
    ticket = variant(target, module)
    assert ticket.errors.keys() == {"qk", "vo", "query", "key"}
    assert ticket.unreachable == 0
    assert ticket.entries == 4 * (2 * 3 * 4 + 3 * 2)
    assert max(largest_error(ticket, name).max() for name in ("query", "key", "vo")) < 1e-4
    x = random_inputs(0, 5, 9, 3, norm=3**0.5)
    assert torch.allclose(pruned(module, ticket)(x), target(x), atol=2e-3)


def test_control_merged_matrices_alone_do_not_survive_positions():
    """What the first way finds in a source of equal width is right without positions, and wrong with them."""
    target = gqa_target(RECTANGULAR[1].build(hidden=30))
    without = gqa_target(RECTANGULAR[0].build(hidden=30))
    source = GroupedQueryAttention(3, 2, 4, 30, dtype=torch.float64)
    turned = GroupedQueryAttention(3, 2, 4, 30, dtype=torch.float64, rope=True)
    ticket = variant(without, source)
    ticket.prune(source)
    ticket.prune(turned)
    x = random_inputs(0, 5, 9, 3, norm=3**0.5)
    unlike = torch.linalg.vector_norm(turned(x) - target(x), dim=-1).amax()
    assert unlike > 20 * torch.linalg.vector_norm(source(x) - without(x), dim=-1).amax()


def test_a_causal_source_and_target_are_alike():
    target = gqa_target(RECTANGULAR[0].build(hidden=4))
    target.causal = True
    source = GroupedQueryAttention(3, 2, 4, 60, kv_heads=2, causal=True)
    ours = pruned(source, variant(target, source))
    x = random_inputs(0, 7, 3)
    assert torch.allclose(ours(x), target(x), atol=1e-4)
    cache = ours.start()
    steps = torch.cat([ours.step(token, cache) for token in x.split(1)])
    assert torch.allclose(steps, target(x), atol=1e-4)


@pytest.mark.parametrize(
    "target",
    [
        GroupedQueryAttention(3, 2, 4, 2, kv_heads=2, init="xavier_uniform"),
        MultiheadExplicitAttention(3, 2, 4, 5, norm=False, init="xavier_uniform"),
        TalkingHeadsAttention(3, 2, 4, 2, init="xavier_uniform"),
        DifferentialAttention(3, 2, 2, 4, norm=False, init="xavier_uniform"),  # 2 heads, each of 2 softmax maps
    ],
    ids=lambda target: type(target).__name__,
)
def test_whatever_merges_is_a_target(target):
    target = target.double()
    source = GroupedQueryAttention(3, 2, 4, 84, kv_heads=1)
    ours = pruned(source, variant(target, source))
    x = random_inputs(0, 5, 9, 3)
    assert torch.allclose(ours(x), target(x), atol=1e-3)


@pytest.mark.parametrize("source", [MERGED[5], MERGED[10], RECTANGULAR[1]], ids=lambda s: s.name)
def test_threads_and_a_float64_source_change_nothing(source):
    target, module = pair(source)
    one = variant(target, module, threads=1)
    two = variant(target, copy.deepcopy(module).double(), threads=2)
    assert type(one) is type(two)
    for name in (f.name for f in fields(AttentionConstruction)):
        if name == "masks":
            assert all(mask.equal(two.masks[role]) for role, mask in one.masks.items())
        elif name.startswith("error_"):
            assert getattr(one, name).equal(getattr(two, name))
    assert one.certificate.bound == two.certificate.bound


# ---------------------------------------------------------------- what cannot be


@one_case
@pytest.mark.parametrize(
    ("source", "said"),
    [
        (GroupedQueryAttention(4, 4, 2, 8, rope=True), "GroupedQueryAttention: .*; rope turns"),
        (MultiQueryAttention(4, 4, 2, 8, qk_norm=True), "MultiQueryAttention: .*; qk_norm normalises"),
        (GroupedTiedAttention(4, 4, 2, 8, rope=True), "GroupedTiedAttention: .*; rope turns"),
        (LinearKnockingHeads(4, 4, 2, 8, rope=True, qk_norm=True), "LinearKnockingHeads: .*; rope turns .*; qk_norm"),
        (MultiheadExplicitAttention(4, 4, 2, 8), "MultiheadExplicitAttention: .*; norm normalises"),
        (MLPKnockingHeads(4, 4, 2, 8), "MLPKnockingHeads: .*; the MLP on values is not linear"),
        (TiedMLPKnockingHeads(4, 4, 2, 8), "TiedMLPKnockingHeads: .*; the MLP on values is not linear"),
        (TalkingHeadsAttention(4, 4, 2, 8), "TalkingHeadsAttention: .* several heads are mixed"),
        (DifferentialAttention(4, 4, 2, 8), "DifferentialAttention: .*; norm normalises"),
        (DifferentialAttention(4, 4, 2, 8, norm=False), "DifferentialAttention: .*; two softmax maps share"),
        (MultiHeadLinearAttention(4, 4, 2, 8), "MultiHeadLinearAttention: .*; phi acts"),
        (MultiHeadAttention(4, 4, 2, 8), "MultiHeadAttention: .*; slth.construct.attention is what finds"),
        (
            TiedLinearKnockingHeads(4, 4, 2, 8, shared_width=16),
            "TiedLinearKnockingHeads: .*; it maps features by .* square",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_source_that_cannot_hold_a_ticket_says_what_stands_in_the_way(source, said):
    with pytest.raises(ValueError, match=said):
        variant(random_target(4, 4, 2), source)


@one_case
@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_attention_either_holds_a_ticket_or_says_why_not(name):
    facts = ATTENTIONS[name].facts
    source = ATTENTIONS[name](2, 2, 2, 8, **({facts.norm: False} if facts.norm else {}))
    why = facts.constructible
    if why is not True:
        with pytest.raises(ValueError, match=f"source={type(source).__name__}: must be .*; {why}"):
            variant(random_target(2, 2, 2), source)
    else:
        assert variant(random_target(2, 2, 2), source).candidates_qk == 4


@pytest.mark.parametrize(
    ("name", "target", "given"), [("d_in", (3, 2, 2), 4), ("d_out", (4, 3, 2), 2), ("heads", (4, 2, 1), 2)]
)
def test_target_and_source_that_differ(name, target, given):
    wanted = dict(zip(("d_in", "d_out", "heads"), target, strict=True))[name]
    said = f"{name}: target has {wanted}, source {given}; they must be equal"
    with pytest.raises(ValueError, match=said):
        variant(random_target(*target), GroupedQueryAttention(4, 2, 2, 8))
    with pytest.raises(ValueError, match=said):
        variant(random_target(*target), LinearKnockingHeads(4, 2, 2, 8, shared_width=16))


def test_hidden_too_small():
    with pytest.raises(ValueError, match="hidden=3: must be >= d_in=4"):
        variant(random_target(4, 2, 1), GroupedQueryAttention(4, 2, 1, 3))
    with pytest.raises(ValueError, match="hidden=5: must be >= d_out=6"):
        variant(random_target(4, 6, 1), GroupedQueryAttention(4, 6, 1, 5), side="output")


@one_case
@pytest.mark.parametrize("source", [MERGED[i] for i in (2, 3, 4, 5, 9, 10)], ids=lambda s: s.name)
def test_values_that_are_shared_cannot_be_solved_for(source):
    target, module = pair(source)
    with pytest.raises(ValueError, match="side='output': would solve for values, which several heads"):
        variant(target, module, side="output")
    assert variant(target, module).side == "input"  # though outputs are fewer than inputs


@pytest.mark.parametrize("source", [MERGED[2], RECTANGULAR[1]], ids=lambda s: s.name)
def test_bad_arguments(source):
    target, module = pair(source)
    with pytest.raises(ValueError, match="side='left': must be one of input, output or auto"):
        variant(target, module, side="left")
    for alpha in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"alpha={alpha}: must be a finite number > 0"):
            variant(target, module, alpha=alpha)


@pytest.mark.parametrize(
    ("source", "name"), [(MERGED[10], "mix_key"), (MERGED[4], "key_value"), (RECTANGULAR[1], "mix_value")]
)
def test_weights_that_are_not_finite(source, name):
    bad = torch.nan
    target, module = pair(source)
    with torch.no_grad():
        module.get_parameter(name)[..., 0, 1] = bad
    with pytest.raises(ValueError, match=f"source weight '{name}' holds NaN or infinite values"):
        variant(target, module)
    target, module = pair(source)
    with torch.no_grad():
        target.query[0, 0, 0] = bad
    with pytest.raises(ValueError, match="target weight 'query' holds NaN or infinite values"):
        variant(target, module)


def test_sources_whose_projections_cannot_each_be_met():
    def build(**options):
        return LinearKnockingHeads(**{"d_in": 4, "d_out": 4, "heads": 2, "hidden": 8} | options)

    cases = {
        "mix='qv': must be 'qkv'": build(shared_width=16, mix="qv"),
        "kv_heads=1: must be heads=2": build(shared_width=16, kv_heads=1),
        "hidden=2: must be >= d_out=4": build(hidden=2, shared_width=16),
        "shared_width=7: must be >= hidden=8": build(shared_width=7),
        "identity_plus_random.*cannot be pruned": build(shared_width=16, mixing_init="identity_plus_random"),
    }
    for said, source in cases.items():
        with pytest.raises(ValueError, match=said):
            variant(random_target(4, 4, 2, hidden=source.hidden), source)
    with pytest.raises(ValueError, match="side='input': must be output or auto with a shared_width"):
        variant(random_target(4, 4, 2), build(shared_width=16), side="input")
    with pytest.raises(ValueError, match="must be linear knocking heads with a shared_width"):
        projections(random_target(4, 4, 2), build())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rope": True}, "rope: target has True, source False"),
        ({"qk_norm": True}, "qk_norm: target has True, source False"),
        ({"hidden": 6}, "hidden: target has 6, source 8"),
    ],
)
def test_targets_whose_projections_are_others(options, said):
    source = LinearKnockingHeads(4, 4, 2, 8, shared_width=16)
    with pytest.raises(ValueError, match=said):
        variant(GroupedQueryAttention(4, 4, 2, **{"hidden": 8} | options), source)


@pytest.mark.parametrize("kind", [MLPKnockingHeads, MultiheadExplicitAttention, GroupedTiedAttention])
def test_targets_without_such_projections(kind):
    source = LinearKnockingHeads(4, 4, 2, 8, shared_width=16)
    with pytest.raises(ValueError, match=f"target is {kind.__name__}: must be multi-head or grouped-query attention"):
        variant(kind(4, 4, 2, 8), source)


def test_a_source_that_is_no_attention_is_refused():
    target = MultiHeadAttention(4, 4, 2, 4, init="xavier_uniform").double()
    with pytest.raises(TypeError, match=r"source=Linear.*must be an attention of slth.attention"):
        variant(target, torch.nn.Linear(4, 4))
