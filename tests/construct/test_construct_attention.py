import copy
from dataclasses import fields

import numpy as np
import pytest
import torch
from helpers import causal_mask, direct_attention, largest_error, random_inputs, random_mask, random_target

from slth.attention import MultiHeadAttention
from slth.construct import AttentionConstruction, attention, certificate
from slth.construct.multi_head import Pair

ROLES = ("query", "key", "value", "output")

#: (d_in, d_out, heads, hidden_qk, hidden_vo, side): even blocks, remainders, one candidate, several heads.
CASES = [
    (1, 1, 1, 6, 6, "input"),
    (2, 1, 1, 20, 20, "input"),
    (2, 1, 1, 20, 20, "output"),
    (3, 2, 2, 19, 23, "input"),
    (3, 2, 2, 19, 23, "output"),
    (2, 4, 3, 12, 9, "output"),
    (4, 4, 2, 4, 4, "input"),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def layers(case, seed=0, dtype=torch.float32):
    """A target and a source for a case."""
    d_in, d_out, heads, hidden_qk, hidden_vo, _ = case
    widths = {"hidden_qk": hidden_qk, "hidden_vo": hidden_vo}
    source = MultiHeadAttention(d_in, d_out, heads, 1, seed=seed, dtype=dtype, **widths)
    return random_target(d_in, d_out, heads), source


def pruned(source, ticket):
    """A float64 copy of the source, pruned."""
    copied = copy.deepcopy(source).double()
    ticket.prune(copied)
    return copied


def assert_same(a: AttentionConstruction, b: AttentionConstruction):
    for field in fields(AttentionConstruction):
        one, two = getattr(a, field.name), getattr(b, field.name)
        if field.name == "source":
            continue
        if field.name in ("masks", "errors"):
            assert all(one[name].equal(two[name]) for name in one.keys() | two.keys())
        elif field.name == "merged":
            assert all(x.equal(y) for x, y in zip(one, two, strict=True))
        elif field.name in ("side", "digests"):
            assert one == two
        elif field.name == "certificate":
            assert one.bound.equal(two.bound)
            assert one.alpha == two.alpha
        else:
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(two))


# ---------------------------------------------------------------- weights and masks


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_is_exactly_zero_or_bit_for_bit_the_random_one(case, dtype):
    target, source = layers(case, dtype=dtype)
    before = copy.deepcopy(source)
    ticket = attention(target, source, side=case[-1])
    assert all(getattr(source, role).equal(getattr(before, role)) for role in ROLES)  # not touched yet
    ticket.prune(source)
    for role in ROLES:
        mask, weight, random = ticket.masks[role], getattr(source, role), getattr(before, role)
        assert (mask.dtype, mask.shape) == (torch.bool, random.shape)
        assert weight[mask].equal(random[mask])
        assert (weight[~mask] == 0).all()
        assert mask.equal(weight != 0)  # no random weight is 0, so the ticket can be read off the weights
        assert weight.dtype == dtype
    kept = sum(int((getattr(source, role) != 0).sum()) for role in ROLES)
    assert ticket.keep == kept / sum(weight.numel() for weight in before.parameters())


@each_case
def test_structural_masks_give_each_hidden_unit_one_coordinate(case):
    d_in, d_out, _, hidden_qk, hidden_vo, side = case
    target, source = layers(case)
    ticket = attention(target, source, side=side)
    structural = {"query": (d_in, hidden_qk, ticket.masks["query"])}
    if side == "input":
        structural["value"] = (d_in, hidden_vo, ticket.masks["value"])
    else:
        structural["output"] = (d_out, hidden_vo, ticket.masks["output"].mT)
    for parts, hidden, mask in structural.values():
        expected = torch.zeros(parts, hidden, dtype=torch.bool)
        for part, units in enumerate(np.array_split(np.arange(hidden), parts)):
            expected[part, torch.from_numpy(units)] = True
        assert (mask == expected).all()  # the same for every head
    assert ticket.candidates_qk == hidden_qk // d_in
    assert ticket.candidates_vo == hidden_vo // (d_in if side == "input" else d_out)


# ---------------------------------------------------------------- what the ticket says of itself


