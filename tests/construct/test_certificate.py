"""The certificate, the adversary and the measurements, held against each other and against plain attention."""

import copy
import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from helpers import causal_mask, direct_attention, random_inputs, random_mask, random_target
from hypothesis import given, settings
from hypothesis import strategies as st

from slth.attention import GroupedQueryAttention, LinearKnockingHeads, MultiHeadAttention, merged_attention
from slth.construct import attention, certificate, measure
from slth.construct.adversary import output_error, worst_input

seeds = st.integers(0, 2**32 - 1)
few, laws = settings(max_examples=20), settings(max_examples=40)

#: (d_in, d_out, heads, hidden, seed): tickets of few and of many candidates an entry, with errors from 1 to 1e-5.
TICKETS = [
    (1, 1, 1, 5, 0),
    (2, 1, 1, 8, 0),
    (2, 1, 1, 12, 1),
    (2, 1, 1, 24, 2),
    (2, 2, 3, 16, 3),
    (3, 2, 2, 13, 4),
    (4, 4, 4, 4, 5),
    (8, 8, 2, 64, 6),
]
each_ticket = pytest.mark.parametrize("case", TICKETS, ids=str)


@cache
def ticket_of(case):
    """Target, source pruned (float64), and the ticket."""
    d_in, d_out, heads, hidden, seed = case
    target = random_target(d_in, d_out, heads, seed=seed + 50)
    source = MultiHeadAttention(d_in, d_out, heads, hidden, seed=seed, dtype=torch.float64)
    ticket = attention(target, source)
    pruned = copy.deepcopy(source)
    ticket.prune(pruned)
    return target, pruned, ticket


@cache
def adversarial(case):
    """The adversary's error and inputs against a ticket, at the norm that its certificate speaks of."""
    target, _, ticket = ticket_of(case)
    return worst_input(wanted(target), ticket.merged, ticket.certificate.alpha)


def wanted(module):
    return tuple(matrix.detach() for matrix in module.merged())


def largest_distance(a, b):
    return float(torch.linalg.vector_norm(a.detach() - b.detach(), dim=-1).max())


def matrices(seed, heads, d_in, d_out, size_qk=1.0, size_vo=1.0):
    """Random merged matrices, entries of about the given sizes."""
    rng = np.random.default_rng(seed)
    qk, vo = size_qk * rng.normal(size=(heads, d_in, d_in)), size_vo * rng.normal(size=(heads, d_in, d_out))
    return torch.from_numpy(qk), torch.from_numpy(vo)


def moved(pair, seed, *, by_qk, by_vo):
    """The pair with random errors of about the given sizes."""
    qk, vo = pair
    d_qk, d_vo = matrices(seed + 1, qk.shape[-3], *vo.shape[-2:], by_qk, by_vo)
    return qk + d_qk, vo + d_vo


@st.composite
def pairs(draw):
    """Two attentions by their merged matrices, and alpha: errors from tiny to huge, one head or several."""
    seed, heads, d_in, d_out = draw(seeds), draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sizes = st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 1e2])
    target = matrices(seed, heads, d_in, d_out, draw(st.sampled_from([0.1, 1.0, 10.0])))
    return target, moved(target, seed, by_qk=draw(sizes), by_vo=draw(sizes)), draw(st.sampled_from([0.3, 1.0, 4.0]))


# ---------------------------------------------------------------- no error exceeds it


@given(pairs(), seeds, st.integers(1, 9), st.sampled_from(["none", "causal", "any"]))
@settings(max_examples=80)
def test_holds_for_any_matrices_inputs_and_masks(pair, seed, length, kind):
    target, source, alpha = pair
    x = random_inputs(seed, 8, length, target[0].shape[-1], norm=alpha, inside=seed % 2 == 0)
    mask = {"none": None, "causal": causal_mask(length), "any": random_mask(seed, 8, length, length)}[kind]
    error = largest_distance(merged_attention(x, *source, mask), merged_attention(x, *target, mask))
    assert error <= certificate(target, source, alpha).bound


