"""Learned masks next to constructed ones: what is asked for, what is learned, and what the table and summary say."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from command_lines import launched
from helpers import EXPERIMENTS, thinned
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

import slth
from slth import plots
from slth.attention.facts import PROJECTIONS
from slth.experiments import approx_error, lab
from slth.experiments.lab import storage
from slth.experiments.studies.approximation import learning
from slth.experiments.studies.approximation import measure as approximation
from slth.masking.masks import count_kept
from slth.search import Biprop, EdgePopup, Frozen, IteRand
from slth.search.controls import random_mask

pytestmark = pytest.mark.usefixtures("blank_figures")

SCRIPT = EXPERIMENTS / "approx_error.py"
SMALL = {"hidden": [5, 12], "lengths": [4, 9], "sources": [3, 2], "samples": 4, "target": "random"}


def study_of(**changed):
    return approx_error.Config(**changed).study


def measured(**changed):
    of = study_of(**SMALL | changed)
    return approximation.measure(of, approximation.make_target(of)[0])[0]


@pytest.fixture(scope="module")
def table():
    return measured(method="edge_popup", steps=12)


@pytest.fixture(scope="module")
def lesson():
    """A study whose masks are learned, and what they are learned from and chosen on."""
    of = study_of(**SMALL | {"method": "edge_popup", "steps": 400})
    return of, *approximation._examples(of, approximation.make_target(of)[0].merged())


# ---------------------------------------------------------------- what is asked for


@one_case
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "steep"}, "method='steep': must be one of construction, edge_popup, iterand"),
        ({"method": {"name": "iterand", "speed": 1}}, "method.speed=1: iterand has no such option, must be one of"),
        ({"method": "iterand", "steps": 1}, "never redraws in 1 steps, must have 2 steps or more"),
        ({"method": "frozen", "keep": 0.8}, r"keep=0.8: must be between 0\.25, the share locked, and 0\.75"),
        ({"method": None}, "method=None: must be one of"),
        ({"method": ["construction", "edge_popup"]}, r"method=\[.*: must be one of"),
        ({"method": "edge_popup", "depth": 2}, "method='edge_popup': must be one of construction"),
        ({"keep": 0}, r"keep=0: must be a finite number > 0\.0 and <= 1\.0"),
        ({"keep": 1.2}, "keep=1.2: must be a finite number"),
        ({"keep": "half"}, "keep='half': must be a finite number"),
        ({"steps": 0}, "steps=0: must be an int >= 1"),
        ({"steps": 1e3}, "steps=1000.0: must be an int >= 1"),
        ({"lr": 0.0}, "lr=0.0: must be a finite number > 0"),
        ({"lr": math.inf}, "lr=inf: must be a finite number > 0"),
        ({"batch": -1}, "batch=-1: must be an int >= 1"),
        ({"batch": True}, "batch=True: must be an int >= 1"),
        *(
            ({key: value, **more}, f"{key}={value}: must be left out, or .*, with method=construction")
            for key, value in {"keep": 0.3, "batch": 8}.items()
            for more in ({}, {"depth": 2})
        ),
    ],
)
def test_bad_values_are_named(changed, message):
    with pytest.raises(lab.BadConfig, match=message):
        study_of(**changed)


def test_sources_follow_the_method_unless_they_are_given():
    assert study_of().sources == [100]
    assert study_of(method="edge_popup", lengths=[4, 8]).sources == [10, 10]
    assert study_of(method="edge_popup", sources=3).sources == [3]


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize("number", thinned(range(3), 3))
def test_a_learned_mask_beats_random_ones_on_the_same_source(lesson, number):
    of, train, validation = lesson
    errors = []
    for seed in range(20):
        random = slth.wrap(approximation.make_source(of, 12, number), keep=of.search.keep, parameters=PROJECTIONS)
        random_mask(random, seed)
        with torch.no_grad():
            errors.append(float(learning.relative_error(random, validation)))
    source = approximation.make_source(of, 12, number)
    assert learning.learn(source, train, validation, of.search) < min(errors)


@pytest.mark.parametrize("keep", [0.2, 0.5, 1])
def test_every_factor_keeps_its_share_and_kept_weights_their_bits(lesson, keep):
    of, train, validation = lesson
    random, source = (approximation.make_source(of, 5, 0) for _ in range(2))
    error = learning.learn(source, train, validation, learning.Learning(keep, 12, 0.03, 8))
    for role in PROJECTIONS:  # an output for d_out=1 is a vector, and masked all the same
        before, after = getattr(random, role), getattr(source, role)
        kept = after != 0
        assert kept.sum() == count_kept(after.numel(), keep)
        assert after[kept].equal(before[kept])
    assert float(learning.relative_error(source, validation).detach()) == pytest.approx(error, rel=1e-6)
    assert type(source) is type(random)


@pytest.mark.parametrize("method", [EdgePopup(schedule="cubic"), IteRand(every=2, rate=0.9), Frozen(), Biprop()])
def test_every_search_leaves_the_network_that_did_best(lesson, method):
    of, train, validation = lesson
    source = approximation.make_source(of, 5, 0)
    error = learning.learn(source, train, validation, learning.Learning(0.4, 20, 0.03, 8, method))
    assert float(learning.relative_error(source, validation).detach()) == pytest.approx(error, rel=1e-6)
    for role in PROJECTIONS:
        assert (getattr(source, role) != 0).sum() == count_kept(getattr(source, role).numel(), 0.4)


def test_the_best_mask_on_the_way_is_taken(lesson, monkeypatch):
    of, train, validation = lesson
    fits, fit = [], slth.fit
    monkeypatch.setattr(slth, "fit", lambda *given, **named: fits.append(fit(*given, **named)))
    error = learning.learn(approximation.make_source(of, 12, 0), train, validation, of.search)
    looks = [row["validation_error"] for row in fits[0].rows if "validation_error" in row]
    assert len(looks) == of.search.steps // learning.EVERY
    assert error == min(looks) < looks[0]


def test_the_same_source_gives_the_same_mask(lesson):
    of, train, validation = lesson
    pruned = []
    for number in (0, 0, 1):
        pruned.append(approximation.make_source(of, 12, number))
        learning.learn(pruned[-1], train, validation, replace(of.search, steps=40))
    first, again, other = ([getattr(source, role) for role in PROJECTIONS] for source in pruned)
    assert all(map(torch.equal, first, again))
    assert not any(torch.equal(a != 0, b != 0) for a, b in zip(first, other, strict=True))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12))
def test_batches_go_round(count, size, step):
    rows = torch.arange(count).float()
    batch = learning.Examples(rows, -rows).batch(step, size)
    assert batch.inputs.tolist() == [(step * size + i) % count for i in range(size)]
    assert batch.outputs.equal(-batch.inputs)


def test_the_error_is_relative_to_the_target():
    of = study_of(target="random", target_norm=7.0)
    target = approximation.make_target(of)[0].float()
    x = approximation.test_inputs(of)[0].float()
    examples = learning.Examples(x, target(x))
    assert float(learning.relative_error(target, examples)) == 0
    assert float(learning.relative_error(lambda x: 0 * target(x), examples)) == 1
    assert float(learning.relative_error(lambda x: 1.5 * target(x), examples)) == pytest.approx(0.25)


def test_masks_are_learned_from_other_inputs_than_they_are_measured_on(lesson):
    of, train, validation = lesson
    assert train.inputs.shape == (4096 if of.search.steps * of.search.batch > 4096 else 3840, 5, 2)
    assert validation.inputs.shape == (256, 5, 2)
    test = approximation.test_inputs(of)[0].float()
    for one, other in ((train, validation), (train, None), (validation, None)):
        points = test if other is None else other.inputs
        assert (torch.cdist(one.inputs.flatten(1), points.flatten(1)) > 0).all()


# ---------------------------------------------------------------- the table and what it says


def test_the_construction_beside_it_is_what_it_is_alone(table):
    alone = measured()
    assert set(alone["method"]) == {"construction"}
    assert list(alone.columns) == list(table.columns)
    beside = table[table["method"] == "construction"].reset_index(drop=True)
    pd.testing.assert_frame_equal(beside, alone, check_exact=True, check_dtype=False)


def test_learned_rows(table):
    learned = table[table["method"] == "edge_popup"]
    assert set(learned["side"]) == {"free"}
    assert len(learned) == 2 * (3 + 2)  # widths, and sources over the lengths
    empty = ["unreachable", "unreachable_share", "candidates_qk", "candidates_vo"]
    assert learned[empty].isna().all(axis=None)
    assert learned.drop(columns=empty).notna().all(axis=None)
    assert (learned["error_mean"] <= learned["error_max"]).all()
    assert (learned[["error_max", "error_adversarial"]].max(axis=1) <= learned["certificate"]).all()
    assert (learned["certificate"] <= learned["certificate_lemma8"]).all()
    shares = {5: (3 * count_kept(10, 0.5) + count_kept(5, 0.5)) / 35, 12: 0.5}
    assert learned["keep"].tolist() == pytest.approx([shares[hidden] for hidden in learned["hidden"]])


def test_learned_rows_are_those_of_the_pruned_source(table):
    of = study_of(**SMALL | {"method": "edge_popup", "steps": 12})
    target, _ = approximation.make_target(of)
    train, validation = approximation._examples(of, target.merged())
    for number in range(2):
        source = approximation.make_source(of, 12, number)
        learning.learn(source, train, validation, of.search)
        rows = table[(table["hidden"] == 12) & (table["source"] == number) & (table["side"] == "free")]
        for x, (_, row) in zip(approximation.test_inputs(of), rows.iterrows(), strict=True):
            with torch.no_grad():
                error = torch.linalg.vector_norm(source.double()(x) - target(x), dim=-1).amax(-1)
            assert row["error_mean"] == pytest.approx(error.mean().item(), rel=1e-9)
            assert row["error_max"] == pytest.approx(error.max().item(), rel=1e-9)


def test_rows_do_not_depend_on_what_else_is_measured(table):
    alone = measured(method="edge_popup", steps=12, hidden=[12], lengths=4, sources=2)
    same = table[(table["hidden"] == 12) & (table["length"] == 4) & (table["source"] < 2)].reset_index(drop=True)
    bounds = ["certificate"]  # allows for rounding over the longest input
    pd.testing.assert_frame_equal(alone.drop(columns=bounds), same.drop(columns=bounds), check_exact=True)


def test_the_summary_fits_constructions_alone_and_compares(table):
    summary = approximation.summarise(table)
    alone = approximation.summarise(table[table["method"] == "construction"])
    assert summary["fits"].keys() == {"input", "output"}
    same = alone.keys() - {"widths", "learned"}
    assert {key: summary[key] for key in same} == {key: alone[key] for key in same}
    assert alone["learned"] == []
    assert len(summary["widths"]) == len(alone["widths"]) + 4
    assert [(row["length"], row["hidden"]) for row in summary["learned"]] == [(4, 5), (4, 12), (9, 5), (9, 12)]
    row, here = summary["learned"][1], table[(table["length"] == 4) & (table["hidden"] == 12)]
    medians = here.groupby("side")["error_mean"].median()
    assert row["learned"] == medians["free"]
    assert row["constructed"] == medians[["input", "output"]].min()
    assert row["ratio"] == row["learned"] / row["constructed"]
    table = table.assign(certificate=table["certificate"].where(table["side"] != "free", 0.0))
    assert approximation.summarise(table)["certificate_violations"] == 10
    json.dumps(storage.plain(summary), allow_nan=False)


def test_the_ends_of_curves_are_what_is_printed():
    points = [(side, n) for side in ("input", "output") for n in (4, 8, 12)]
    numbers = {"length": 4, "sources": 2, "mean": 1.0, "median": 0.5, "std": 0.1, "certificate_median": 3.0}
    ends = approximation.ends_of_curves({"widths": [{"side": side, "hidden": n, **numbers} for side, n in points]})
    assert ends[["side", "hidden"]].to_numpy().tolist() == [[s, n] for s in ("input", "output") for n in (4, 12)]
    assert ends[["error_mean", "error_median", "certificate_median"]].drop_duplicates().to_numpy().tolist() == [
        [1.0, 0.5, 3.0]
    ]


# ---------------------------------------------------------------- as a program


def test_a_run(tmp_path):
    arguments = [
        "smoke",
        "method=edge_popup",
        "lengths=[4,6]",
        "hidden=[4,8,12]",
        "sources=2",
        "-F",
        str(tmp_path / "runs"),
    ]
    done = launched("approx_error", tmp_path, "with", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "runs" / "1"
    results, summary, config = lab.load_run(folder)
    assert (config["steps"], config["lr"]) == (20, 0.3)  # as smoke has them, whatever the method
    assert {*results.columns} >= plots.ERROR_COLUMNS
    assert set(zip(results["method"], results["side"], strict=True)) == {
        ("construction", "input"),
        ("construction", "output"),
        ("edge_popup", "free"),
    }
    assert len(summary["learned"]) == 2 * 3
    assert config["method"] == "edge_popup"
    assert {path.name for path in folder.glob("*.png")} == {"error_vs_width.png", "error_vs_length.png"}
    figures = plots.figures(results, summary)
    assert [axes.get_title().partition(",")[0] for axes in figures["error_vs_length"].axes] == [
        "side=input",
        "side=output",
        "edge-popup",
    ]
    refused = launched("approx_error", tmp_path, "with", "keep=0")
    assert (refused.returncode, refused.stderr) == (1, "keep=0: must be a finite number > 0.0 and <= 1.0\n")
