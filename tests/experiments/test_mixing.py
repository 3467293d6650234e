"""Attentions side by side: what is measured, cut runs, refusals."""

import itertools
import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import cats
from sacred.observers import FileStorageObserver
from small_mixing import config_of
from tables import one_case

import slth
from slth import plots
from slth.attention import ATTENTIONS
from slth.experiments import lab, mixing
from slth.experiments.lab import storage
from slth.experiments.studies.approximation import learning
from slth.experiments.studies.gpt2 import training as pruning
from slth.experiments.studies.mixing import jobs
from slth.experiments.studies.mixing import losses as ticket_losses
from slth.experiments.studies.mixing.errors import examples, learn, measure_error, target_of
from slth.experiments.studies.mixing.losses import measure_ticket
from slth.experiments.studies.mixing.study import Job
from slth.experiments.studies.mixing.tables import summarise, table_of
from slth.models import gpt2
from slth.models.gpt2_attention import with_attention

pytestmark = [pytest.mark.xdist_group("mixing"), pytest.mark.usefixtures("blank_figures")]  # one stored run

TEXT = cats(400)
COLUMNS = ["variant", "keep", "hidden", "length", "seed", "error", "val_loss", "val_loss_dense", "parameters"]
COLUMNS += ["seconds_per_step"]  # others rely on these
TIMES = ["seconds_per_step", "seconds_per_step_dense"]


@pytest.fixture(scope="module")
def config(text):
    return config_of(text)


@pytest.fixture(scope="module")
def study(config):
    return mixing.Config(**config()).study


@pytest.fixture(scope="module")
def found():
    """What came of each job of the stored run, which fills it."""
    return {}


@pytest.fixture(scope="module")
def stored(tmp_path_factory, config, found):
    """A run: (measurements, summary, its folder)."""
    folder = tmp_path_factory.mktemp("stored")

    def noted(measure):
        return lambda study, job: found.setdefault(job, measure(study, job))

    mixing.ex.observers[:] = [FileStorageObserver(folder)]
    try:
        with patch.dict(jobs.MEASURES, {what: noted(measure) for what, measure in jobs.MEASURES.items()}):
            mixing.ex.run(config_updates=config())
    finally:
        mixing.ex.observers[:] = []
    results, summary, _ = lab.load_run(folder / "1")
    return results, summary, folder / "1"


def measured(study):
    return table_of(study, jobs.measure(study))


# ---------------------------------------------------------------- a run


def test_files_and_rows(stored):
    results, summary, folder = stored
    figures = {"loss_vs_keep", "difference_to_mha", "error_vs_width_by_variant"}
    assert {f"{name}.png" for name in figures} <= {path.name for path in folder.iterdir()}
    assert plots.figures(results).keys() == figures
    assert set(COLUMNS) <= set(results.columns)
    variants, seeds = ["mha", "kha_linear", "mhla"], [0, 1]
    for what, wanted in (
        ("error", itertools.product(variants, [0.5], [8, 16], [8], seeds)),
        ("loss", itertools.product(variants, [0.3, 0.5], [9], [16], seeds)),
    ):
        rows = results[results["what"] == what]
        points = rows[["variant", "keep", "hidden", "length", "seed"]].itertuples(index=False, name=None)
        assert sorted(points) == sorted(wanted)
        measured = ["error"] if what == "error" else ["val_loss", "val_loss_dense", "seconds_per_step"]
        assert np.isfinite(rows[[*measured, "parameters"]]).all(axis=None)
    matrices = results[results["what"] == "matrix"].groupby(["where", "variant"])["rank"].count()
    assert matrices.unstack().loc[:, ["mha", "mhla", "linear"]].to_numpy().tolist() == [[2, 2, 2], [2, 2, 2]]
    assert set(results.loc[results["what"] == "spikes", "variant"]) == set(variants)
    assert summary["variants"].keys() == set(variants)


