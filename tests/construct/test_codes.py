"""Structured codes: nearest sums, masks of whole units, and how near to the limit they come."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slth import Ticket, theory
from slth.construct import bases, encode, nearest
from slth.construct.codes import BlockProduct, Code, block_product
from slth.weights import inits

few = settings(max_examples=25)
MATRIX = inits.normal((16, 64), 0.1, seed=1, name="codes")


def orthogonal(seed, problems, n, d):
    """Vectors (P, n, d), orthonormal d at a time, counted from the last."""
    return inits.orthogonal((problems, n, d), 1.0, seed=seed, name="codes").numpy()


def distances(vectors, targets, signs):
    return np.square(np.einsum("pn,pnd->pd", np.where(signs, 1.0, -1.0), vectors.astype(float)) - targets).sum(axis=1)


def least(vectors, targets):
    """The least distances, by going through all signs."""
    every = np.array(list(itertools.product([-1.0, 1.0], repeat=vectors.shape[1])))
    return np.square(np.einsum("sn,pnd->psd", every, vectors) - targets[:, None]).sum(axis=2).min(axis=1)


# ---------------------------------------------------------------- nearest sums


@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 5))
@few
def test_two_halves_find_the_nearest_of_all_sums(seed, n, d):
    rng = np.random.default_rng(seed)
    vectors, targets = rng.normal(size=(5, n, d)), 2 * rng.normal(size=(5, d))
    signs = nearest.solve(vectors, targets, threads=1)
    assert distances(vectors, targets, signs) == pytest.approx(least(vectors, targets), abs=1e-4)


@given(st.integers(0, 99), st.integers(1, 4), st.integers(0, 5))
@few
def test_bases_find_the_nearest_of_all_sums(seed, d, more):
    vectors, targets = orthogonal(seed, 5, d + more, d), np.random.default_rng(seed).normal(size=(5, d))
    signs = bases.solve(vectors, targets, threads=1)
    assert distances(vectors, targets, signs) == pytest.approx(least(vectors, targets), abs=1e-4)


def test_both_searches_agree_where_lists_are_cut_in_two():
    vectors, targets = orthogonal(0, 4, 18, 4), np.random.default_rng(0).normal(size=(4, 4))
    one, other = bases.solve(vectors, targets), nearest.solve(vectors, targets)
    assert distances(vectors, targets, one) == pytest.approx(distances(vectors, targets, other), abs=1e-5)


def test_a_longer_list_comes_no_farther_from_the_target():
    vectors, targets = orthogonal(1, 20, 20, 2), np.random.default_rng(1).normal(size=(20, 2))
    for module in (bases, nearest):
        few_sums, all_sums = (distances(vectors, targets, module.solve(vectors, targets, keep=k)) for k in (4, 1024))
        assert (all_sums <= few_sums + 1e-6).all()
        assert all_sums.mean() < few_sums.mean()


@pytest.mark.parametrize(
    ("solve", "shapes", "keep", "match"),
    [
        (nearest.solve, ((1, 41, 2), (1, 2)), 1, "41 vectors: must be 40 at most"),
        (nearest.solve, ((1, 4, 2), (1, 3)), 1, r"must be \(P, N, d\) and \(P, d\)"),
        (nearest.solve, ((1, 4, 2), (1, 2)), 0, "keep=0: must be an int >= 1"),
        (bases.solve, ((1, 3, 4), (1, 4)), 1, "3 vectors in 4 dimensions: must be 4 to 28"),
    ],
)
def test_searches_refuse(solve, shapes, keep, match):
    with pytest.raises(ValueError, match=match):
        solve(*map(np.ones, shapes), keep=keep)


# ---------------------------------------------------------------- tickets


@pytest.mark.parametrize("pairs", [True, False])
def test_the_mask_prunes_whole_units_and_touches_nothing_else(pairs):
    construction = encode(MATRIX, Code(bits=2, block=4, pairs=pairs), seed=3, name="w", threads=1)
    source = construction.source
    before = {name: weight.clone() for name, weight in source.named_parameters()}
    mask = construction.masks["first"]
    construction.prune(source)
    assert (source.first[~mask] == 0).all()
    assert source.first[mask].equal(before["first"][mask])
    assert source.second.equal(before["second"])
    assert torch.allclose(source.matrix(), construction.merged, rtol=0, atol=1e-12)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(source(x), x @ two_layers(source).float(), rtol=1e-4, atol=1e-5)
    if pairs:
        assert (mask[..., ::2] ^ mask[..., 1::2]).all()
        assert source.second[..., ::2, :].equal(-source.second[..., 1::2, :])


def two_layers(source):
    """The map as two whole matrices, each unit a column of the first and a row of the second."""
    rows, blocks, units, d = source.second.shape
    first = torch.zeros(rows, rows * blocks * units, dtype=torch.float64)
    second = torch.zeros(rows * blocks * units, blocks * d, dtype=torch.float64)
    for k, (i, b, u) in enumerate(itertools.product(range(rows), range(blocks), range(units))):
        first[i, k] = source.first[i, b, u]
        second[k, b * d : (b + 1) * d] = source.second[i, b, u]
    return (first @ second)[:, : source.columns] * source.scales()


@pytest.mark.parametrize(
    ("code", "bits"), [(Code(bits=2, block=8), 2.0), (Code(bits=2, block=8, scale=32), 2.0), (Code(1.5, 12), 1.6875)]
)
def test_a_ticket_holds_the_bits_that_are_counted_and_the_network(code, bits):
    construction = encode(MATRIX, code, seed=5, name="w")
    scales = construction.source.scale.numel()
    assert construction.bits == pytest.approx(bits + 16 * scales / MATRIX.numel())  # padded to 6 blocks of 12
    ticket = Ticket.from_bytes(construction.ticket().to_bytes())
    (held,) = (ticket.tensors[name] for name in ("masks", "coded") if name in ticket.tensors)
    assert held.numel() <= math.ceil(bits * MATRIX.numel() / 8)
    again = BlockProduct(16, 64, code, seed=0)
    ticket.apply(again)
    assert again.matrix().equal(construction.merged)


def test_codes_come_near_the_formula_and_pairs_are_what_does_it():
    matrix = inits.normal((32, 128), 1.0, seed=2, name="codes")
    assert encode(matrix, Code(bits=2)).above_limit < 1.6
    assert encode(matrix, Code(bits=2, block=8)).above_limit < 2.2
    assert encode(matrix, Code(bits=3)).above_limit < 2.4
    assert encode(matrix, Code(bits=2, block=8, pairs=False)).above_limit > 5
    assert encode(matrix, Code(bits=2, block=8, orthogonal=False)).above_limit > 2.6


def test_a_row_of_its_own_scale_is_met_whatever_its_size():
    sizes = 10.0 ** torch.arange(-8, 8, dtype=torch.float64)[:, None]
    construction = encode(MATRIX * sizes, Code(bits=2, block=8, scale="row"))
    error = construction.errors["product"] / sizes
    assert 0.07 < (error.square().mean() / MATRIX.double().square().mean()) < 0.15
    assert encode(torch.zeros(2, 8), Code()).error == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bits": 0}, "bits=0: must be"),
        ({"bits": 2.3, "block": 8}, r"bits=2.3: times block=8 must be an int in \[1, 32\]"),
        ({"bits": 5, "block": 8}, r"bits=5: times block=8 must be an int in \[1, 32\]"),
        ({"block": 0}, "block=0: must be an int >= 1"),
        ({"scale": "column"}, "scale='column': must be"),
        ({"scale": 12, "block": 8}, "scale=12: must be matrix, row or a multiple of block=8"),
    ],
)
def test_codes_refuse(options, match):
    with pytest.raises(ValueError, match=match):
        Code(**options)


def test_a_matrix_that_does_not_fit_is_refused():
    source = BlockProduct(4, 8, Code(2, 4))
    for matrix, match in ((np.ones((4, 9)), r"must be \(4, 8\)"), (np.full((4, 8), np.nan), "NaN or infinite")):
        with pytest.raises(ValueError, match=match):
            block_product(matrix, source)
    with pytest.raises(ValueError, match="neither of them 0"):
        encode(np.ones((0, 4)), Code())


def test_theory_of_codes():
    table = {1: 12.1, 2: 6.0, 4: 3.25, 8: 1.85, 12: 1.35, 16: 1.07, 32: 0.62}
    for d, decibels in table.items():
        assert 10 * math.log10(theory.random_code(d)) == pytest.approx(decibels, abs=0.05)
    assert theory.random_code(10**6) == pytest.approx(1, abs=1e-4)
    for d, error in ((1, 0.01), (8, 0.1), (12, 0.003)):
        n = theory.code_candidates(d, error)
        assert theory.random_code(d) * theory.rate_limit(n / d) <= error
        assert theory.random_code(d) * theory.rate_limit((n - 1) / d) > error
