"""The constant experiment: that a trial is what the construction does, that its intervals hold, that it can be read."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from command_lines import launched
from figure_tables import legend_of
from helpers import subset_sums
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import beta
from tables import one_case

from slth import plots, theory, threads
from slth.construct import linear
from slth.construct.subset_sum import MAX_EXACT
from slth.experiments import constant, lab
from slth.experiments.lab import storage
from slth.experiments.studies.constant import measure as study

CONFIG = {"d": [2, 4], "epsilon": [0.3, 0.1], "target": ["uniform", "unit"], "effort": 100}
COLUMNS = ["d", "epsilon", "n_prime", "success", "trials", "c_low", "c_high"]  # others rely on these
CELL = study.Cell(3, 0.3, "uniform")

numbers = st.floats(-1, 1)


# ---------------------------------------------------------------- one trial


@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=numbers), numbers, st.floats(1e-3, 1))
def test_met_agrees_with_all_subsets(candidates, target, tolerance):
    errors = np.abs(subset_sums(candidates) - target).min(axis=1)
    clear = np.abs(errors - tolerance) > 1e-12
    found = study.met(candidates, np.full(len(candidates), target), tolerance)
    assert np.array_equal(found[clear], errors[clear] <= tolerance)


@pytest.mark.parametrize("target", study.TARGETS)
@pytest.mark.parametrize("n_prime", [12, 15, 18])
def test_a_trial_succeeds_where_the_construction_does(target, n_prime):
    cell = CELL._replace(target=target)
    u, v, wanted = study.draw(cell, 60, seed=1, stream=0)
    least = study.least_candidates(np.swapaxes(u[..., None] * v, -1, -2), wanted, cell.tolerance, 1)
    hidden = cell.d * n_prime
    first = np.full((60, cell.d, hidden), 0.5)  # what the mask takes away
    for j in range(cell.d):
        first[:, j, j * n_prime : (j + 1) * n_prime] = u[:, j, :n_prime]
    second = v[:, :, :n_prime].reshape(60, hidden, cell.d)
    ticket = linear(wanted, first, second, threads=1)
    errors = np.abs((first * ticket.mask_first) @ (second * ticket.mask_second) - wanted).max(axis=(1, 2))
    assert np.array_equal(least <= n_prime, errors <= cell.tolerance)
    assert 0 < (least <= n_prime).sum() < 60


def test_what_is_drawn():
    u, v, uniform = study.draw(CELL, 400, seed=0, stream=0)
    unit = study.draw(CELL._replace(target="unit"), 400, seed=0, stream=0)[2]
    assert u.shape == (400, 3, MAX_EXACT)
    assert v.shape == (400, 3, MAX_EXACT, 3)
    for values in (u, v, uniform):
        assert 0.9 < np.abs(values).max() < 1
        assert abs(values.mean()) < 0.05
    assert np.array_equal(np.unique(unit), [-1, 1])
    assert abs(unit.mean()) < 0.1
    assert not np.array_equal(u, study.draw(CELL, 400, seed=0, stream=1)[0])
    assert not np.array_equal(u, study.draw(CELL, 400, seed=1, stream=0)[0])


def test_harder_trials_need_more():
    u, v, wanted = study.draw(CELL, 100, seed=0, stream=0)
    candidates = np.swapaxes(u[..., None] * v, -1, -2)
    least = study.least_candidates(candidates, wanted, CELL.tolerance, 1)
    finer = study.least_candidates(candidates, wanted, CELL.tolerance / 4, 1)
    fewer_entries = study.least_candidates(candidates[:, :2], wanted[:, :2], CELL.tolerance, 1)
    assert (finer >= least).all()
    assert finer.mean() > least.mean()
    assert (fewer_entries <= least).all()
    assert fewer_entries.mean() < least.mean()


def test_trials_that_never_succeed_count_as_beyond_the_last():
    least = study.least_candidates(np.full((2, 1, 4), 0.1), np.array([[0.3], [0.9]]), 0.01, 1)
    assert least.tolist() == [3, 5]


def test_trials_do_not_depend_on_the_threads(monkeypatch):
    monkeypatch.setattr(study, "AT_ONCE", 90)  # several parts, the last a short one
    found = []
    for count in (1, 3):
        monkeypatch.setattr(threads, "cores", lambda count=count: count)
        found.append(study.least_of_trials(CELL, 47, seed=0))
    assert np.array_equal(*found)
    assert np.array_equal(found[0][:40], study.least_of_trials(CELL, 40, seed=0))


@given(st.integers(1, 64), st.floats(0.001, 0.999))
def test_the_search_starts_where_sums_are_too_few(d, epsilon):
    cell = study.Cell(d, epsilon, "uniform")
    share = 2**cell.first * cell.tolerance  # of [-1, 1], at most, within the tolerance of a sum
    assert share < 1 - epsilon or cell.first == 1
    assert 2 * share >= (1 - epsilon) * (1 - 1e-12)


# ---------------------------------------------------------------- what the trials show


def clopper_pearson(succeeded, trials):
    """The interval by its textbook form."""
    low = beta.ppf(0.025, succeeded, trials - succeeded + 1) if succeeded else 0.0
    high = beta.ppf(0.975, succeeded + 1, trials - succeeded) if succeeded < trials else 1.0
    return low, high


def test_rows_hold_shares_intervals_and_verdicts():
    cell = study.Cell(2, 0.1, "unit")  # the search starts at 5
    least = np.repeat([5, 6, 7, 8, 9], [500, 300, 90, 60, 50])
    rows = study.rows_of(cell, least).set_index("n_prime")
    assert rows.index.tolist() == [5, 6, 7, 8, 9]
    assert rows["success"].tolist() == [0.5, 0.8, 0.89, 0.95, 1.0]
    assert rows["verdict"].tolist() == ["fails", "fails", "open", "suffices", "suffices"]
    for n_prime, succeeded in ((6, 800), (7, 890), (9, 1000)):
        interval = rows.loc[n_prime, ["success_low", "success_high"]].tolist()
        assert interval == pytest.approx(clopper_pearson(succeeded, 1000))
    assert (rows["trials"] == 1000).all()
    assert not rows["decided"].any()
    assert rows["c_low"].unique() == pytest.approx([6 / math.log(40)])
    assert rows["c_high"].unique() == pytest.approx([8 / math.log(40)])


@pytest.mark.parametrize(
    ("least", "c_low", "c_high", "decided"),
    [
        (np.repeat([5, 6], [500, 500]), 5, 6, True),
        (np.full(1000, 5), 0, 5, False),
        (np.full(1000, MAX_EXACT + 1), MAX_EXACT, math.nan, False),
    ],
)
def test_rows_where_a_verdict_is_missing(least, c_low, c_high, decided):
    cell = study.Cell(2, 0.1, "unit")
    rows = study.rows_of(cell, least)
    assert rows["n_prime"].max() == min(least.max(), MAX_EXACT)
    assert (rows["decided"] == decided).all()
    for column, wanted in (("c_low", c_low), ("c_high", c_high)):
        assert rows[column].unique() == pytest.approx([wanted / cell.log], nan_ok=True)


WAVERING = np.linspace(-1e-4, 0, 9)  # nine n' whose success probabilities lie this close to each other


@pytest.mark.parametrize(
    ("cumulative", "true"),
    [
        ([*(0.6999 + WAVERING), 1.0], 9),  # nine that hardly fail, any of which may be taken for sufficient
        ([0.5, *(0.7002 + WAVERING), 1.0], 1),  # nine that hardly suffice, any of which may be taken for failing
    ],
)
def test_looking_at_every_n_misleads_no_more_often_than_one_interval_does(cumulative, true):
    cell, rng = study.Cell(2, 0.3, "unit"), np.random.default_rng(0)
    misled = 0
    for _ in range(100):
        least = cell.first + np.searchsorted(cumulative, rng.uniform(size=150))
        rows = study.rows_of(cell, least).set_index("verdict")["n_prime"] - cell.first
        fails, suffices = (rows[rows.index == verdict] for verdict in ("fails", "suffices"))
        misled += (fails >= true).any() or (suffices < true).any()
    assert 0 < misled <= 8  # 2.5 at most are expected; 9 or more have a chance of 0.1 %


def test_summary_holds_the_least_constant_that_suffices_everywhere():
    table = study.measure(constant.Config.of(CONFIG).study())
    summary = study.summarise(table)
    assert json.loads(json.dumps(storage.plain(summary)))["logarithm"] == "natural"
    for target in ("uniform", "unit"):
        cells = pd.DataFrame(summary["cells"][target])
        assert len(cells) == 4
        enough = summary["C"][target] * cells["log"]
        assert (enough * (1 + 1e-12) >= cells["n_prime_suffices"]).all()
        assert (enough * (1 - 1e-12) < cells["n_prime_suffices"]).any()
        assert (cells["c_low"] < cells["c_high"]).all()
        assert summary["lines"][target]["slope"] > 1 / math.log(2)  # the information limit
    assert summary["C"]["unit"] > summary["C"]["uniform"]


def test_a_cell_without_an_answer_leaves_the_constant_open():
    rows = [study.rows_of(study.Cell(2, 0.1, "unit"), np.full(100, least)) for least in (8, MAX_EXACT + 1)]
    rows[1]["d"] = 4
    summary = storage.plain(study.summarise(pd.concat(rows)))
    assert summary["C"] == {"unit": None}
    assert summary["lines"] == {"unit": None}
    assert summary["cells"]["unit"][1]["n_prime_suffices"] is None


@pytest.mark.parametrize("target", study.TARGETS)
def test_the_constant_of_the_theory_suffices_where_it_is_tightest(target):
    """With trials other than those that it was measured by."""
    cell, constant = study.Cell(2, 0.3, target), theory.MEASURED_CONSTANT[target]
    rows = study.rows_of(cell, study.least_of_trials(cell, 8000, seed=1)).set_index("n_prime")
    enough = theory.lemma7_hidden(2, 2, 0.3, constant) // 2
    too_few = theory.lemma7_hidden(2, 2, 0.3, 0.8 * constant) // 2
    assert rows["verdict"][enough] != "fails"
    assert rows["success"][enough] >= 1 - cell.epsilon
    assert rows["verdict"][too_few] == "fails"


# ---------------------------------------------------------------- config, run and figure


def test_trials_are_fixed_by_the_config():
    found = constant.Config(d=2, epsilon=0.03, target="unit", effort=8000).study()
    assert found.cells == [study.Cell(2, 0.03, "unit")]
    assert found.trials(found.cells[0]) == math.ceil(8000 / 0.06)


@one_case
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("d", value) for value in (0, 65, 2.0, [], [2, 2], "two")),
        *(("epsilon", value) for value in (0.0, 1.0, 1.5, -0.1, math.nan, True, [], [0.1, 0.1], "small", None)),
        *(("target", value) for value in ("foo", [], ["unit", "unit"], 1, None, ["unit", ["uniform"]])),
        *(("effort", value) for value in (0, 1.5, 10**7)),
        ("seed", -1),
    ],
)
def test_bad_config_is_named(key, value):
    with pytest.raises(lab.BadConfig) as caught:
        constant.Config.of({key: value})
    assert caught.value.key == key


def test_a_run_leaves_table_summary_and_figure(tmp_path):
    done = launched("constant", tmp_path, "with", "smoke", "d=2", "effort=40")
    assert done.returncode == 0, done.stderr
    results, summary, config = lab.load_run(tmp_path / "runs" / "1")
    assert set(results.columns) >= {*COLUMNS, "target", "success_low", "success_high", "decided"}
    assert results["success"].between(results["success_low"], results["success_high"]).all()
    assert config["effort"] == 40
    assert summary["seconds"] > 0
    assert set(summary["C"]) == set(study.TARGETS)
    assert (tmp_path / "runs" / "1" / "constant.png").stat().st_size < 100_000


def test_bad_value_ends_the_run_before_it_starts(tmp_path):
    done = launched("constant", tmp_path, "with", "epsilon=2")
    assert done.returncode == 1
    assert done.stderr == "epsilon=2: must be a finite number >= 0.001 and <= 0.999\n"
    assert not (tmp_path / "runs").exists()


def table_of(**least):
    """For each kind of target two widths, all of whose trials need the same n'."""
    cells = [(study.Cell(d, 0.1, kind), n + d) for kind, n in least.items() for d in (2, 4)]
    return pd.concat([study.rows_of(cell, np.full(1000, needed)) for cell, needed in cells], ignore_index=True)