def test_the_summary_is_what_was_measured(stored):
    results, summary, _ = stored
    losses = results[results["what"] == "loss"].pivot(index=["seed", "keep"], columns="variant", values="val_loss")
    for name, found in summary["variants"].items():
        differences = (losses[name] - losses["mha"]).groupby("seed").mean()
        assert found["differences"] == pytest.approx(differences.tolist())
        assert found["difference"] == pytest.approx(differences.mean())
        assert found["difference_low"] <= found["difference"] <= found["difference_high"]
        for keep, of_keep in found["by_keep"].items():
            one = (losses[name] - losses["mha"]).xs(float(keep), level="keep")
            assert of_keep["difference"] == pytest.approx(one.mean())
            rows = results[(results["variant"] == name) & (results["what"] == "loss")]
            rows = rows[rows["keep"] == float(keep)].set_index("seed")
            assert rows["difference"].tolist() == pytest.approx(one.tolist())
            assert set(rows["difference_low"]) == {of_keep["difference_low"]}
        assert found["verdict"] == "cannot tell"  # of two seeds
        comparisons = [found, found["dense"], found["gap_to_dense"], found["log2_error"], *found["by_keep"].values()]
        for one in comparisons:
            assert ("verdict_corrected" in one) is (name != "mha")
            assert name == "mha" or one["p"] <= one["p_corrected"]
    assert summary["variants"]["mha"]["differences"] == [0.0, 0.0]
    assert summary["conclusive"] is False
    below = summary["val_loss_bigram"] - losses["mha"].max()
    assert summary["mha_below_bigram"] == pytest.approx(below)
    assert "too short or too few" in summary["verdicts"][0]
    assert len(summary["verdicts"]) == 3
    assert all("; by keep: 0.3 " in line and ", 0.5 " in line for line in summary["verdicts"][1:])
    spikes = results[results["what"] == "spikes"].groupby("variant", sort=False)["spikes"].sum()
    assert [(one["variant"], one["spikes"]) for one in summary["spikes"]] == list(spikes.items())


def test_a_loss_is_that_of_a_plain_training(stored, config):
    results, _, _ = stored
    small = gpt2.config("tiny", width=0.25, vocabulary=256, length=16)
    small.n_head = 4
    stds = {"base_std": 0.07, "embedding_std": 0.15, "position_std": 0.12}
    model = gpt2.build(small, init="signed", seed=1, **stds)
    options = {"mixing_init": "identity_plus_random"}
    row = results[(results["what"] == "loss") & (results["variant"] == "kha_linear") & (results["seed"] == 1)]
    row = row[row["keep"] == 0.3].iloc[0]
    width = int(row["width"])
    with_attention(model, "kha_linear", init="signed", base_std=0.07, hidden=width, seed=1, options=options)
    assert sum(p.numel() for p in model.parameters()) == row["parameters"]
    slth.wrap(model, keep=0.3, seed=1)
    made = mixing.Config(**config())
    data, how = made.tokens, replace(made.training(every=3), seed=1)
    pruning.train(model, data, how, 0.01, 3, "plain")
    assert pruning.val_loss(model, data.validation) == row["val_loss"]


def test_an_error_is_that_of_a_plain_search(stored, study):
    results, _, _ = stored
    job = Job("error", "mhla", 1, hidden=8, length=8)
    row = results[(results["what"] == "error") & (results["variant"] == "mhla") & (results["seed"] == 1)]
    row = row[row["hidden"] == 8].iloc[0]
    assert measure_error(study, job)["error"] == row["error"]
    target = target_of(study, 1)
    options = {"length": 8, "block": 4, "mixing_init": "identity_plus_random"}
    source = ATTENTIONS["mhla"](8, 8, 4, int(row["width"]), init="kaiming_normal", seed=1, **options)
    assert sum(p.numel() for p in source.parameters()) == row["parameters"]
    training, validation, test = (
        examples(target, count, job, split) for count, split in ((1024, "training"), (64, "validation"), (128, "test"))
    )
    drawn = {name: weight.detach().clone() for name, weight in source.named_parameters()}
    learn(source, training, validation, study.learning, 1)
    for name, weight in source.named_parameters():  # a ticket: what is left is as it was drawn
        kept = weight != 0
        assert torch.equal(weight[kept], drawn[name][kept])
        assert int(kept.sum()) == math.floor(0.5 * weight.numel() + 0.5)
    with torch.no_grad():
        error = (source(test.inputs) - test.outputs).square().sum() / test.outputs.square().sum()
    assert float(error) == row["error"]