@given(pairs())
@few
def test_holds_against_an_adversary_for_any_matrices(pair):
    target, source, alpha = pair
    error, _ = worst_input(target, source, alpha, length=4, restarts=4, steps=10)
    assert error <= certificate(target, source, alpha).bound


@each_ticket
def test_holds_for_tickets_whatever_the_route(case):
    """Target and pruned source run as modules and head by head from their factors: no merged matrix in common."""
    target, pruned, ticket = ticket_of(case)
    for length in (1, 2, 3, 64):
        x = random_inputs(length, 16, length, case[0], norm=ticket.certificate.alpha, inside=length % 2 == 0)
        for mask in (None, causal_mask(length), random_mask(length, 16, length, length)):
            assert largest_distance(pruned(x, mask), target(x, mask)) <= ticket.certificate.bound
            ours, theirs = (direct_attention(module, x, mask) for module in (pruned, target))
            assert largest_distance(ours, theirs) <= ticket.certificate.bound


@each_ticket
def test_holds_for_the_worst_input_found_also_masked_and_repeated(case):
    target, pruned, ticket = ticket_of(case)
    error, x = adversarial(case)
    bound = ticket.certificate.bound
    assert error <= bound
    assert float(error) == pytest.approx(largest_distance(direct_attention(pruned, x), direct_attention(target, x)))
    for longer in (x, x.repeat(8, 1)):  # 8 and 64 tokens
        length = len(longer)
        for mask in (None, causal_mask(length), random_mask(0, length, length)):
            assert largest_distance(pruned(longer, mask), target(longer, mask)) <= bound


# ---------------------------------------------------------------- and it cannot be much smaller


@given(seeds, st.integers(1, 4), st.integers(1, 3), st.sampled_from([0.3, 1.0, 4.0]))
@few
def test_value_part_is_attained_by_a_lone_token(seed, d_in, d_out, alpha):
    """One head, errors in VO alone: the token along the worst direction of E errs by alpha |E|, the bound itself."""
    target = matrices(seed, 1, d_in, d_out)
    source = moved(target, seed, by_qk=0, by_vo=0.1)
    left, sizes, _ = np.linalg.svd((source[1] - target[1])[0].numpy())
    x = torch.from_numpy(alpha * left[:, 0])[None]
    error = output_error(target, source, x)
    cert = certificate(target, source, alpha)
    assert float(error) == pytest.approx(alpha * sizes[0], rel=1e-9)
    assert float(error) <= float(cert.bound) <= float(error) * (1 + 1e-9) + 1e-11


@given(st.floats(0.05, 8), st.sampled_from([0.3, 1.0, 4.0]))
@few
def test_softmax_part_is_attained_by_two_tokens(m, alpha):
    """One head, one coordinate, tokens alpha and -alpha, logits -m/2 and m/2 that change by m and -m."""
    vo = torch.tensor([[[0.7]]], dtype=torch.float64)
    target, source = ((torch.tensor([[[q]]], dtype=torch.float64), vo) for q in (-m / 2 / alpha**2, m / 2 / alpha**2))
    error = output_error(target, source, torch.tensor([[alpha], [-alpha]], dtype=torch.float64))
    assert float(error) == pytest.approx(2 * alpha * math.tanh(m / 2) * 0.7, rel=1e-9)
    assert float(error) <= float(certificate(target, source, alpha).bound) <= float(error) * (1 + 1e-9) + 1e-11


def test_half_of_it_is_exceeded_by_an_adversary():
    """A control that must fail: as a bound, half the certificate would be false for most tickets of few coordinates."""
    exceeded = [adversarial(case)[0] > 0.5 * ticket_of(case)[2].certificate.bound for case in TICKETS if case[0] <= 2]
    assert sum(exceeded) >= len(exceeded) / 2