def test_the_figure_shows_where_it_fails_and_suffices():
    panels = plots.constant(table_of(uniform=10, unit=20))
    said = legend_of(plots.figure_of(panels))
    assert [axes.get_title() for axes in panels] == list(plots.TARGETS.values())
    for axes, n in zip(panels, (10, 20), strict=True):
        points = {(round(x, 9), y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
        for d in (2, 4):
            log = round(math.log(d * d / 0.1), 9)
            assert {(log, n + d), (log, n + d - 1)} <= points
        name = axes.get_title().removeprefix("target entries ")
        (text,) = [text for text in said if text.startswith(f"{name}: $n'")]
        assert f"{max((n + 2) / math.log(40), (n + 4) / math.log(160)):.2f}" in text
        assert axes.get_ylim()[1] > 24
    assert {*said} >= {"$d$ = 2", "$d$ = 4"}


def test_the_figure_of_a_table_without_an_answer():
    table = table_of(unit=MAX_EXACT)
    assert not (table["verdict"] == "suffices").any()
    assert len(plots.constant(table)) == 1
    assert "constant" in plots.figures(table)


@one_case
@pytest.mark.parametrize("column", sorted(plots.CONSTANT_COLUMNS))
def test_the_figure_names_a_missing_column(column):
    with pytest.raises(ValueError, match=f"lacks the columns {column};"):
        plots.constant(table_of(unit=10).drop(columns=column))
