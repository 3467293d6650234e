"""The speed experiment: that its clock is fair, its table whole, its errors true; never how fast anything is."""

import ast
import json

import numpy as np
import pandas as pd
import pytest
from command_lines import launched
from figure_tables import ends_of, lines_of
from helpers import EXPERIMENTS
from tables import one_case

from slth import plots
from slth.experiments import lab, speed
from slth.experiments.lab import storage
from slth.experiments.studies.speed import (
    linear_attention,
    peers,
    selection,
    tables,
    training_step,
)
from slth.kernels import timing

pytestmark = pytest.mark.usefixtures("blank_figures")

COLUMNS = ["what", "size", "ours_s", "peer", "peer_s", "ratio", "error_ours", "error_peer"]  # others rely on these
CONFIG = {
    "what": ["subset_sums", "attention_routes", "selection"],
    "candidates": [4, 6],
    "batch": 10,
    "time_limit": 20.0,
    "routes": [[2, 8, 5, 2]],
    "scores": [500, 700],
    "blocks": [[1, 64, 1, 8]],
    "lengths": [9, 5],
    "width": 4,
    "block": 2,
    "rounds": 3,
    "threads": 1,
    "seed": 0,
}


# ---------------------------------------------------------------- the clock


class Clock:
    """A time that only passes where a test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def call(self, log, name, seconds):
        """A call that takes these seconds, one after the other."""
        left = iter(seconds)

        def run(turn):
            log.append(name)
            self.now += next(left)
            return f"{name}{turn}"

        return run


def test_rivals_take_turns_and_warming_up_does_not_count(monkeypatch):
    log: list[str] = []
    clock = Clock(monkeypatch)
    calls = {"a": clock.call(log, "a", [100, 1, 2, 9]), "b": clock.call(log, "b", [100, 5, 4, 6])}
    timed = timing.interleave(calls, rounds=3, warmups=1)
    assert "".join(log) == "baabbaab"
    assert timed["a"] == timing.Timing([1, 2, 9], ["a0", "a1", "a2"])
    assert timed["b"] == timing.Timing([5, 4, 6], ["b0", "b1", "b2"])


def test_what_comes_before_a_call_is_not_timed(monkeypatch):
    log: list[str] = []
    clock = Clock(monkeypatch)
    calls = {"a": clock.call(log, "a", [100, 1, 2]), "b": clock.call(log, "b", [100, 5, 4])}
    prepare = clock.call(log, "-", [1000] * 6)
    timed = timing.interleave(calls, rounds=2, before=lambda turn: log.append(f"{turn}") or prepare(turn))
    assert "".join(log) == "-1-b-1-a0-a0-b1-b1-a"
    assert [timed[name].seconds for name in "ab"] == [[1, 2], [5, 4]]


def test_a_row_compares_medians_and_keeps_the_range():
    ours, theirs = timing.Timing([2.0, 1.0, 9.0], []), timing.Timing([40.0, 10.0, 30.0], [])
    row = timing.compare("thing", "n=1", ours.per(4), "peer", theirs, 0.5, 0.25)
    assert list(row)[:8] == COLUMNS
    assert list(row.values()) == ["thing", "n=1", 0.5, "peer", 30.0, 60.0, 0.5, 0.25, 0.25, 2.25, 10.0, 40.0]


# ---------------------------------------------------------------- the experiment


def test_benchmarks_do_without_sacred():
    paths = list((EXPERIMENTS / "studies" / "speed").rglob("*.py"))
    assert len(paths) > 5
    for path in paths:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names if name.startswith(("sacred", "slth.experiments.lab"))}, path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    words = [
        "candidates=[4,6]",
        "batch=10",
        "routes=[[2,8,5,2]]",
        "scores=500",
        "blocks=[[1,64,1,8]]",
        "lengths=[5,9]",
        "width=4",
        "block=2",
        "rounds=2",
        "threads=1",
    ]
    done = launched("speed", folder, "with", *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return lab.load_run(folder / "runs" / "1"), {path.name for path in (folder / "runs" / "1").iterdir()}


def test_a_run_leaves_its_table_summary_and_figure(run):
    (table, summary, _), files = run
    assert list(table.columns[:8]) == COLUMNS
    once = {"direct", *selection.PEERS, "dense", *training_step.SELECTIONS}
    assert set(table["peer"]) == {*peers.installed(), *once, linear_attention.PEER}
    assert len(table) == 2 * len(peers.installed()) + len(once) + 2
    np.testing.assert_array_equal(table["ratio"], table["peer_s"] / table["ours_s"])
    assert (table["worse"].dropna() == 0).all()
    assert {"speed.png", "speed.svg"} <= files
    assert summary["problems_per_second_n20"] is None
    assert summary["peers"] == peers.installed()
    assert summary["threads"] == 1
    assert [route["size"] for route in summary["routes"]] == ["d=2 n=8 T=5 H=2"]
    assert summary["reads_7m"] is None
    linear = table[table["what"] == "linear_attention"].set_index("size")
    assert list(linear.index) == ["T=5", "T=9"]
    assert summary["growth"] == linear.loc["T=9", "growth"] == linear.loc["T=9", "ours_s"] / linear.loc["T=5", "ours_s"]
    assert summary["ratio_softmax"] == linear.loc["T=9", "ratio"]
    assert summary["linear_attention"][0] == {"size": "T=5", "ratio": linear.loc["T=5", "ratio"], "growth": None}


def fake_table(*sizes):
    """A table as it stands after a run: subset sums of these sizes against two peers, and two routes."""
    rows = []
    for n in sizes:
        for peer, seconds in (("scipy.milp", 1e-3), ("ortools.cp_sat", 1e-4)):
            ours, theirs = timing.Timing([1e-8 * n, 2e-8 * n, 3e-8 * n], []), timing.Timing([seconds * n], [])
            row = timing.compare("subset_sum", f"n={n}", ours, peer, theirs, 1e-6, 1e-6)
            rows.append(row | {"worse": 0, "candidates": n, "batch": 100})
    for size, ideal, seconds in (("d=2 n=8 T=5 H=1", 4.0, 3.0), ("d=2 n=2 T=5 H=1", 1.0, 0.9)):
        one = timing.Timing([1.0], [])
        row = timing.compare("attention_route", size, one, "direct", timing.Timing([seconds], []), 0.0, 0.0)
        rows.append(row | {"ideal": ideal})
    return tables.table_of(rows)


def test_the_summary_quotes_the_table():
    summary = tables.summarise(fake_table(10, 20))
    assert summary["problems_per_second_n20"] == pytest.approx(1 / (2e-8 * 20))
    assert summary["ratio_milp_n20"] == pytest.approx(1e-3 / 2e-8)
    assert summary["worse"] == 0
    assert summary["spread"] == pytest.approx(1.0)
    assert [route["share"] for route in summary["routes"]] == pytest.approx([3 / 4, 0.9])
    assert json.loads(json.dumps(storage.plain(summary))) == storage.plain(summary)


def fake_selections(*sizes):
    """Selections that take 2 s, where a sort takes 400 s, kthvalue 80 s and a read 1 s."""
    times = {"torch.sort": 400.0, "torch.kthvalue": 80.0, "one read": 1.0}
    rows = [
        timing.compare("selection", f"n={n:,}", timing.Timing([2.0], []), peer, timing.Timing([s], []), 0.0, 0.0)
        | {"scores": n, "rounds": 1}
        for n in sizes
        for peer, s in times.items()
    ]
    return tables.table_of(rows)


def test_the_summary_quotes_selection_at_7_million():
    summary = tables.summarise(fake_selections(5000, 7_077_888))
    assert (summary["ratio_sort_7m"], summary["ratio_kthvalue_7m"], summary["reads_7m"]) == (200.0, 40.0, 2.0)
    summary = tables.summarise(fake_selections(5000))
    assert (summary["ratio_sort_7m"], summary["ratio_kthvalue_7m"], summary["reads_7m"]) == (None, None, None)


def test_a_summary_says_none_of_what_was_not_measured():
    table = fake_table(10)
    routes = tables.summarise(table[table["what"] == "attention_route"].drop(columns=["worse", "candidates"]))
    assert (routes["problems_per_second_n20"], routes["ratio_milp_n20"], routes["worse"]) == (None, None, None)
    assert (routes["growth"], routes["ratio_softmax"], routes["linear_attention"]) == (None, None, [])
    assert tables.summarise(table[table["what"] == "subset_sum"].drop(columns="ideal"))["routes"] == []


def test_counts_stay_whole_numbers_beside_rows_that_have_none():
    lines = fake_table(10).to_csv(index=False).splitlines()
    assert lines[1].endswith(",0,10,100,")
    assert lines[-1].endswith(",,,,1.0")


@one_case
@pytest.mark.parametrize(
    "wrong",
    [
        {"what": []},
        {"what": "foo"},
        {"what": [["subset_sums"]]},
        {"what": ["subset_sums", "subset_sums"]},
        {"candidates": []},
        {"candidates": 41},
        {"batch": 0},
        {"time_limit": 0},
        {"scores": []},
        {"scores": 1},
        {"routes": []},
        {"routes": 5},
        {"routes": "abcd"},
        {"routes": [[2, 8, 5]]},
        {"blocks": [[1, 60, 1, 8]]},
        {"blocks": [[1, 64, 1]]},
        {"routes": [[2, 8, 0, 2]]},
        {"lengths": []},
        {"lengths": [0]},
        {"width": 0},
        {"block": 1.5},
        {"rounds": 0},
        {"threads": 0},
        {"seed": -1},
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_name(wrong):
    (key,) = wrong
    with pytest.raises(lab.BadConfig, match=f"^{key}="):
        speed.Config(**CONFIG | wrong)


def test_what_names_the_cases():
    assert len(speed.Config(**CONFIG).cases) == 5
    assert [case.args for case in speed.Config(**CONFIG | {"what": "selection"}).cases] == [(500,), (700,)]
    assert len(speed.Config(**CONFIG | {"what": "attention_routes"}).cases) == 1
    (case,) = speed.Config(**CONFIG | {"what": "subset_sums", "candidates": 5}).cases
    assert case.args == (5,)
    (case,) = speed.Config(**CONFIG | {"what": "linear_attention"}).cases  # all lengths by turns
    assert (case.args, case.keywords) == (([5, 9],), {"d": 4, "block": 2, "rounds": 1, "seed": 0})


# ---------------------------------------------------------------- the figure


@pytest.mark.parametrize("stored", [False, True])
def test_the_figure_shows_times_ratios_and_ideals(stored, tmp_path):
    table = fake_table(10, 16, 20)
    if stored:
        table.to_csv(tmp_path / "results.csv", index=False)
        table = pd.read_csv(tmp_path / "results.csv")
    assert list(plots.figures(table)) == ["speed"]
    times, ratios = plots.speed(table)
    assert [" ".join(name.split()) for name in ends_of(times)] == [
        "ours",
        "scipy.milp: 50,000×",
        "ortools.cp_sat: 5,000×",
    ]
    assert list(lines_of(times)[1].get_ydata()) == pytest.approx([1e-2, 1.6e-2, 2e-2])
    assert [bar.get_x() + bar.get_width() for bar in ratios.patches] == pytest.approx([3.0, 0.9])
    assert [line.get_xdata()[0] for line in ratios.lines[:2]] == pytest.approx([4.0, 1.0])
    ticks = [tick.get_text() for tick in ratios.get_yticklabels()]
    assert ticks == ["d=2 n=8 T=5 H=1\n3× as fast as direct", "d=2 n=2 T=5 H=1\n0.9× as fast as direct"]


def test_one_area_alone_is_drawn():
    table = fake_table(10)
    for what, rows in table.groupby("what"):
        panels = plots.speed(rows.dropna(axis="columns"))
        assert [axes.get_title() for axes in panels] == [what.replace("_", " ")]


def test_linear_attention_is_drawn_as_ratios():
    (axes,) = plots.speed(tables.table_of(linear_attention.rows([5, 9], d=4, block=2, rounds=1, seed=0)))
    assert axes.get_title() == "linear attention"
    assert [tick.get_text().partition("\n")[0] for tick in axes.get_yticklabels()] == ["T=5", "T=9"]
    assert all(tick.get_text().endswith("as fast as softmax") for tick in axes.get_yticklabels())


@pytest.mark.parametrize("sizes", [(5000,), (7_077_888, 5000, 500_000)])
def test_selections_are_drawn_against_scores(sizes):
    (axes,) = plots.speed(fake_selections(*sizes))
    labels = [" ".join(name.split()) for name in ends_of(axes)]
    assert labels == ["ours", "torch.sort: 200×", "torch.kthvalue: 40×", "one read: 0.5×"]
    assert [line.get_ydata()[0] for line in lines_of(axes)] == pytest.approx([2.0, 400.0, 80.0, 1.0])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [f"{n / 1e6:.3g}M" for n in sorted(sizes)]


def test_a_table_without_times_is_refused():
    with pytest.raises(ValueError, match="lacks the columns ours_s, peer_s;"):
        plots.speed(fake_table(10).drop(columns=["ours_s", "peer_s"]))
    with pytest.raises(ValueError, match="no rows"):
        plots.speed(fake_table(10).iloc[:0])
