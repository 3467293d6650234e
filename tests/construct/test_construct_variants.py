"""Tickets in attentions whose heads share, held against brute force and against multi-head attention."""

import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import brute_force, causal_mask, largest_error, random_inputs, random_mask, random_target

from slth.attention import (
    ATTENTIONS,
    Attention,
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
from slth.attention.functional import repeat_heads
from slth.construct import AttentionConstruction, attention, variant
from slth.construct.certificates import certificate
from slth.construct.projections import projections


@dataclass(frozen=True)
class Source:
    """A way to build a source."""

    name: str
    kind: type[Attention]
    options: dict[str, Any] = field(default_factory=dict)
    side: str = "input"

    def build(self, d_in=3, d_out=2, heads=4, hidden=24, **more):
        """Four heads, 3 inputs, 2 outputs unless told otherwise."""
        return self.kind(d_in, d_out, heads, hidden, **self.options | more)


THEORY = {"mixing_init": "theory"}  # mixing tensors from U[-1, 1], as Theorem 9 draws factors
MERGED = [
    Source("mha", GroupedQueryAttention),
    Source("mha, output side", GroupedQueryAttention, side="output"),
    Source("gqa", GroupedQueryAttention, {"kv_heads": 2}),
    Source("mqa", MultiQueryAttention),
    Source("gta", GroupedTiedAttention, {"kv_heads": 2}),
    Source("kha", LinearKnockingHeads, {"kv_heads": 1} | THEORY),
    Source("kha, output side", LinearKnockingHeads, THEORY, side="output"),
    Source("kha, values only", LinearKnockingHeads, {"mix": "v"} | THEORY),
    Source("kha, I + R", LinearKnockingHeads, {"kv_heads": 2, "mixing_init": "identity_plus_random"}),
    Source("kha tied", TiedLinearKnockingHeads, {"kv_heads": 1} | THEORY),
    Source("mea", MultiheadExplicitAttention, {"norm": False, "mixing_init": "random"}),
    Source("mea, 3 to 2", MultiheadExplicitAttention, {"norm": False, "components": 3, "kv_heads": 2} | THEORY),
]
RECTANGULAR = [
    Source(f"shared_width, {name}", LinearKnockingHeads, {"shared_width": 40} | options | THEORY, "output")
    for name, options in {
        "neither": {},
        "rope": {"rope": True},
        "qk_norm": {"qk_norm": True},
        "both": {"rope": True, "qk_norm": True},
    }.items()
]
each_merged = pytest.mark.parametrize("source", MERGED, ids=lambda source: source.name)
each_rectangular = pytest.mark.parametrize("source", RECTANGULAR, ids=lambda source: source.name)
each = pytest.mark.parametrize("source", MERGED + RECTANGULAR, ids=lambda source: source.name)


def pair(source, seed=0, hidden=24, **sizes):
    """A target and a source: hidden 4 for both where the projections are to be met."""
    if "shared_width" in source.options:
        module = source.build(hidden=4, seed=seed, **sizes)
        return gqa_target(module), module
    module = source.build(seed=seed, hidden=hidden, **sizes)
    return random_target(module.d_in, module.d_out, module.heads), module


def gqa_target(source, kv_heads=2, seed=50):
    """A float64 target of the source's options, its factors of spectral norm 1/2."""
    options = {"rope": source.rope, "qk_norm": source.qk_norm, "seed": seed, "dtype": torch.float64}
    sizes = source.d_in, source.d_out, source.heads, source.hidden
    target = GroupedQueryAttention(*sizes, kv_heads=kv_heads, **options)
    with torch.no_grad():
        for weight in target.parameters():
            weight /= 2 * torch.linalg.matrix_norm(weight, ord=2, keepdim=True)
    return target


def pruned(source, ticket):
    copied = copy.deepcopy(source).double()
    ticket.prune(copied)
    return copied


def entry_errors(ticket, target):
    """The absolute errors of all entries of the merged matrices."""
    pairs = zip(ticket.merged, target.merged(), strict=True)
    return torch.cat([(got - wanted).detach().abs().flatten() for got, wanted in pairs])


def of(module, name):
    """A parameter of a float64 copy, the constant it is added to included, as numpy."""
    module = copy.deepcopy(module).double()
    value = module._mixing(name) if name.startswith("mix_") else getattr(module, name)
    return value.detach().numpy()


def by_head(weights, heads):
    return repeat_heads(torch.from_numpy(weights), heads).expand(heads, -1, -1).numpy()


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


# ---------------------------------------------------------------- what cannot be


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
