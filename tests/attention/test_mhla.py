"""MHLA: blocks of tokens mixed by M_c, against the paper's sums token by token, in every form it can be computed."""

import math
from unittest import mock

import pytest
import torch
from helpers import causal_mask, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_attention import build, exactly
from tables import one_case

import slth
from slth.attention import MultiHeadLinearAttention
from slth.attention.mhla import PHI, STARTS
from slth.experiments.studies.speed import linear_attention
from slth.kernels.mhla import cpu

few = settings(max_examples=40)
FORMS = [{}, {"normalise": False}, {"normalise": False, "rope": True}]


@st.composite
def problems(draw, **fixed):
    """A float64 module and inputs (batch, T, d_in), T <= length, of any sizes and options."""
    length, block = draw(st.integers(1, 12)), draw(st.integers(1, 14))
    form = {"normalise": True} if draw(st.booleans()) else {"normalise": False, "rope": draw(st.booleans())}
    options = {
        "heads": draw(st.integers(1, 3)),
        "hidden": 2 * draw(st.integers(1, 2)),
        "phi": draw(st.sampled_from(list(PHI))),
        "mixing_init": draw(st.sampled_from(STARTS)),
        "causal": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    module = build(length=length, block=block, **form | options | fixed)
    batch = draw(st.lists(st.integers(1, 2), max_size=2))
    return module, random_inputs(module.seed, *batch, draw(st.integers(1, length)), 5, norm=2.0)


def by_the_paper(module, x):
    """Token by token: what it attends with is m_ib phi(q) . phi(k), over all tokens or those up to itself."""
    mixing, phi = module.mixing_matrix(), PHI[module.phi]
    out = 0
    for query, key, value, output in zip(module.query, module.key, module.value, module.output, strict=True):
        q, k, v = phi(x @ query), phi(x @ key), x @ value
        rows = []
        for t in range(x.shape[-2]):
            seen = range(t + 1 if module.causal else x.shape[-2])
            shares = [mixing[t // module.block, j // module.block] * (q[t] @ k[j]) for j in seen]
            row = sum(share * v[j] for share, j in zip(shares, seen, strict=True))
            rows.append(row / sum(shares) if module.normalise else row)
        out = out + torch.stack(rows) @ output
    return out


# ---------------------------------------------------------------- the function


@given(problems(rope=False))
@few
def test_the_formula_token_by_token(problem):
    module, x = problem
    x = x.reshape(-1, *x.shape[-2:])[0]
    assert torch.allclose(module.reference(x), by_the_paper(module, x), **exactly)


@given(problems(), st.integers(1, 9))
@settings(max_examples=100)
def test_chunks_are_the_quadratic_form(problem, piece):
    """Bidirectional and causal, with blocks that do not divide the length, whatever is worked on at a time."""
    module, x = problem
    with mock.patch.object(cpu, "PIECE", piece):
        out = module(x)
    assert out.shape == (*x.shape[:-1], 3)
    assert torch.allclose(out, module.reference(x), **exactly)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_pieces_know_where_they_stand(form, causal):
    module = build(length=23, block=2, causal=causal, **form)
    x = random_inputs(0, 2, 23, 5)
    for piece in (1, 4, 7, 22, 100):
        with mock.patch.object(cpu, "PIECE", piece):
            assert torch.allclose(module(x), module.reference(x), **exactly)


@given(problems(causal=True), st.lists(st.integers(1, 5), min_size=12, max_size=12))
@few
def test_streaming_is_batch(problem, sizes):
    module, x = problem
    cache, out, at = module.start(), [], 0
    for size in sizes:
        if at < x.shape[-2]:
            out.append(module.step(x[..., at : at + size, :], cache))
            at += size
    assert cache.length == x.shape[-2]
    assert torch.allclose(torch.cat(out, dim=-2), module(x), **exactly)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_state_grows_from_block_to_block_alone(normalise):
    module = build(causal=True, normalise=normalise)
    cache = module.start()
    assert cache.bytes() == 0
    summary = 2 * 2 * 4 * (4 + normalise) * 8  # batch, heads, hidden, hidden and a column, bytes of a number
    for t, token in enumerate(random_inputs(0, 2, 11, 5).split(1, dim=-2)):
        module.step(token, cache)
        assert cache.bytes() == (2 + t // 4) * summary


@given(problems(causal=True), st.data())
@few
def test_causal_outputs_do_not_know_the_future(problem, data):
    module, x = problem
    now = data.draw(st.integers(0, x.shape[-2] - 1))
    changed = x.clone()
    changed[..., now + 1 :, :] += 1.0
    assert torch.allclose(module(x)[..., : now + 1, :], module(changed)[..., : now + 1, :], **exactly)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_gradients(causal, form):
    module = build(d_in=2, d_out=2, hidden=2, length=5, block=2, phi="elu1", causal=causal, **form)
    names, values = zip(*module.named_parameters(), strict=True)
    assert "mixing" in names

    def function(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    with mock.patch.object(cpu, "PIECE", 2):
        assert torch.autograd.gradcheck(function, (random_inputs(0, 5, 2).requires_grad_(), *values))


@pytest.mark.parametrize("causal", [True, False])
def test_long_inputs_in_float32(causal):
    options = {"d_in": 8, "hidden": 8, "length": 1500, "block": 64, "causal": causal}
    x = random_inputs(0, 1500, 8, norm=3.0)
    out = build(dtype=torch.float32, **options)(x.float())
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), build(**options)(x), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- what it is


@given(problems(mixing_init="uniform", rope=False))
@few
def test_uniform_mixing_is_linear_attention_without_blocks(problem):
    module, x = problem
    phi = PHI[module.phi]
    q, k, v = (x.unsqueeze(-3) @ weight for weight in (module.query, module.key, module.value))
    q, k = phi(q), phi(k)
    sums, total = k.mT @ v, k.sum(-2)[..., None]
    if module.causal:
        sums, total = (k[..., None] * v[..., None, :]).cumsum(-3), k.cumsum(-2)[..., None]
        q = q.unsqueeze(-2)  # each token with a sum of its own
    heads = (q @ sums) / (q @ total) if module.normalise else q @ sums
    heads = heads.squeeze(-2) if module.causal else heads
    assert torch.allclose(module(x), (heads @ module.output).sum(-3), **exactly)


@given(problems(normalise=True, rope=False), st.lists(st.floats(0.01, 100.0), min_size=12, max_size=12))
@few
def test_normalised_rows_sum_to_one_and_their_scale_is_nothing(problem, factors):
    module, x = problem
    matrix, out = module.effective_matrix(x), module(x)
    assert torch.allclose(matrix.sum(-1), torch.ones(()).double(), **exactly)
    assert (matrix >= 0).all()
    if hasattr(module, "mixing_start"):  # a constant, of which mixing holds shares
        return
    with torch.no_grad():
        module.mixing.mul_(torch.tensor(factors[: len(module.mixing)])[:, None])
    assert torch.allclose(module(x), out, **exactly)


def test_without_normaliser_rows_do_not_sum_to_one():
    module = build(normalise=False)
    assert not torch.isclose(module.effective_matrix(random_inputs(0, 12, 5)).sum(-1), torch.ones(()).double()).any()


def rank(matrix):
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-9))


@given(problems(causal=False, rope=False), st.integers(0, 12))
@few
def test_rank_is_bounded(problem, terms):
    """rank(A) <= hidden rank(M_c), and <= min(T, sum of min(block, hidden) over blocks)."""
    module, x = problem
    if not hasattr(module, "mixing_start") and terms:  # a sum of so many outer products
        left, right = random_inputs(terms, 2, len(module.mixing), terms).abs()
        with torch.no_grad():
            module.mixing.copy_(left @ right.T)
    tokens, blocks = x.shape[-2], -(-x.shape[-2] // module.block)
    sizes = [min(module.block, tokens - b * module.block) for b in range(blocks)]
    bound = min(tokens, sum(min(size, module.hidden) for size in sizes))
    mixed = module.hidden * rank(module.mixing_matrix()[:blocks, :blocks])
    for matrix in module.effective_matrix(x).flatten(0, -3):
        assert rank(matrix) <= min(bound, mixed)


@one_case
@pytest.mark.parametrize(("kind", "expected"), [("uniform", 8), ("two", 16), ("four", 32), ("random", 64)])
def test_rank_that_mixing_gives(kind, expected):
    """The bound is met: 8 blocks of 8 tokens and 8 features have rank 8 times that of M_c."""
    terms = {"uniform": torch.ones(2, 8, 1), "two": random_inputs(0, 2, 8, 2), "four": random_inputs(0, 2, 8, 4)}
    left, right = terms.get(kind, random_inputs(0, 2, 8, 8)).abs().double()
    module = build(d_in=16, heads=1, hidden=8, length=64, block=8, phi="elu1", mixing=left @ right.T)
    assert rank(module.effective_matrix(random_inputs(1, 64, 16, norm=6.0))[0]) == expected


@given(problems())
@few
def test_heads_are_the_effective_matrix_times_values(problem):
    module, x = problem
    matrix = module.effective_matrix(x)
    assert matrix.shape == (*x.shape[:-2], module.heads, x.shape[-2], x.shape[-2])
    heads = matrix @ (x.unsqueeze(-3) @ module.value)
    assert torch.allclose(module(x), (heads @ module.output).sum(-3), **exactly)
    if module.causal:
        assert (matrix[..., ~causal_mask(x.shape[-2])] == 0).all()


def test_blocks_that_m_c_does_not_join_do_not_see_each_other():
    module = build(mixing=torch.eye(3))
    x = random_inputs(0, 12, 5)
    alone = torch.cat([module(part) for part in x.split(4)])
    assert torch.allclose(module(x), alone, **exactly)
    assert not torch.isclose(build()(x), alone, **exactly).any()


def test_positions_turn_what_phi_made():
    """Rotated by a common shift, products stay the same: outputs of the second block are those of the first."""
    module = build(normalise=False, rope=True, mixing=torch.eye(3))
    x = random_inputs(0, 4, 5)
    out = module(torch.cat([x, x, x]))
    assert torch.allclose(out[4:8], out[:4], **exactly)
    module.rope = False
    assert not torch.isclose(module(x), out[:4], **exactly).any()


# ---------------------------------------------------------------- errors


def test_inputs_longer_than_mixing():
    module = build(causal=True, length=6)
    for call in (module, module.reference, module.effective_matrix, lambda x: module.step(x, module.start())):
        assert call(random_inputs(0, 6, 5)).shape[-2] == 6
        with pytest.raises(ValueError, match="7 tokens: must be at most length=6"):
            call(random_inputs(0, 7, 5))
    cache = module.start()
    module.step(random_inputs(0, 6, 5), cache)
    with pytest.raises(ValueError, match="7 tokens: must be at most length=6"):
        module.step(random_inputs(0, 1, 5), cache)
    assert cache.length == 6


def test_masks_have_no_room():
    module = build()
    for call in (module, module.reference):
        with pytest.raises(ValueError, match="mask: MultiHeadLinearAttention has none but causal=True, must be None"):
            call(random_inputs(0, 4, 5), causal_mask(4))


def test_a_stream_of_another_batch():
    module = build(causal=True)
    cache = module.start()
    module.step(random_inputs(0, 2, 1, 5), cache)
    with pytest.raises(ValueError, match=r"tokens of batch \(3,\): must be \(2,\) as before"):
        module.step(random_inputs(0, 3, 1, 5), cache)
    assert cache.length == 1


@one_case
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0: must be an int >= 1"),
        ({"block": 0}, "block=0: must be an int >= 1"),
        ({"block": 2.0}, "block=2.0: must be an int >= 1"),
        ({"phi": "exp"}, "phi='exp': must be one of relu, elu1"),
        ({"mixing_init": "identity"}, "mixing_init='identity': must be one of natural, random"),
        ({"mixing_init": "theory"}, "mixing_init='theory': must be one of natural, random"),  # of both signs
        ({"floor": -0.1}, "floor=-0.1: must be a finite number >= 0"),
        ({"floor": math.nan}, "floor=nan: must be a finite number >= 0"),
        ({"rope": True}, "rope=True: needs normalise=False"),
        ({"qk_norm": True}, "qk_norm=True: MultiHeadLinearAttention has no qk_norm"),
    ],
    ids=str,
)
def test_values_that_are_not_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_what_cannot_be_clipped():
    with pytest.raises(ValueError, match="mixing is masked: its weights are frozen"):
        slth.wrap(build()).clip_mixing_()
    with pytest.raises(ValueError, match="mixing_init='identity_plus_random': must be another for M_c to be clipped"):
        build(mixing_init="identity_plus_random").clip_mixing_()


def test_phi_stands_between_query_and_key():
    with pytest.raises(ValueError, match="MultiHeadLinearAttention cannot be merged: phi acts on queries and keys"):
        build().merged()


# ---------------------------------------------------------------- the benchmark


def test_rows_of_the_benchmark_compare_and_follow_growth(monkeypatch):
    first, second = linear_attention.rows([9, 5], d=4, block=2, rounds=2, seed=0)
    assert [row["size"] for row in (first, second)] == ["T=5", "T=9"]
    assert math.isnan(first["growth"])
    assert second["growth"] == second["ours_s"] / first["ours_s"]
    for row in (first, second):
        assert row["ratio"] == row["peer_s"] / row["ours_s"]
        assert 0 < row["error_ours"] < 1e-5
    wrong = MultiHeadLinearAttention.double
    monkeypatch.setattr(MultiHeadLinearAttention, "double", lambda self: wrong(self).requires_grad_(False).apply(halve))
    assert linear_attention.rows([5], d=4, block=2, rounds=1, seed=0)[0]["error_ours"] > 1e-3


def halve(module):
    module.output.mul_(0.5)