@torch.no_grad()
def test_the_best_masks_are_kept(study):
    target = target_of(study, 0)
    validation = examples(target, 8, Job("error", "mha", 0, hidden=8, length=8), "validation")
    model = slth.wrap(ATTENTIONS["mha"](8, 8, 4, 8, seed=1), keep=0.5, seed=0)
    best, looks = learning.Best(validation), []
    for keep in (0.2, 0.9, 0.5):
        for group in slth.handle(model).groups:
            group.set_keep(keep)
        found = best.look(model)["validation_error"]
        assert found == float(learning.relative_error(model, validation))
        looks.append((found, slth.handle(model).masks()))
    error, masks = min(looks, key=lambda look: look[0])
    assert best.error == error
    assert all((weight != 0).equal(masks[name]) for name, weight in best.weights.items())
    assert best.weights.keys() == masks.keys()


# ---------------------------------------------------------------- being cut


def assert_same(a, b):
    """Tables are equal but for the times that were taken; types may differ, as in a table from a file."""
    a, b = (table.drop(columns=TIMES) for table in (a, b))
    pd.testing.assert_frame_equal(a, b, check_dtype=False, check_exact=True)


def test_a_run_that_was_cut_goes_on(tmp_path, config, monkeypatch, stored, found):
    """Dense models are trained, with checkpoints on the way; all else comes of the stored run."""
    folder = tmp_path / "kept"
    given = config(checkpoints=str(folder))
    made = mixing.Config(**given)
    study = made.study
    made.resumable.begin()
    done, train = [], jobs.MEASURES["dense"]

    def measure(study, job):
        if len(done) == most:
            raise KeyboardInterrupt
        done.append(job)
        return (
            train(study, job) if job.what == "dense" else found[replace(job, keep={0.25: 0.3}.get(job.keep, job.keep))]
        )

    monkeypatch.setattr(jobs, "MEASURES", dict.fromkeys(jobs.MEASURES, measure))
    most = 10
    with pytest.raises(KeyboardInterrupt):
        measured(study)
    assert len(list(folder.glob("*.part"))) == 10 + 1  # and what the folder is of
    first, most = list(done), None
    done.clear()
    mixing.Config(**(given | {"processes": 2}))
    table = measured(study)
    assert not set(first) & set(done)
    assert set(first) | set(done) == set(study.jobs)
    assert not list(folder.glob("*.checkpoint"))
    whole, _, _ = stored
    assert_same(table, whole)
    with pytest.raises(lab.BadConfig) as caught:
        mixing.Config(**(given | {"steps": 4}))
    assert caught.value.key == "checkpoints"
    larger = given | {"variants": "kha_linear", "seeds": 1, "keep": [0.25, 0.3]}  # less of one thing, more of another
    done.clear()
    mixing.Config(**larger)
    measured(mixing.Config(**larger).study)
    assert [(job.what, job.variant, job.keep) for job in done] == [("ticket", v, 0.25) for v in ("mha", "kha_linear")]


@pytest.mark.slow
def test_processes_change_nothing(config, stored):
    whole, _, _ = stored
    table = measured(mixing.Config(**config(processes=2)).study)
    assert_same(table, whole)


