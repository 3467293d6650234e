"""Splits and windows of a text, and what counting predicts."""

import itertools
import math
from collections import Counter
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

from slth.tasks import ngrams
from slth.tasks import text as task

# ---------------------------------------------------------------- split


@given(st.integers(0, 3000))
def test_the_split_deals_every_token_once(n):
    training, validation = task.split(torch.arange(n))
    assert torch.cat((training, validation)).sort().values.equal(torch.arange(n))
    for part in (training, validation):
        assert (part.diff() > 0).all()
    if n >= 20:
        assert n // 20 <= len(validation) <= n / 19
        assert len(validation) < len(training)


def test_the_split_of_a_long_text_is_by_pieces_of_65536():
    n, piece = 45 * 65536 + 100, 65536
    training, validation = task.split(torch.arange(n))
    assert validation.equal(torch.cat((torch.arange(19 * piece, 20 * piece), torch.arange(39 * piece, 40 * piece))))
    assert len(training) + len(validation) == n


# ---------------------------------------------------------------- windows


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 9), st.integers(0, 99))
def test_batches_are_windows_that_depend_on_their_names_alone(n, length, count, step):
    tokens = torch.arange(n)
    if n < length:
        with pytest.raises(ValueError, match=f"text of {n} tokens: must be at least {length}, one window"):
            task.batch(tokens, count, length, seed=0, step=step, name="a")
        return
    rows = task.batch(tokens, count, length, seed=0, step=step, name="a")
    assert rows.shape == (count, length)
    assert (rows.diff(dim=1) == 1).all()
    assert rows.min() >= 0
    assert rows.max() < n
    assert rows.equal(task.batch(tokens, count, length, seed=0, step=step, name="a"))
    short = task.batch(tokens.to(torch.uint8), count, length, seed=0, step=step, name="a")
    assert short.dtype == torch.int64
    assert short.equal(rows)
    more = task.batch(tokens, count + 3, length, seed=0, step=step, name="a")
    assert more[:count].equal(rows)


def test_batches_differ_and_reach_every_place():
    tokens = torch.arange(50)
    names = itertools.product((0, 1), (0, 1), ("a", "b"))
    drawn = {tuple(task.batch(tokens, 8, 4, seed=s, step=t, name=n)[:, 0].tolist()) for s, t, n in names}
    assert len(drawn) == 8
    starts = task.batch(tokens, 2000, 4, seed=0, step=0, name="a")[:, 0]
    assert starts.unique().tolist() == list(range(47))


@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 40))
def test_windows_do_not_overlap_and_are_spread(n, length, most):
    tokens = torch.arange(n)
    if n < length:
        with pytest.raises(ValueError, match=f"text of {n} tokens: must be at least {length}, one window"):
            task.windows(tokens, length, most)
        return
    rows = task.windows(tokens, length, most)
    assert rows.shape == (min(most, n // length), length)
    assert (rows.diff(dim=1) == 1).all()
    steps = rows[:, 0].diff()
    assert (steps >= length).all()
    assert len(steps.unique()) <= 1
    assert rows.dtype == task.windows(tokens.to(torch.int16), length, most).dtype == torch.int64


# ---------------------------------------------------------------- what counting predicts


def unigram_oracle(train, rows, size):
    counts = Counter(train)
    shares = [(counts[w] + 1) / (len(train) + size) for row in rows for w in row[1:]]
    return -sum(map(math.log, shares)) / len(shares)


def bigram_oracle(train, rows, size):
    counts, pairs = Counter(train), Counter(itertools.pairwise(train))
    logs = []
    for row in rows:
        for v, w in itertools.pairwise(row):
            single = (counts[w] + 1) / (len(train) + size)
            followers = [often for (first, _), often in pairs.items() if first == v]
            known = sum(followers) + len(followers)
            logs.append(math.log((pairs[v, w] + len(followers) * single) / known if known else single))
    return -sum(logs) / len(logs)


@st.composite
def counted(draw):
    size = draw(st.integers(1, 9))
    token = st.integers(0, size - 1)
    length = draw(st.integers(2, 7))
    rows = draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=1, max_size=4))
    return draw(st.lists(token, min_size=1, max_size=60)), rows, size


@given(counted(), st.integers(1, 20), st.sampled_from([torch.uint8, torch.int16, torch.int64]))
def test_losses_are_those_of_the_formulas(given_counts, piece, dtype):
    train, rows, size = given_counts
    tensors = torch.tensor(train, dtype=dtype), torch.tensor(rows, dtype=dtype), size
    with mock.patch.object(ngrams, "_PIECE", piece):
        assert math.isclose(task.unigram_loss(*tensors), unigram_oracle(train, rows, size), abs_tol=1e-12)
        assert math.isclose(task.bigram_loss(*tensors), bigram_oracle(train, rows, size), abs_tol=1e-12)
    if len(rows) == 1:
        flat = (tensors[0], tensors[1][0], size)
        assert task.bigram_loss(*flat) == task.bigram_loss(*tensors)


@given(counted())
def test_the_shares_of_all_tokens_sum_to_one(given_counts):
    train, _, size = given_counts
    train = torch.tensor(train)
    for before in range(size):
        for loss in (task.unigram_loss, task.bigram_loss):
            shares = [math.exp(-loss(train, torch.tensor([before, after]), size)) for after in range(size)]
            assert math.isclose(sum(shares), 1.0, abs_tol=1e-12)


def test_pairs_know_more_than_tokens_alone():
    train = torch.arange(8).repeat(500)
    valid = torch.arange(8).repeat(3)
    assert math.isclose(task.unigram_loss(train, valid, 8), math.log(8), abs_tol=1e-3)
    assert task.bigram_loss(train, valid, 8) < 0.01
    large = 50_000  # a table of all pairs would hold 2.5e9
    assert task.bigram_loss(train, valid, large) < 0.03


@one_case
@pytest.mark.parametrize(
    ("train", "valid", "size", "message"),
    [
        ([], [[0, 1]], 2, r"train of shape \(0,\): must be tokens \(n,\), at least one"),
        ([[0, 1]], [[0, 1]], 2, r"train of shape \(1, 2\): must be tokens"),
        ([0], [[0], [1]], 2, r"valid of shape \(2, 1\): must be rows \(..., T\) of two tokens or more"),
        ([0], [], 2, r"valid of shape \(0,\): must be rows"),
        ([0, 2], [0, 1], 2, r"train with tokens from 0 to 2: must be in \[0, 2\)"),
        ([0, 1], [-1, 1], 2, r"valid with tokens from -1 to 1: must be in"),
        ([0], [0, 0], 0, "size=0: must be an int >= 1"),
    ],
)
def test_what_cannot_be_counted_is_refused(train, valid, size, message):
    for loss in (task.unigram_loss, task.bigram_loss):
        with pytest.raises(ValueError, match=message):
            loss(torch.tensor(train, dtype=torch.int64), torch.tensor(valid, dtype=torch.int64), size)