@pytest.mark.parametrize("factors", ["qk", "vo"])
@pytest.mark.parametrize("case", [(2, 1, 1, 24, 2), (2, 2, 2, 40, 7)], ids=str)
def test_one_flipped_bit_is_noticed(case, factors):
    """A control that must fail: without the largest weight that a solved mask keeps, the certificate is exceeded."""
    target, pruned, ticket = ticket_of(case)
    changed = copy.deepcopy(pruned)
    with torch.no_grad():
        solved = {"qk": changed.key, "vo": changed.output if ticket.side == "input" else changed.value}[factors]
        weight = solved.view(-1)
        weight[weight.abs().argmax()] = 0.0
    alpha = ticket.certificate.alpha
    error, _ = worst_input(wanted(target), wanted(changed), alpha)
    assert ticket.certificate.bound < error <= certificate(wanted(target), wanted(changed), alpha).bound


# ---------------------------------------------------------------- laws


@given(pairs())
@laws
def test_parts_and_the_forms_it_improves_on(pair):
    """softmax + values <= the form of one term a head <= Lemma 8 inside Theorem 9, and rounding is next to nothing."""
    (qk_t, vo_t), (qk_s, vo_s), alpha = pair
    cert = certificate(*pair)
    d_qk, d_vo = (qk_s - qk_t).numpy(), (vo_s - vo_t).numpy()
    d_in, d_out = d_vo.shape[1:]

    def norms(matrix):
        return np.linalg.svd(matrix, compute_uv=False).max(axis=1)

    moved = 2 * alpha * np.tanh(alpha**2 * norms(d_qk) / 2)
    plain = [(moved * norms(vo.numpy()) + alpha * norms(d_vo)).sum() for vo in (vo_s, vo_t)]
    largest_qk, largest_vo = (np.abs(d).max(axis=(1, 2)) for d in (d_qk, d_vo))
    with np.errstate(over="ignore"):
        lemma8_softmax = math.sqrt(d_in) * alpha * np.expm1(2 * alpha**2 * d_in * largest_qk) * norms(vo_t.numpy())
    lemma8 = (lemma8_softmax + d_in * math.sqrt(d_out) * alpha * largest_vo).sum()
    parts = float(cert.softmax + cert.values)
    assert parts <= min(plain) * (1 + 1e-9)
    assert parts <= lemma8 * (1 + 1e-9)
    assert float(cert.lemma8) == pytest.approx(lemma8, rel=1e-9)
    scale = alpha * sum(norms(vo.numpy()).sum() for vo in (vo_s, vo_t))
    logits = alpha**2 * sum(norms(qk.numpy()).max() for qk in (qk_s, qk_t))
    assert 0 <= float(cert.bound) - parts <= 1e-13 * scale * (1 + logits)


@given(pairs())
@laws
def test_target_and_source_may_change_places(pair):
    target, source, alpha = pair
    there, back = certificate(target, source, alpha), certificate(source, target, alpha)
    assert float(there.bound) == pytest.approx(float(back.bound), rel=1e-12)


@given(pairs(), seeds)
@laws
def test_turned_inputs_outputs_and_heads_in_another_order_change_nothing(pair, seed):
    target, source, alpha = pair
    heads, d_in, d_out = target[1].shape
    rng = np.random.default_rng(seed)
    turn, spin = (torch.from_numpy(np.linalg.qr(rng.normal(size=(d, d)))[0]) for d in (d_in, d_out))
    order = torch.from_numpy(rng.permutation(heads))

    def turned(pair):
        return (turn @ pair[0] @ turn.mT)[order], (turn @ pair[1] @ spin)[order]

    before, after = certificate(target, source, alpha), certificate(turned(target), turned(source), alpha)
    assert float(after.bound) == pytest.approx(float(before.bound), rel=1e-8, abs=1e-9)


