"""No error exceeds its certificate, which could not be much smaller."""

import copy
import math

import numpy as np
import pytest
import torch
from certifying import (
    TICKETS,
    adversarial,
    each_ticket,
    few,
    largest_distance,
    laws,
    matrices,
    moved,
    pairs,
    seeds,
    ticket_of,
    wanted,
)
from helpers import causal_mask, direct_attention, random_inputs, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case

from slth.attention import MultiHeadAttention, merged_attention
from slth.construct import certificate
from slth.construct.adversary import output_error, worst_input

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


@one_case
@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_bad_alpha(alpha):
    pair = matrices(0, 1, 2, 1)
    with pytest.raises(ValueError, match=f"alpha={alpha}: must be a finite number > 0"):
        certificate(pair, pair, alpha)