def test_a_training_that_diverges_is_a_row(config):
    given = config(dense_lr=1e30, spike_lrs=1e30, errors=False, matrices=False, variants="mea", keep=0.5)
    study = mixing.Config(**given).study
    table = measured(study)
    losses = table[table["what"] == "loss"]
    assert (losses["val_loss_dense"] == math.inf).all()
    assert np.isfinite(losses["val_loss"]).all()  # masks know no size of a step
    assert table.loc[table["what"] == "spikes", "diverged"].all()
    summary = storage.plain(summarise(study, table))
    assert summary["variants"]["mea"]["dense"]["verdict"] == "cannot tell"
    for figure in plots.figures(table, summary).values():
        figure.draw_without_rendering()


def test_the_best_rate_is_taken(config, monkeypatch):
    study = mixing.Config(**config(lr=[0.1, 0.2, 0.3], pilot_steps=2)).study
    asked = []

    def train(model, data, how, lr, steps, label, method):
        asked.append((lr, steps, how.seed, label))
        return pruning.Fit([{"step": steps, "val_loss": abs(lr - 0.2)}], seconds=1.0)

    monkeypatch.setattr(ticket_losses, "train", train)
    found = measure_ticket(study, Job("ticket", "mha", 1, keep=0.5))
    assert found["lr"] == 0.2
    assert [call[:3] for call in asked] == [(0.1, 2, 1), (0.2, 2, 1), (0.3, 2, 1), (0.2, 3, 1)]
    assert len({label for *_, label in asked}) == 4  # the names of checkpoints


# ---------------------------------------------------------------- the config


@one_case
@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"variants": "foo"}, "variants"),
        ({"variants": ["mea", "foo"]}, "variants"),
        ({"variants": 3}, "variants"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"heads": 10}, "heads"),
        ({"heads": 36, "kv_heads": 1}, "heads"),
        ({"equal": "time"}, "equal"),
        ({"errors": False, "losses": False, "matrices": False, "spikes": False}, "errors"),
        ({"spikes": "yes"}, "spikes"),
        ({"pilot_steps": 7}, "pilot_steps"),
        ({"mixing_init": "zeros"}, "mixing_init"),
        ({"mixing_init": "theory"}, "mixing_init"),  # which MHLA cannot have
        ({"dense_init": "foo"}, "dense_init"),
        ({"source_init": "foo"}, "source_init"),
        ({"base_std": 0}, "base_std"),
        ({"target_norm": -1.0}, "target_norm"),
        ({"keep": [0.5, 1.5]}, "keep"),
        ({"error_keep": 0}, "error_keep"),
        ({"error_steps": 0}, "error_steps"),
        ({"hidden": []}, "hidden"),
        ({"lengths": [1]}, "lengths"),
        ({"seeds": 0}, "seeds"),
        ({"processes": 0}, "processes"),
        ({"spike_lrs": []}, "spike_lrs"),
        ({"lr": 0}, "lr"),
        ({"size": ["tiny", "mini"]}, "size"),
        ({"data": "missing"}, "data"),
        ({"method": "iterand(every=99)"}, "method"),
        ({"method": "frozen", "keep": [0.5, 0.8]}, "method"),
        ({"method": "iterand", "mixing_init": "natural", "variants": "mea", "steps": 9}, "mixing_init"),
        ({"checkpoints": 1}, "checkpoints"),
    ],
)
def test_a_bad_value_is_named(config, changed, key):
    with pytest.raises(lab.BadConfig) as caught:
        mixing.Config(**config(**changed))
    assert caught.value.key == key


def test_an_unknown_variant_is_named(config):
    with pytest.raises(lab.BadConfig, match=r"variants='foo': must be all, or one or several of mha, gqa, .*, mhla"):
        mixing.Config(**config(variants=["mea", "foo"]))


@pytest.mark.parametrize("name", [None, "smoke", "quick", "full"])
def test_the_configs_can_be_run(name, text):
    changed = mixing.ex.named_configs[name]() if name else {}
    mixing.Config(**(mixing.Config.defaults() | changed | {"data": str(text)}))