@given(pairs(), st.floats(1.01, 3))
@laws
def test_larger_inputs_larger_bound(pair, factor):
    target, source, alpha = pair
    small, large = (certificate(target, source, a) for a in (alpha, factor * alpha))
    for part in ("bound", "softmax", "values", "lemma8"):
        assert getattr(small, part) <= getattr(large, part)
    assert float(large.values) == pytest.approx(factor * float(small.values))
    assert (small.alpha, large.alpha) == (alpha, factor * alpha)


@given(seeds, st.floats(1.01, 100))
@few
def test_errors_and_values_scale_the_bound_as_they_should(seed, factor):
    target = matrices(seed, 2, 3, 2)
    values = moved(target, seed, by_qk=0, by_vo=1e-3)
    larger = target[0], target[1] + factor * (values[1] - target[1])
    small, large = (certificate(target, source, 1.5) for source in (values, larger))
    assert float(large.values) == pytest.approx(factor * float(small.values))
    assert small.softmax == large.softmax == 0
    tiny, tinier = (
        certificate(target, (target[0] + by * (target[0] + 1), target[1]), 1.5).softmax for by in (1e-6, 1e-6 / factor)
    )
    assert float(tiny) == pytest.approx(factor * float(tinier), rel=1e-4)  # linear in small errors of QK
    cubed = certificate(target, (target[0] + 1e-6 * (target[0] + 1), target[1]), 1.5 / factor).softmax
    assert float(tiny) == pytest.approx(factor**3 * float(cubed), rel=1e-4)  # and cubic in alpha


@each_ticket
def test_worse_masks_worse_certificate(case):
    """Flipping a tenth or half of the bits of the solved mask moves the certificate up."""
    target, pruned, ticket = ticket_of(case)
    random = MultiHeadAttention(*case[:4], seed=case[4], dtype=torch.float64)
    changed = copy.deepcopy(pruned)
    for share in (0.1, 0.5):
        mask = ticket.masks["key"]
        flip = np.random.default_rng(0).uniform(size=mask.shape) < share
        with torch.no_grad():
            changed.key.copy_(random.key * (mask ^ torch.from_numpy(flip)))
        bound = certificate(wanted(target), wanted(changed), ticket.certificate.alpha).bound
        assert bound > ticket.certificate.bound


def test_identical_attentions_leave_rounding_alone():
    pair = matrices(0, 2, 4, 3)
    cert = certificate(pair, pair, 2.0)
    assert cert.softmax == cert.values == cert.lemma8 == 0
    assert 0 < cert.bound < 1e-10


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_finite_where_lemma8_is_not(size):
    """However wrong the logits, each head's average stays within 2 alpha: the bound levels off."""
    target = matrices(0, 3, 4, 2)
    source = moved(target, 0, by_qk=size, by_vo=0.01)
    cert = certificate(target, source, 2.0)
    assert cert.lemma8.isinf()
    most = sum(float(4.0 * torch.linalg.matrix_norm(target[1][h], ord=2)) for h in range(3))
    assert cert.softmax <= most
    assert cert.bound < most + 1
    error, _ = worst_input(target, source, 2.0, steps=20)
    assert error <= cert.bound


@pytest.mark.parametrize("which", ["target", "source", "both"])
def test_a_head_without_values(which):
    """VO = 0 on one side or both, logits far apart: finite, and 0 plus the values' part."""
    target, source = matrices(0, 2, 3, 2, size_qk=1e3), matrices(1, 2, 3, 2)
    if which in ("target", "both"):
        target[1].zero_()
    if which in ("source", "both"):
        source[1].zero_()
    cert = certificate(target, source, 2.0)
    assert cert.softmax == 0
    assert cert.bound.isfinite()
    assert cert.values == 0 if which == "both" else cert.values > 0


