"""What a ticket stands beside: files and their bytes, small networks, and what a run stores of them."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import cats
from hypothesis import given, settings
from hypothesis import strategies as st
from sacred.observers import FileStorageObserver
from small_pruning import config_of
from torch import nn

from slth.experiments import gpt2_prune, lab
from slth.experiments.studies.gpt2 import beside, shipping
from slth.experiments.studies.rate import peers
from slth.models import gpt2
from slth.search import baselines
from slth.ticket import bits
from slth.weights import inits

TEXT = cats(150)
pytestmark = pytest.mark.usefixtures("blank_figures")


def net():
    """Two layers with biases, 200 x 150 and 150 x 40."""
    model = nn.Sequential(nn.Linear(150, 200), nn.Linear(200, 40))
    for name, p in model.named_parameters():
        p.data = inits.normal(tuple(p.shape), 0.1, seed=1, name=name)
    return model


PATHS = ["0.weight", "1.weight"]
WEIGHTS, REST = 150 * 200 + 200 * 40, 240
HEADER = 400  # bytes that a safetensors file with three tensors may take beside them


# ---------------------------------------------------------------- files


def codes_of(streams, count, width):
    """What streams_of was given."""
    streams = iter(streams)
    codes = torch.zeros(count, dtype=torch.int64)
    for level in range(width):
        above = codes.clone()
        for prefix in range(1 << level):
            where = above == prefix
            if where.any():
                codes[where] = 2 * above[where] + next(streams).long()
    return codes


@given(st.integers(1, 4).flatmap(lambda w: st.tuples(st.just(w), st.lists(st.integers(0, 2**w - 1), min_size=1))))
@settings(max_examples=60)
def test_streams_hold_the_codes(case):
    width, codes = case
    streams = shipping.streams_of(torch.tensor(codes), width)
    assert codes_of(streams, len(codes), width).tolist() == codes


def test_streams_take_the_entropy_of_the_codes():
    shares = torch.tensor([0.7, 0.05, 0.2, 0.05])
    torch.manual_seed(0)
    codes = torch.multinomial(shares, 50_000, replacement=True)
    found = bits.encode(shipping.streams_of(codes, 2)).numel() * 8 / 50_000
    assert found == pytest.approx(float(-(shares * shares.log2()).sum()), rel=0.01)


def test_floats_are_halved():
    model, before = net(), net()
    assert 2 * (WEIGHTS + REST) < shipping.floats(model) < 2 * (WEIGHTS + REST) + HEADER
    assert all(p.equal(q.half().float()) for p, q in zip(model.parameters(), before.parameters(), strict=True))


def test_a_sparse_file_has_a_mask_and_the_kept_in_half():
    model, before = net(), net()
    with torch.no_grad():
        for path in PATHS:
            for each in (model, before):
                each.get_parameter(path)[before.get_parameter(path).abs() < 0.15] = 0.0
    kept = sum(int(before.get_parameter(path).count_nonzero()) for path in PATHS)
    share = kept / WEIGHTS
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    size = shipping.sparse(model, PATHS)
    assert size == pytest.approx(WEIGHTS * entropy / 8 + 2 * (kept + REST) + HEADER / 2, abs=HEADER)
    assert all(p.equal(q.half().float()) for p, q in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(("name", "count"), [("binary", 2), ("ternary", 3)])
def test_levels_are_stored_by_their_entropy_and_stay(name, count):
    model = net()
    for path in PATHS:
        codes, scale = baselines.QUANTISED[name](model.get_parameter(path).data)
        model.get_parameter(path).data = codes * scale
    before = copy.deepcopy(model)
    size = shipping.levels(model, {path: [model.get_parameter(path)] for path in PATHS}, count)
    values = torch.cat([before.get_parameter(path).sign().flatten() for path in PATHS])
    shares = values.unique(return_counts=True)[1] / len(values)
    assert len(shares) == count
    entropy = float(-(shares * shares.log2()).sum())
    assert size == pytest.approx(WEIGHTS * entropy / 8 + 2 * REST + HEADER / 2, abs=HEADER)
    assert all(model.get_parameter(path).equal(before.get_parameter(path)) for path in PATHS)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_rounding_is_that_of_the_peers(width):
    model, before = net(), net()
    size = shipping.rounded(model, PATHS, width)
    for path in PATHS:
        wanted, _ = peers.rounding(before.get_parameter(path).detach().double().numpy(), width, shipping.GROUP)
        assert np.array_equal(model.get_parameter(path).detach().numpy(), wanted.astype(np.float32))
    scales, rest = 2 * WEIGHTS / shipping.GROUP, 2 * REST
    assert 0.8 * WEIGHTS * width / 8 < size - scales - rest < WEIGHTS * width / 8 + HEADER


# ---------------------------------------------------------------- small networks


@pytest.mark.parametrize("d", [36, 72])
def test_parameters_are_counted(d):
    config = gpt2.config("tiny", width=0.5, vocabulary=50, length=16)
    config.n_embd = d
    assert beside.parameters_of(config, d) == sum(p.numel() for p in gpt2.build(config).parameters())


@given(st.integers(1, 2_000_000))
@settings(max_examples=40)
def test_a_narrow_network_is_the_nearest(parameters):
    config = gpt2.config("tiny", length=32)
    d = beside.narrowed(config, parameters).n_embd
    assert config.n_embd == 144
    distance = abs(beside.parameters_of(config, d) - parameters)
    assert d % config.n_head == 0
    assert all(abs(beside.parameters_of(config, o) - parameters) >= distance for o in (d - 4, d + 4) if 4 <= o <= 144)


# ---------------------------------------------------------------- a run

ASKED = ["snip", "dense_nonzero", "dense_bytes", "binary", "ternary", "rounding"]


def run(folder, config):
    gpt2_prune.ex.observers[:] = [FileStorageObserver(folder)]
    try:
        gpt2_prune.ex.run(config_updates=config)
    finally:
        gpt2_prune.ex.observers[:] = []
    results, summary, _ = lab.load_run(folder / "1")
    return results, summary


@pytest.fixture(scope="module")
def given_config(text):
    return config_of(text)(lr=0.02, steps=20, controls=False)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, given_config):
    """A run with baselines, in a folder of checkpoints that was begun without."""
    folder = tmp_path_factory.mktemp("beside")
    kept = given_config | {"checkpoints": str(folder / "kept")}
    without, _ = run(folder / "without", kept)
    return without, *run(folder / "with", kept | {"baselines": ASKED}), folder / "kept"


def test_rows_are_added_and_no_other_changes(stored):
    without, results, summary, _ = stored
    shared = results[results["run"].isin(["dense", "ticket"]) & (results["stage"] != "shipped")]
    assert "bytes" not in without
    pd.testing.assert_frame_equal(shared[without.columns].reset_index(drop=True), without, check_exact=True)
    files = results[results["stage"] == "shipped"]
    assert set(files["run"]) == {"ticket", "dense", *ASKED}
    assert len(summary["baselines"]) == len(files) == 2 + 2 + 2 + 2 + len(beside.BITS)
    assert files["val_loss"].map(math.isfinite).all()
    assert files["bits_per_byte"].tolist() == pytest.approx((files["val_loss"] / math.log(2)).tolist())


def test_files_have_the_bits_that_they_must(stored):
    _, results, summary, _ = stored
    files = results[results["stage"] == "shipped"].set_index(["run", "weights"])
    of = files["bits_per_weight"]
    assert files.loc[("ticket", "random"), "bytes"].item() == summary["ticket_bytes"]
    assert files.loc[("ticket", "random"), "val_loss"].item() == summary["val_loss_ticket"]
    assert of["dense", "trained"].item() == pytest.approx(16.0, rel=0.01)
    assert of["snip", "trained"].item() == pytest.approx(9.0, rel=0.05)  # a mask, and half of the weights
    assert 1 < of["binary", "trained"].item() < 1.7  # the least network has many biases
    assert of["binary", "trained"].item() < of["ternary", "trained"].item() < 2.2
    rounding = files.loc["rounding"].sort_values("bytes")
    assert rounding["val_loss"].iloc[-1] == pytest.approx(summary["val_loss_dense"], abs=0.02)
    nonzero = files["nonzero"]
    assert nonzero["dense_nonzero", "trained"].item() == pytest.approx(summary["nonzero_ticket"], rel=0.2)
    assert files.loc[("dense_bytes", "trained"), "bytes"].item() == pytest.approx(summary["ticket_bytes"], rel=0.4)


def test_each_is_trained_in_full_and_goes_on_from_its_checkpoints(stored, given_config):
    _, results, _, kept = stored
    trained = results[(results["stage"] == "full") & results["val_loss"].notna()]
    for name in ("dense", "ticket", *ASKED[:-1]):
        assert trained.loc[trained["run"] == name, "step"].tolist() == [10, 20]
    again, _ = run(kept.parent / "again", given_config | {"checkpoints": str(kept), "baselines": ASKED})
    pd.testing.assert_frame_equal(again, results, check_exact=True)


def test_what_diverges_has_a_row_without_bytes(given_config, monkeypatch):
    study = gpt2_prune.Config(**given_config | {"baselines": "binary"}).study

    def diverge(*arguments):
        raise FloatingPointError("binary")

    monkeypatch.setattr(beside, "best_of_stds", diverge)
    (row,) = beside._trained(study, "tiny*0.25", "binary", {})
    assert row["val_loss"] == math.inf
    assert math.isnan(row["bytes"])


@pytest.mark.parametrize("bad", [[], "snap", ["snip", "snip"]])
def test_unknown_baselines_are_refused(bad, given_config):
    names = "random, magnitude, snip, grasp, synflow, dense_nonzero, dense_bytes, binary, ternary, rounding"
    with pytest.raises(lab.BadConfig, match=f"^baselines=.*: must be one or several of {names}, none twice"):
        gpt2_prune.Config(**given_config | {"baselines": bad})
