"""Certificates at any size of numbers, and what they are measured by."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from certifying import adversarial, each_ticket, few, largest_distance, matrices, moved, seeds, sizes, ticket_of, wanted
from helpers import random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case

from slth.attention import GroupedQueryAttention, LinearKnockingHeads, MultiHeadAttention, merged_attention
from slth.construct import attention, certificate, measure
from slth.construct.adversary import output_error, worst_input

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


@one_case
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


@one_case
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


@one_case
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