def test_leading_axes_are_certified_one_by_one():
    targets = [matrices(seed, 2, 3, 2) for seed in range(4)]
    sources = [moved(target, i, by_qk=0.1, by_vo=0.2) for i, target in enumerate(targets)]
    stacked = [tuple(torch.stack(part) for part in zip(*pairs_, strict=True)) for pairs_ in (targets, sources)]
    together = certificate(*stacked, 1.5)
    one_target = certificate(targets[0], stacked[1], 1.5)
    for i in range(4):
        for part in ("bound", "lemma8", "softmax", "values"):
            alone = getattr(certificate(targets[i], sources[i], 1.5), part)
            assert float(getattr(together, part)[i]) == pytest.approx(float(alone), rel=1e-12)
        alone = certificate(targets[0], sources[i], 1.5).bound
        assert float(one_target.bound[i]) == pytest.approx(float(alone), rel=1e-12)


def test_float32_matrices_are_certified_in_float64():
    target = matrices(0, 2, 3, 2)
    source = moved(target, 0, by_qk=0.1, by_vo=0.2)
    narrow = [tuple(matrix.float().requires_grad_() for matrix in pair) for pair in (target, source)]
    widened = [tuple(matrix.detach().double() for matrix in pair) for pair in narrow]
    assert certificate(*narrow, 1.5).bound.equal(certificate(*widened, 1.5).bound)
    assert certificate(*narrow, 1.5).bound.dtype == torch.float64


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_bad_alpha(alpha):
    pair = matrices(0, 1, 2, 1)
    with pytest.raises(ValueError, match=f"alpha={alpha}: must be a finite number > 0"):
        certificate(pair, pair, alpha)


# ---------------------------------------------------------------- the adversary


@each_ticket
def test_adversary_beats_random_inputs_of_its_norm(case):
    target, _, ticket = ticket_of(case)
    error, x = adversarial(case)
    alpha = ticket.certificate.alpha
    random = random_inputs(0, 256, 8, case[0], norm=alpha)
    assert error >= output_error(wanted(target), ticket.merged, random).max()
    assert x.shape == (8, case[0])
    assert torch.allclose(torch.linalg.vector_norm(x, dim=-1), torch.tensor(alpha, dtype=x.dtype), rtol=1e-12)
    assert output_error(wanted(target), ticket.merged, x).item() == pytest.approx(float(error), rel=1e-9)


def test_adversary_is_a_function_of_its_arguments():
    target = matrices(0, 2, 3, 2)
    source = moved(target, 0, by_qk=0.1, by_vo=0.1)
    runs = [worst_input(target, source, 1.5, steps=5, seed=seed) for seed in (0, 0, 1)]
    assert runs[0][0].equal(runs[1][0])
    assert runs[0][1].equal(runs[1][1])
    assert not runs[0][1].equal(runs[2][1])
    with torch.no_grad():  # gradients are its own affair
        assert worst_input(target, source, 1.5, steps=5)[0].equal(runs[0][0])


def test_more_steps_and_restarts_never_find_less():
    target = matrices(0, 2, 3, 2)
    source = moved(target, 0, by_qk=0.1, by_vo=0.1)
    start = random_inputs(0, 8, 5, 3, norm=1.5)
    at_start, _ = worst_input(target, source, 1.5, start=start, steps=0)
    assert float(at_start) == pytest.approx(float(output_error(target, source, start).max()), rel=1e-12)
    climbed, x = worst_input(target, source, 1.5, start=start, steps=40)
    assert climbed > 1.05 * at_start
    assert x.shape == (5, 3)
    fewer, _ = worst_input(target, source, 1.5, start=start[:3], steps=40)
    assert fewer <= climbed * (1 + 1e-9)


def test_adversary_goes_on_from_where_it_is_told():
    """Started at its own result, it never loses what it had; starts of another norm are brought to alpha."""
    target = matrices(0, 1, 2, 1)
    source = moved(target, 0, by_qk=0.3, by_vo=0.1)
    error, x = worst_input(target, source, 1.5, steps=5)
    again, _ = worst_input(target, source, 1.5, start=x[None], steps=5)
    scaled, _ = worst_input(target, source, 1.5, start=100 * x[None], steps=5)
    assert float(again) >= float(error) * (1 - 1e-12)
    assert float(scaled) == pytest.approx(float(again), rel=1e-9)