@each_case
def test_errors_are_those_of_the_pruned_source(case):
    target, source = layers(case)
    ticket = attention(target, source, side=case[-1])
    got = pruned(source, ticket).merged()
    assert all(a.equal(b) for a, b in zip(ticket.merged, got, strict=True))
    for name, ours, wanted in zip(("qk", "vo"), got, target.merged(), strict=True):
        assert torch.allclose(ticket.errors[name], (ours - wanted).detach(), rtol=1e-12, atol=0)
    heads, d_in, d_out = case[2], case[0], case[1]
    assert ticket.entries == heads * (d_in * d_in + d_in * d_out)
    assert 0 <= ticket.unreachable <= ticket.entries


@each_case
def test_no_kept_or_pruned_weight_could_do_better_alone(case):
    """Each entry's subset sum is optimal, so no single bit of a solved mask can lower the largest errors."""
    target, source = layers(case)
    side = case[-1]
    ticket = attention(target, source, side=side)
    solved = ("key", "output" if side == "input" else "value")
    for role, which, error in zip(solved, (0, 1), (largest_error(ticket, name) for name in ("qk", "vo")), strict=True):
        for bit in list(np.ndindex(*ticket.masks[role].shape))[:: max(1, ticket.masks[role].numel() // 12)]:
            masks = {name: mask.clone() for name, mask in ticket.masks.items()}
            masks[role][bit] ^= True
            flipped = copy.deepcopy(source).double()
            with torch.no_grad():
                for name, mask in masks.items():
                    getattr(flipped, name).mul_(mask)
            changed = (flipped.merged()[which] - target.merged()[which]).abs().amax((-2, -1))
            assert (changed >= error - 1e-14).all()


def test_unreachable_counts_entries_beyond_all_candidates():
    target, source = layers((2, 1, 1, 4, 4, "input"))
    assert attention(target, source).unreachable < 6
    with torch.no_grad():
        for weight in target.parameters():
            weight *= 100
    ticket = attention(target, source, side="input")
    assert ticket.unreachable == ticket.entries == 6


@pytest.mark.parametrize("case", [CASES[3], CASES[5]], ids=str)
def test_certificate_is_that_of_the_merged_matrices(case):
    target, source = layers(case)
    ticket = attention(target, source)
    alpha = max(case[:2]) ** 0.5  # max(sqrt d_in, sqrt d_out)
    expected = certificate(target.merged(), ticket.merged, alpha)
    assert ticket.certificate.alpha == pytest.approx(alpha)
    assert float(ticket.certificate.bound) == pytest.approx(float(expected.bound))
    assert attention(target, source, alpha=0.5).certificate.alpha == 0.5


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("side", ["input", "output"])
def test_pruned_source_computes_what_the_target_computes(side):
    """20 candidates an entry: the outputs agree to 1e-4 at every length, with and without masks."""
    target, source = layers((2, 2, 2, 40, 40, side), seed=3)
    ticket = attention(target, source, side=side)
    assert ticket.unreachable == 0
    ours = pruned(source, ticket)
    for length in (1, 2, 17):
        x = random_inputs(length, 8, length, 2, norm=2**0.5, inside=True)
        for mask in (None, causal_mask(length), random_mask(1, 8, length, length)):
            error = torch.linalg.vector_norm(ours(x, mask) - target(x, mask), dim=-1).amax()
            assert error < 1e-4
            assert error <= ticket.certificate.bound
            direct = torch.linalg.vector_norm(
                direct_attention(ours, x, mask) - direct_attention(target, x, mask), dim=-1
            )
            assert direct.amax() <= ticket.certificate.bound


def test_more_hidden_less_error():
    def median_error(hidden):
        tickets = [attention(*layers((2, 2, 2, hidden, hidden, "input"), seed=seed)) for seed in range(5)]
        return np.median([torch.cat([largest_error(t, "qk"), largest_error(t, "vo")]) for t in tickets])

    errors = [median_error(hidden) for hidden in (4, 16, 32)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_planted_ticket_is_found(side):
    """A target that is itself a pruned source is met up to rounding."""
    case = (3, 2, 2, 24, 22, side)
    _, source = layers(case)
    planted = pruned(source, attention(random_target(3, 2, 2, seed=7), source, side=side))
    ticket = attention(planted, source, side=side)
    assert max(largest_error(ticket, "qk").max(), largest_error(ticket, "vo").max()) < 1e-14
    assert ticket.unreachable == 0
    assert ticket.certificate.bound < 1e-11


@pytest.mark.parametrize(("d_in", "d_out", "side"), [(3, 2, "output"), (2, 3, "input"), (2, 2, "input")])
def test_auto_takes_the_side_with_more_candidates_and_says_so(d_in, d_out, side):
    target, source = layers((d_in, d_out, 2, 12, 12, None))
    chosen = attention(target, source)
    assert chosen.side == side
    assert_same(chosen, attention(target, source, side=side))


@pytest.mark.parametrize("side", ["input", "output"])
def test_halves_put_together_are_the_whole(side):
    target, source = layers(CASES[3])
    pair = Pair.of(target, source)
    halves = pair.query_key(), pair.value_output(side=side)
    assert_same(pair.assemble(*halves, alpha=2.0), attention(target, source, side=side, alpha=2.0))


def test_recorded_scales_are_taken_as_they_are():
    """A target 8 times as large, a source with scales of 8: the same masks, errors 8 times as large."""
    target, source = layers(CASES[3])
    larger, scaled = copy.deepcopy(target), copy.deepcopy(source)
    with torch.no_grad():
        larger.query *= 8
        larger.value *= 8
    scaled.scale_qk.fill_(8)
    scaled.scale_vo.fill_(8)
    ticket, same = attention(target, source), attention(larger, scaled)
    assert all(ticket.masks[role].equal(same.masks[role]) for role in ROLES)
    assert torch.allclose(largest_error(same, "qk"), 8 * largest_error(ticket, "qk"), rtol=1e-6)
    assert torch.allclose(largest_error(same, "vo"), 8 * largest_error(ticket, "vo"), rtol=1e-6)


def test_threads_change_nothing():
    target, source = layers(CASES[3])
    assert_same(attention(target, source, threads=1), attention(target, source, threads=2))


def test_float32_target_and_neither_module_changed():
    target, source = layers(CASES[3])
    target = target.float()
    before = [copy.deepcopy(module.state_dict()) for module in (target, source)]
    ticket = attention(target, source)
    assert_same(ticket, attention(copy.deepcopy(target).double(), copy.deepcopy(source).double()))
    for module, state in zip((target, source), before, strict=True):
        assert all(tensor.equal(state[name]) for name, tensor in module.state_dict().items())
        assert all(weight.requires_grad for weight in module.parameters())
    assert not any(matrix.requires_grad for matrix in ticket.merged)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(("name", "other"), [("d_in", (3, 2, 2)), ("d_out", (4, 3, 2)), ("heads", (4, 2, 1))])
def test_target_and_source_that_differ(name, other):
    source = MultiHeadAttention(4, 2, 2, 8)
    given, wanted = dict(zip(("d_in", "d_out", "heads"), other, strict=True))[name], getattr(source, name)
    with pytest.raises(ValueError, match=f"{name}: target has {given}, source {wanted}; they must be equal"):
        attention(random_target(*other), source)


def test_hidden_qk_too_small():
    with pytest.raises(ValueError, match="hidden_qk=3: must be >= d_in=4"):
        attention(random_target(4, 2, 1), MultiHeadAttention(4, 2, 1, 8, hidden_qk=3))


@pytest.mark.parametrize(("side", "hidden_vo", "needed"), [("input", 3, 4), ("output", 1, 2)])
def test_hidden_vo_too_small(side, hidden_vo, needed):
    with pytest.raises(ValueError, match=f"hidden.*={hidden_vo}: must be >= .*{needed}"):
        attention(random_target(4, 2, 1), MultiHeadAttention(4, 2, 1, 8, hidden_vo=hidden_vo), side=side)


def test_other_side():
    with pytest.raises(ValueError, match="side='left': must be one of input, output"):
        attention(random_target(2, 2, 1), MultiHeadAttention(2, 2, 1, 4), side="left")


@pytest.mark.parametrize("alpha", [0.0, np.nan])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha}: must be a finite number > 0"):
        attention(random_target(2, 2, 1), MultiHeadAttention(2, 2, 1, 4), alpha=alpha)
