"""What is timed beside each other computes the same."""

import importlib.util
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import brute_force, direct_attention, random_inputs

from slth.attention import MultiHeadAttention
from slth.construct.subset_sum import SubsetSums
from slth.experiments.studies.speed import (
    attention_routes,
    peers,
    selection,
    subset_sums,
)
from slth.kernels import Selector

NEEDS_ORTOOLS = pytest.mark.skipif(not importlib.util.find_spec("ortools"), reason="OR-Tools is not installed")
PEERS = ["scipy.milp", pytest.param("ortools.cp_sat", marks=NEEDS_ORTOOLS)]


# ---------------------------------------------------------------- subset sums


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_finds_the_best_subset(peer):
    values, targets = subset_sums.problems(8, 6, seed=3)
    masks, _, _ = brute_force(values, targets)
    with peers.process(peer, time_limit=20.0) as solve:
        found = [solve(*problem) for problem in zip(values, targets, strict=True)]
    np.testing.assert_array_equal(found, masks)


def test_a_peer_that_dies_is_an_error(tmp_path, monkeypatch):
    broken = tmp_path / "broken.py"
    broken.write_text("import sys; sys.exit(3)")
    monkeypatch.setattr(peers, "__file__", str(broken))
    with peers.process("scipy.milp", 1.0) as solve, pytest.raises(RuntimeError, match="ended early"):
        solve(np.ones(2), 1.0)


def test_problems_are_products_of_uniforms_and_follow_the_seed():
    values, targets = subset_sums.problems(10, 2000, seed=0)
    assert values.shape == (2000, 10)
    assert targets.shape == (2000,)
    assert np.abs(values).max() < 1
    assert np.abs(targets).max() < 1
    assert abs(values.var() - 1 / 9) < 0.005
    assert abs(targets.var() - 1 / 3) < 0.02
    assert (subset_sums.problems(10, 5, seed=0)[0] == values[:5]).all()
    assert (subset_sums.problems(10, 5, seed=1)[0] != values[:5]).all()


@pytest.fixture
def no_search(monkeypatch):
    """One peer, which always answers with the empty subset."""
    monkeypatch.setattr(peers, "installed", lambda: ["idle"])
    monkeypatch.setattr(peers, "process", lambda *_: nullcontext(lambda candidates, _: np.zeros(len(candidates), bool)))


@pytest.mark.usefixtures("no_search")
def test_errors_are_those_of_the_problems_that_the_peer_solved():
    (row,) = subset_sums.rows(6, batch=50, rounds=5, time_limit=1.0, seed=2, threads=1)
    values, targets = subset_sums.problems(6, 50, seed=2)
    assert row["error_ours"] == np.median(brute_force(values[:5], targets[:5])[2])
    assert row["error_peer"] == np.median(np.abs(targets[:5]))
    assert row["worse"] == 0
    assert (row["candidates"], row["batch"], row["rounds"], row["threads"]) == (6, 50, 5, 1)


@pytest.mark.usefixtures("no_search")
def test_a_solver_that_is_worse_is_found_out(monkeypatch):
    def everything(values, targets, threads):
        sums = values.sum(axis=1)
        return SubsetSums(np.ones(values.shape, bool), sums, np.abs(sums - targets))

    monkeypatch.setattr(subset_sums, "solve", everything)
    (row,) = subset_sums.rows(6, batch=50, rounds=20, time_limit=1.0, seed=2)
    values, targets = subset_sums.problems(6, 50, seed=2)
    assert row["worse"] == (np.abs(values.sum(axis=1) - targets) > np.abs(targets))[:20].sum() > 0


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(("candidates", "batch"), [(20, 16), (22, 8), (28, 3)])
def test_beyond_20_candidates_a_batch_shrinks_with_the_work(candidates, batch, monkeypatch):
    monkeypatch.setattr(subset_sums, "solve", lambda v, t, threads=1: SubsetSums(v > 0, t, np.abs(t)))
    (row,) = subset_sums.rows(candidates, batch=16, rounds=3, time_limit=1.0, seed=0)
    assert row["batch"] == batch


# ---------------------------------------------------------------- attention routes


def test_direct_is_the_function_of_the_layer():
    layer = MultiHeadAttention(3, 2, 4, 10, dtype=torch.float64)
    x = random_inputs(0, 2, 7, 3)
    assert (attention_routes.direct(layer, x) - direct_attention(layer, x)).abs().max() < 1e-12


def test_route_errors_are_rounding_alone_and_a_wrong_function_shows(monkeypatch):
    shape = attention_routes.Shape(d_in=4, hidden=16, length=9, heads=2)
    (row,) = attention_routes.rows(shape, rounds=2, seed=0)
    assert 0 < row["error_ours"] < 1e-5
    assert 0 < row["error_peer"] < 1e-5
    assert (row["size"], row["ideal"]) == ("d=4 n=16 T=9 H=2", 4.0)
    right = attention_routes.direct
    monkeypatch.setattr(attention_routes, "direct", lambda layer, x: 1.01 * right(layer, x))
    (row,) = attention_routes.rows(shape, rounds=2, seed=0)
    assert row["error_ours"] > 1e-3


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize("name", [name for name in selection.PEERS if name != selection.READ])
@pytest.mark.parametrize("n", [2, 3, 1000])
def test_peers_of_selection_find_the_least_kept_score(name, n):
    scores = random_inputs(n, n).float()
    least = sorted(abs(score) for score in scores.tolist())[n // 2]
    assert selection.PEERS[name](scores) == least


def test_selections_are_checked_score_by_score(monkeypatch):
    table = pd.DataFrame(selection.rows(2000, rounds=3, seed=0))
    assert list(table["peer"]) == list(selection.PEERS)
    assert (table["error_ours"] == 0).all()
    assert (table["error_peer"].dropna() == 0).all()
    assert list(table["peer"][table["error_peer"].isna()]) == [selection.READ]
    right = Selector.cut
    monkeypatch.setattr(Selector, "cut", lambda self, scores, k: right(self, scores, k + 1))
    with pytest.raises(RuntimeError, match="our mask of 2000 scores is not that of a sort"):
        selection.rows(2000, rounds=3, seed=0)


def test_peers_that_keep_all_equal_scores_show_it(monkeypatch):
    monkeypatch.setattr(selection, "moved", lambda start, noise, turn, seed, out: out.fill_(turn))
    table = pd.DataFrame(selection.rows(10, rounds=2, seed=0))
    assert (table["error_ours"] == 0).all()
    assert (table["error_peer"].dropna() == 0.5).all()


def test_scores_move_a_little_every_round_and_the_same_for_all():
    start, noise = torch.ones(1000), torch.linspace(-1, 1, 1000)
    steps = [torch.empty(1000) for _ in range(5)]
    for turn, out in zip([-1, 0, 1, 2, 1], steps, strict=True):
        selection.moved(start, noise, turn, 0, out)
    assert steps[2].equal(steps[4])
    for before, after in pairwise(steps[:4]):
        assert 0 < (after - before).abs().max() < 3e-3