def test_each_of_several_pairs_is_attacked_on_its_own():
    targets = [matrices(seed, 2, 3, 2) for seed in range(3)]
    sources = [moved(target, i, by_qk=0.1, by_vo=0.2) for i, target in enumerate(targets)]
    stacked = [tuple(torch.stack(part) for part in zip(*pairs_, strict=True)) for pairs_ in (targets, sources)]
    errors, inputs = worst_input(*stacked, 1.5, steps=15)
    assert (errors.shape, inputs.shape) == ((3,), (3, 8, 3))
    for i in range(3):
        error, _ = worst_input(targets[i], sources[i], 1.5, steps=15)
        assert float(errors[i]) == pytest.approx(float(error), rel=1e-6)
    one_target, _ = worst_input(targets[0], stacked[1], 1.5, steps=15)
    assert float(one_target[0]) == pytest.approx(float(errors[0]), rel=1e-6)


def test_worst_input_can_be_repeated_to_any_multiple_of_its_length():
    target = matrices(0, 2, 3, 2)
    source = moved(target, 0, by_qk=0.1, by_vo=0.1)
    error, x = worst_input(target, source, 1.5, length=4, steps=10)
    for times in (2, 16):
        longer = output_error(target, source, x.repeat(times, 1))
        assert float(longer) == pytest.approx(float(error), rel=1e-9)


def test_nothing_to_find_between_equals():
    pair = matrices(0, 2, 3, 2)
    error, x = worst_input(pair, pair, 1.5, steps=3)
    assert error == 0
    assert x.isfinite().all()


# ---------------------------------------------------------------- measurements


@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_outputs_in_blocks_are_attention(block, monkeypatch):
    monkeypatch.setattr(measure, "_BLOCK", block)
    for length, (heads, d_in, d_out) in itertools.product((1, 2, 33), [(1, 2, 1), (3, 4, 2)]):
        pair = matrices(length, heads, d_in, d_out)
        x = random_inputs(length, 5, length, d_in, norm=2.0)
        assert torch.allclose(measure.outputs(x, pair), merged_attention(x, *pair), rtol=1e-12, atol=1e-12)


def test_outputs_of_a_length_beyond_one_block():
    pair = matrices(0, 2, 2, 1)
    x = random_inputs(0, 2, 700, 2, norm=2.0)
    assert measure._BLOCK < 700**2
    assert torch.allclose(measure.outputs(x, pair), merged_attention(x, *pair), rtol=1e-12, atol=1e-12)


