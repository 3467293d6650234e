"""The scale of query and key: what is measured, when it is said to help, what is drawn, what is refused."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
from figure_tables import ends_of, legend_of
from helpers import cats
from hypothesis import given
from hypothesis import strategies as st
from sacred.observers import FileStorageObserver
from scipy import stats
from tables import one_case

from slth import plots
from slth.experiments import lab, qk_scale
from slth.experiments.lab import storage
from slth.experiments.studies.gpt2 import scales
from slth.experiments.studies.gpt2 import training as pruning
from slth.models import gpt2

pytestmark = [pytest.mark.xdist_group("qk_scale"), pytest.mark.usefixtures("blank_figures")]  # one stored run

TEXT = cats(150)
SMALL = {"size": "tiny*0.25", "length": 16, "steps": 8, "batch": 4, "windows": 8, "qk_scale": [5, 1, "theory"]}
SMALL |= {"base_std": [0.1, 0.02], "seeds": 2}
THEORY = math.sqrt(6)  # the fourth root of a head's width, 36
COLUMNS = {"base_std", "qk_scale", "seed", "val_loss", "logit_std_at_init"}  # others rely on these


@pytest.fixture(scope="module")
def config(text):
    """The default config made small, with changes."""
    return lambda **changed: qk_scale.Config.defaults() | SMALL | {"data": str(text)} | changed


@pytest.fixture(scope="module")
def stored(tmp_path_factory, config):
    """A run with dense training beside: (measurements, summary, its folder)."""
    folder = tmp_path_factory.mktemp("stored")
    qk_scale.ex.observers[:] = [FileStorageObserver(folder)]
    try:
        qk_scale.ex.run(config_updates=config(dense=True))
    finally:
        qk_scale.ex.observers[:] = []
    results, summary, _ = lab.load_run(folder / "1")
    return results, summary, folder / "1"


# ---------------------------------------------------------------- a run


def test_figure_8_for_a_gpu_runs_through_on_the_cpu(config):
    named = qk_scale.ex.named_configs["gpu_figure8"]()
    small = {key: SMALL[key] for key in ("size", "length", "batch", "windows")} | {"seeds": 1, "steps": 2}
    given = config() | named | small | {"data": config()["data"], "precision": "bf16", "accumulate": 2}
    table = scales.measure(qk_scale.Config(**given).study)
    assert len(table) == 2 * 4
    assert table["val_loss"].between(0.0, 7.0).all()


def test_files_and_rows(stored):
    results, summary, folder = stored
    assert {"results.csv", "summary.json", "loss_vs_qk_scale.png", "loss_vs_qk_scale.svg"} <= {
        path.name for path in folder.iterdir()
    }
    assert set(results.columns) >= COLUMNS
    points = results[["run", "base_std", "qk_scale", "seed"]].itertuples(index=False, name=None)
    scales, stds = (1.0, THEORY, 5.0), (0.02, 0.1)
    wanted = [(r, b, q, s) for r in ("ticket", "dense") for b in stds for q in scales for s in (0, 1)]
    assert list(points) == wanted
    assert results.notna().all(axis=None)
    assert dict(results.groupby("run")["keep"].first()) == {"ticket": 0.5, "dense": 1.0}
    assert set(results["theory_scale"]) == {THEORY} == {summary["theory_scale"]}
    assert "loss_vs_qk_scale" in plots.figures(results)


def test_the_summary_is_what_was_measured(stored):
    results, summary, _ = stored
    for run, key in (("ticket", "by_base_std"), ("dense", "dense_by_base_std")):
        for found in summary[key]:
            rows = results[(results["run"] == run) & (results["base_std"] == found["base_std"])]
            losses = rows.pivot(index="seed", columns="qk_scale", values="val_loss")
            assert found["val_loss_at_1"] == pytest.approx(losses[1.0].mean())
            assert found["val_loss_at_theory"] == pytest.approx(losses[THEORY].mean())
            assert found["val_loss_at_best"] == pytest.approx(losses.mean().min())
            assert losses[found["best_scale"]].mean() == losses.mean().min()
            assert found["differences"] == (losses[THEORY] - losses[1.0]).tolist()
            of_theory = rows[rows["qk_scale"] == THEORY]["logit_std_at_init"]
            assert found["logit_std_at_init_at_theory"] == pytest.approx(of_theory.mean())
    assert [found["base_std"] for found in summary["by_base_std"]] == [0.02, 0.1]
    assert len(summary["verdicts"]) == 2
    assert summary["seeds"] == [0, 1]


def test_a_row_is_one_training(stored, config):
    results, _, _ = stored
    study = qk_scale.Config(**config(seed=1, seeds=1)).study
    source = pruning.Source(study.model, "gpt2", 0.15, 0.02, "theory", 1)
    for run, search in (("ticket", study.search), ("dense", None)):
        trained = pruning.trained(source, search, study.data, study.how, (0.03, 0.1), 8, "one")
        at = (results["run"] == run) & (results["base_std"] == 0.1) & (results["seed"] == 1)
        (row,) = results[at & (results["qk_scale"] == THEORY)].itertuples()
        assert row.val_loss == trained.val_loss
        assert row.logit_std_at_init == trained.logit_std


def test_logits_grow_with_the_square_of_scale_and_std(stored):
    results, _, _ = stored
    logits = results[results["run"] == "ticket"].groupby(["base_std", "qk_scale"])["logit_std_at_init"].mean()
    assert logits[0.02, THEORY] / logits[0.02, 1.0] == pytest.approx(6.0, rel=0.05)
    assert logits[0.02, 5.0] / logits[0.02, 1.0] == pytest.approx(25.0, rel=0.05)
    assert logits[0.1, 1.0] / logits[0.02, 1.0] == pytest.approx(25.0, rel=0.2)  # blocks add more to what they read


def test_every_point_takes_its_best_rate(config, monkeypatch):
    asked = []

    def best_of(source, search, data, how, grid, label, pilot_steps):
        asked.append((grid, pilot_steps, how.seed, search.seed, source.seed, label))
        fit = pruning.Fit([{"step": 8, "val_loss": 2.0}])
        return pruning.Trained(None, fit, *grid[-1], logit_std=0.1), []

    monkeypatch.setattr(scales, "best_of", best_of)
    table = scales.measure(qk_scale.Config(**config(lr=[0.01, 0.02], pilot_steps=3, seed=7)).study)
    assert {str(grid) for grid, *_ in asked} == {str([(0.01, b), (0.02, b)]) for b in (0.1, 0.02)}
    assert {seeds for _, _, *seeds, _ in asked if len(set(seeds)) > 1} == set()
    assert {rest[1] for _, *rest in asked} == {7, 8}
    assert {pilot_steps for _, pilot_steps, *_ in asked} == {3}
    assert len({label for *_, label in asked}) == len(asked) == 12  # the names of checkpoints
    assert set(table["lr"]) == {0.02}


def test_a_training_that_diverges_is_a_row(config):
    study = qk_scale.Config(**config(lr=1e30, seeds=2, base_std=0.1, qk_scale=[1, "theory"], dense=True)).study
    table = scales.measure(study)
    assert ((table["val_loss"] == math.inf) == (table["run"] == "dense")).all()  # masks know no size of a step
    logits = table.groupby("run")["logit_std_at_init"]
    assert logits.get_group("dense").tolist() == logits.get_group("ticket").tolist()
    summary = storage.plain(scales.summarise(study, table))
    assert summary["dense_by_base_std"][0]["verdict"] == "cannot tell"
    plots.loss_against_qk_scale(table)


# ---------------------------------------------------------------- what is said

differences = st.lists(st.floats(-1, 1), min_size=1, max_size=6)


@given(differences)
def test_the_verdict_is_that_of_a_paired_test(values):
    found = scales.compared(pd.Series(values))
    assert found["difference"] == pytest.approx(np.mean(values), abs=1e-15)
    assert found["verdict"] in ("helps", "harms", "cannot tell")
    if len(values) == 1:
        assert found["verdict"] == "cannot tell"
    elif np.ptp(values) > 1e-6:
        interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert found["difference_low"] == pytest.approx(interval.low)
        assert found["difference_high"] == pytest.approx(interval.high)
        decided = "helps" if interval.high < 0 else "harms" if interval.low > 0 else "cannot tell"
        if min(abs(interval.low), abs(interval.high)) > 1e-9:
            assert found["verdict"] == decided


@one_case
@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-0.1, -0.11, -0.09], "helps"),
        ([0.2, 0.21, 0.19], "harms"),
        ([0.2, -0.21, 0.19], "cannot tell"),
        ([-0.1, -0.11], "helps"),
        ([-0.1, -0.15], "cannot tell"),  # of two seeds, too far apart for what their mean is
        ([-0.5], "cannot tell"),
        ([0.0, 0.0, 0.0], "cannot tell"),
        ([math.nan, math.nan], "cannot tell"),
    ],
)
def test_verdicts(values, verdict):
    assert scales.compared(pd.Series(values))["verdict"] == verdict


def make_table(scales=(1.0, 2.0, THEORY, 5.0), seeds=3, runs=("ticket",), factor=-1.0):
    """Losses that fall with the scale at base std 0.02 and rise at 0.1, a constant apart by seed."""
    index = pd.MultiIndex.from_product(
        [runs, (0.02, 0.1), scales, range(seeds)], names=["run", "base_std", "qk_scale", "seed"]
    )
    table = index.to_frame(index=False)
    logits = (table["qk_scale"] * table["base_std"] * 10) ** 2
    rising = np.where(table["base_std"] == 0.1, 1.0, factor) * 0.1 * table["qk_scale"]
    loss = 2.0 + rising + 0.3 * table["seed"] + 0.001 * table["seed"] * table["qk_scale"]
    return table.assign(val_loss=loss, logit_std_at_init=logits, theory_scale=THEORY)


def test_the_findings_of_a_table():
    low, high = scales.findings(make_table(), THEORY)
    assert (low["verdict"], high["verdict"]) == ("helps", "harms")  # though seeds are further apart than scales
    assert (low["best_scale"], high["best_scale"]) == (5.0, 1.0)
    assert low["difference"] == pytest.approx(-0.099 * (THEORY - 1))
    assert high["logit_std_at_init_at_1"] == pytest.approx(1.0)
    words = [scales.in_words(found, THEORY) for found in (low, high)]
    assert words[0].startswith("base std 0.02: the scale n^(1/4) = 2.45 helps: -0.143 nat (-0.1")
    assert "3 seeds" in words[0]
    assert words[1].startswith("base std 0.1: the scale n^(1/4) = 2.45 harms: +0.1")


def test_one_seed_is_said_to_be_one():
    found = scales.findings(make_table(seeds=1), THEORY)[0]
    words = scales.in_words(found, THEORY)
    assert "cannot be told from 1" in words
    assert "one seed, which has no spread" in words


@pytest.mark.parametrize("measured", [(1.0, 2.0), (THEORY, 2.0), (2.0,)])
def test_without_both_scales_nothing_is_compared(measured):
    found = scales.findings(make_table(measured), THEORY)[0]
    assert found["best_scale"] == max(measured)
    assert "difference" not in found
    assert "helps" not in scales.in_words(found, THEORY)
    storage.plain(found)


# ---------------------------------------------------------------- the config


def test_theory_is_the_fourth_root_of_a_heads_width(config):
    assert scales.theory_of(gpt2.config("small")) == pytest.approx(64**0.25)
    assert qk_scale.Config(**config()).study.qk_scales == [1.0, THEORY, 5.0]


@one_case
@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"qk_scale": []}, "qk_scale"),
        ({"qk_scale": [1, 1.0]}, "qk_scale"),
        ({"qk_scale": ["theory", THEORY]}, "qk_scale"),
        ({"qk_scale": -1}, "qk_scale"),
        ({"base_std": 0}, "base_std"),
        ({"base_std": [0.1, 0.1]}, "base_std"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": 2, "seed": 2**32 - 1}, "seeds"),
        ({"seeds": [0, 1]}, "seeds"),
        ({"seed": -1}, "seed"),
        ({"dense": "yes"}, "dense"),
        ({"lr": []}, "lr"),
        ({"steps": 0}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"pilot_steps": 0}, "pilot_steps"),
        ({"pilot_steps": 7, "lr": 0.01}, "pilot_steps"),
        ({"keep": 0}, "keep"),
        ({"init": "foo"}, "init"),
        ({"embedding_std": 0}, "embedding_std"),
        ({"size": ["tiny", "mini"]}, "size"),
        ({"size": "tiny*0.3"}, "size"),
        ({"data": "missing"}, "data"),
        ({"length": 10_000}, "length"),
        ({"checkpoints": 1}, "checkpoints"),
    ],
)
def test_a_bad_value_is_named(config, changed, key):
    with pytest.raises(lab.BadConfig) as caught:
        qk_scale.Config(**config(**changed))
    assert caught.value.key == key


def test_what_cannot_be_run_leaves_nothing(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(qk_scale.ex, "config_hooks", [*qk_scale.ex.config_hooks])
    monkeypatch.setattr(qk_scale.ex, "observers", [])
    monkeypatch.setattr(sys, "argv", ["qk_scale.py", "with", f"data={text}", "keep=0", f"checkpoints={tmp_path / 'c'}"])
    with pytest.raises(SystemExit) as stopped:
        lab.launch(qk_scale.ex)
    assert stopped.value.code == "keep=0: must be a finite number > 0.0 and <= 1.0"
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [None, *qk_scale.ex.named_configs])
def test_the_configs_can_be_run(name, tmp_path):
    (tmp_path / "long.txt").write_text(3 * TEXT)
    changed = qk_scale.ex.named_configs[name]() if name else {}
    given = qk_scale.Config.defaults() | changed | {"data": str(tmp_path / "long.txt"), "vocabulary": "bytes"}
    qk_scale.Config(**given)


def test_checkpoints_are_kept_by_point(tmp_path, config, monkeypatch):
    given = config(checkpoints=str(tmp_path / "kept"), seeds=1, base_std=0.1, qk_scale=[1, 5], dense=True)
    tables = []
    for _ in range(2):
        made = qk_scale.Config(**given)
        made.resumable.begin()
        tables.append(scales.measure(made.study))
        monkeypatch.setattr(pruning.texts, "batch", lambda *_, **__: pytest.fail("a step was done again"))
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert len(list((tmp_path / "kept").glob("*.checkpoint"))) == 4


# ---------------------------------------------------------------- the figure


def test_both_panels_show_means_over_seeds():
    table = make_table(runs=("ticket", "dense"))
    left, right = plots.loss_against_qk_scale(table)
    rows = table[(table["run"] == "ticket") & (table["base_std"] == 0.02)].groupby("qk_scale")
    losses = rows["val_loss"].mean()
    for axes, x, wanted in (
        (left, losses.index, losses),
        (right, rows["logit_std_at_init"].mean(), losses - losses.min()),
    ):
        assert any(
            np.allclose(line.get_xdata(), x) and np.allclose(line.get_ydata(), wanted)
            for line in axes.get_lines()
            if len(line.get_xdata()) == 4
        )
        points = np.concatenate([np.asarray(dots.get_offsets()) for dots in axes.collections])
        assert len(points) == len(table)
        rings = [line.get_xydata() for line in axes.get_lines() if line.get_markersize() > 10]
        assert any(np.allclose(ring, [[pd.Series(x, losses.index)[THEORY], wanted[THEORY]]]) for ring in rings)
    assert right.get_xscale() == "log"
    assert any(np.allclose(line.get_xdata(), THEORY) for line in left.get_lines())


def test_what_is_drawn_is_named():
    for axes in plots.loss_against_qk_scale(make_table()):
        said = [text.replace("\n", " ") for text in ends_of(axes)]
        assert said == [f"base std of the weights {std}" for std in (0.02, 0.1)]
        assert legend_of(plots.figure_of(axes)) == ["scale $n^{1/4}$", "single seeds"]
    both = plots.figure_of(plots.loss_against_qk_scale(make_table(runs=("ticket", "dense"))))
    assert legend_of(both) == ["scale $n^{1/4}$", "single seeds", "ticket", "dense training"]


@one_case
@pytest.mark.parametrize("column", sorted(plots.QK_SCALE_COLUMNS))
def test_the_figure_names_a_missing_column(column):
    with pytest.raises(ValueError, match=f"lacks the columns {column};"):
        plots.loss_against_qk_scale(make_table().drop(columns=column))