@given(seeds, st.integers(1, 4), st.integers(1, 20))
@few
def test_output_errors_are_the_largest_over_positions(seed, samples, length):
    target = matrices(seed, 2, 3, 2)
    source = moved(target, seed, by_qk=0.1, by_vo=0.1)
    x = random_inputs(seed, samples, length, 3, norm=1.5)
    errors = measure.output_errors(measure.outputs(x, target), source, x)
    difference = (merged_attention(x, *source) - merged_attention(x, *target)).numpy()
    expected = np.linalg.norm(difference, axis=-1).max(axis=-1)
    assert np.allclose(errors.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert np.allclose(output_error(target, source, x).numpy(), expected, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- what float64 adds, and matrices of any size


def scaled_error(ours, theirs, x):
    """The largest distance of two modules' outputs over positions, without overflow of a square."""
    with torch.no_grad():
        difference = ours(x) - theirs(x)
    size = difference.abs().max()
    return float(size * torch.linalg.vector_norm(difference / size, dim=-1).max()) if size > 0 else float(size)


@pytest.mark.parametrize("s", [1.0, 1e2, 1e5])
@pytest.mark.parametrize("wide", ["target", "neither"])
def test_rounding_of_large_factors_that_cancel(s, wide):
    """forward rounds relative to |Q||K|, not to |QK|: through the factors, or merging them first."""
    target = MultiHeadAttention(2, 1, 1, 4 if wide == "target" else 2, init="xavier_uniform", seed=1).double()
    rng = torch.Generator().manual_seed(0)
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double().repeat(1, target.hidden_qk // 2)
    near = torch.ones(2, target.hidden_qk).double()
    with torch.no_grad():
        for weight in (target.query, target.value):
            weight.copy_(s * near + torch.randn(weight.shape, generator=rng).double() / s)
        target.key.copy_(s * opposite)
        target.output.copy_(s * opposite[:1].mT)
    source = MultiHeadAttention(2, 1, 1, 96, seed=0).double()
    ticket = attention(target, source, alpha=2.0)
    ticket.prune(source)
    x = random_inputs(0, 200, 4, 2, norm=2.0)
    assert scaled_error(source, target, x) <= ticket.certificate.bound
    twin = copy.deepcopy(target)
    with torch.no_grad():  # the same product by other bits
        twin.query *= 3.0
        twin.key /= 3.0
    assert scaled_error(twin, target, x) <= certificate(target, twin, 2.0).bound


#: A size for the first factor of each pair; the second has its inverse, or another size.
sizes = st.sampled_from([0.0, 1e-320, 1e-300, 1e-160, 1e-8, 1.0, 1e8, 1e100, 1e150, 1e300])


@st.composite
def extremes(draw):
    """An attention whose factors have any sizes that float64 holds."""
    kind = draw(st.sampled_from([MultiHeadAttention, GroupedQueryAttention, LinearKnockingHeads]))
    module = kind(3, 2, 2, draw(st.sampled_from([1, 3, 5])), seed=draw(st.integers(0, 9))).double()
    with torch.no_grad():
        for first, second in (("query", "key"), ("value", "output")):
            size = draw(sizes)
            inverse = 1 / size if size >= 1e-300 else 1.0
            getattr(module, first).mul_(size)
            getattr(module, second).mul_(draw(st.sampled_from([inverse, inverse, 1.0, draw(sizes)])))
    return module


@given(extremes(), extremes(), st.sampled_from([1e-300, 0.1, 2.0, 1e5, 1e104, 1e200]), st.integers(1, 5), seeds)
@settings(max_examples=120, deadline=None)
def test_factors_of_any_size_give_a_bound_that_holds_or_are_refused(target, source, alpha, length, seed):
    try:
        cert = certificate(target, source, alpha)
    except ValueError:
        with pytest.raises(ValueError, match=r"^(target|source) holds NaN or infinite values in W_"):
            certificate(target, source, alpha)
        return
    assert not any(getattr(cert, part).isnan() for part in ("bound", "lemma8", "softmax", "values", "rounding"))
    if cert.bound.isfinite():
        x = random_inputs(seed, 8, length, 3, norm=alpha)
        assert scaled_error(source, target, x) <= cert.bound


@pytest.mark.parametrize("alpha", [1e-300, 1.0, 1e103, 1e104, 1e300])
def test_merged_matrices_of_any_size_give_a_number(alpha):
    for size_qk, size_vo in itertools.product([0.0, 1e-320, 1.0, 1e300], repeat=2):
        target = matrices(0, 2, 3, 2, size_qk, size_vo)
        source = matrices(1, 2, 3, 2, size_qk, size_vo)
        cert = certificate(target, source, alpha)
        parts = (cert.bound, cert.lemma8, cert.softmax, cert.values, cert.rounding)
        assert not any(part.isnan() or part < 0 for part in parts)
        assert cert.values > 0 or size_vo < 1e-300
        if alpha <= 1 and max(size_qk, size_vo) <= 1:
            assert cert.bound.isfinite()


def test_subnormal_values_are_not_lost():
    """Errors in QK next to the smallest values there are: a head of norm 1e-310 is bounded at its size."""
    target = matrices(0, 1, 2, 2)[0], torch.eye(2).double()[None] * 1e-310
    source = moved(target, 1, by_qk=1e-3, by_vo=0.0)
    larger = (target[0], target[1] * 1e300), (source[0], source[1] * 1e300)
    small = certificate(target, source, 1.0).softmax
    assert float(small) == pytest.approx(float(certificate(*larger, 1.0).softmax) * 1e-300, rel=1e-9)


def test_each_head_takes_the_lesser_of_source_and_target():
    """Where S is the smaller of one head and T of the other, neither side alone is as small as both together."""
    qk = matrices(0, 2, 2, 2)[0]
    eye = torch.eye(2).double()
    target, source = (qk, torch.stack((eye, 1e-6 * eye))), (qk + 1e3, torch.stack((1e-6 * eye, eye)))
    cert = certificate(target, source, 1.0)
    assert float(cert.softmax) == pytest.approx(4e-6 / math.sqrt(2) * math.sqrt(2), rel=0.5)
    error, _ = worst_input(target, source, 1.0, steps=20)
    assert error <= cert.bound


def test_float32_errs_by_no_more_than_its_share_of_rounding():
    for alpha in (1.0, 4.0, 16.0, 64.0):
        target = MultiHeadAttention(16, 16, 2, 8, init="xavier_uniform", seed=1)
        exact = copy.deepcopy(target).double()
        x = random_inputs(0, 32, 16, norm=0.999 * alpha).float()
        with torch.no_grad():
            error = largest_distance(target(x).double(), exact(x.double()))
        assert 0 < error <= 2**29 * certificate(exact, exact, alpha).rounding / 2


@pytest.mark.parametrize("value", [2, np.float32(2), torch.tensor(2)])
def test_alpha_may_be_any_scalar(value):
    pair = matrices(0, 1, 2, 1)
    assert certificate(pair, pair, value).alpha == 2.0
    assert type(certificate(pair, pair, value).alpha) is float


@pytest.mark.parametrize("alpha", [10**400, True, "2", torch.ones(2), 1j, torch.tensor(math.nan)])
def test_alpha_that_is_no_number(alpha):
    pair = matrices(0, 1, 2, 1)
    with pytest.raises(ValueError, match=r"alpha=.*must be a (finite number > 0|number in)"):
        certificate(pair, pair, alpha)


@pytest.mark.parametrize("length", [0, 1.5, True])
def test_bad_length(length):
    pair = matrices(0, 1, 2, 1)
    with pytest.raises(ValueError, match=f"length={length}: must be an int >= 1"):
        certificate(pair, pair, 1.0, length=length)


def test_matrices_that_do_not_belong_together():
    (qk, vo), (other_qk, other_vo) = matrices(0, 2, 3, 2), matrices(0, 3, 3, 2)
    for target, source, said in (
        ((qk, other_vo), (qk, other_vo), "target of shapes"),
        ((qk, vo), (other_qk, vo), "source of shapes"),
        ((qk, vo), (other_qk, other_vo), "source of shapes .*: must end in the target's"),
        ((qk[..., :2], vo), (qk, vo), "target of shapes"),
        ((qk, vo), (qk, vo[..., 0]), "source of shapes"),
        ((qk.to(torch.complex128), vo), (qk, vo), "target of dtype"),
    ):
        with pytest.raises(ValueError, match=said):
            certificate(target, source, 1.0)
    for nothing in (qk, (qk,), torch.nn.Linear(2, 2), None):
        with pytest.raises(TypeError, match="source"):
            certificate((qk, vo), nothing, 1.0)


def test_modules_are_certified_as_their_matrices_and_must_be_causal_alike():
    target, source = (GroupedQueryAttention(3, 2, 2, 4, seed=seed).double() for seed in (0, 1))
    cert = certificate(target, source, 2.0)
    merged = certificate(wanted(target), wanted(source), 2.0)
    assert (cert.softmax, cert.values) == (merged.softmax, merged.values)
    source.causal = True
    with pytest.raises(ValueError, match="causal: target has False, source True; they must be equal"):
        certificate(target, source, 2.0)
