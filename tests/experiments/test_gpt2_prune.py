"""Tickets in random GPT-2s and what they are compared with: files, being killed, what is refused."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import cats
from sacred.observers import FileStorageObserver
from small_pruning import SMALL, config_of

import slth
from slth import plots
from slth.experiments import gpt2_prune, lab
from slth.experiments.studies.gpt2 import prune, recipes
from slth.experiments.studies.gpt2 import training as pruning
from slth.experiments.studies.gpt2.data import read
from slth.models import gpt2
from slth.tasks import text as texts

pytestmark = [pytest.mark.xdist_group("gpt2_prune"), pytest.mark.usefixtures("blank_figures")]  # one stored run

TOY = Path(__file__).parents[1] / "support" / "toy_search.py"
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}  # as in the other tests: see conftest.py
TEXT = cats(150)
KEYS = {"val_loss_ticket", "val_loss_dense", "val_loss_random_mask", "val_loss_unigram", "ticket_bytes"}
KEYS |= {"state_dict_bytes", "tokens_per_s", "steps", "seconds"}  # others rely on these


@pytest.fixture(scope="module")
def config(text):
    return config_of(text)


def run(folder, config):
    """What a run of this config stores in a new folder: (measurements, summary, folder)."""
    gpt2_prune.ex.observers[:] = [FileStorageObserver(folder)]
    try:
        gpt2_prune.ex.run(config_updates=config)
    finally:
        gpt2_prune.ex.observers[:] = []
    results, summary, _ = lab.load_run(folder / "1")
    return results, summary, folder / "1"


@pytest.fixture(scope="module")
def stored(tmp_path_factory, config):
    """A run with two inits, two learning rates and two scales of query and key."""
    inits = {"base_std": [0.06, 0.03], "position_std": [0.02, 0.1]}
    return run(tmp_path_factory.mktemp("stored"), config(qk_scale=[1.0, "theory"], **inits))


# ---------------------------------------------------------------- what a run leaves


def test_files_and_keys(stored, text):
    results, summary, folder = stored
    assert {"results.csv", "summary.json", "loss.png", "loss.svg", "loss_vs_parameters.png", "ticket.safetensors"} <= {
        path.name for path in folder.iterdir()
    }
    assert summary.keys() >= KEYS
    assert summary["steps"] == 30
    assert summary["seconds"] > 0
    assert summary["tokens_per_s"] > 0
    assert summary["ticket_bytes"] == (folder / "ticket.safetensors").stat().st_size
    assert summary["corpus"]["name"] == f"path:{text}"
    assert [model["qk_scale"] for model in summary["models"]] == [1.0, "theory"]
    assert set(results["run"]) == {"dense", "ticket", "sparse"}
    assert plots.figures(results).keys() == {"loss", "loss_vs_parameters"}


def test_figure_7_for_a_gpu_runs_through_on_the_cpu(tmp_path, config):
    named = gpt2_prune.ex.named_configs["gpu_figure7"]()
    small = {"size": ["tiny*0.25", "tiny*0.5"], "length": 16, "pilot_steps": 2, "steps": 4, "every": 2, "batch": 4}
    small |= {"windows": 4, "precision": "bf16", "accumulate": 2, "checkpoints": str(tmp_path / "parts")}
    results, summary, folder = run(tmp_path, config() | named | small | {"data": config()["data"]})
    assert set(results["run"]) == {"dense", "ticket"}
    assert [(m["size"], m["qk_scale"]) for m in summary["models"]] == [
        (size, scale) for size in small["size"] for scale in (1.0, "theory")
    ]
    assert "val_loss_shuffled_mask" not in summary
    assert (folder / "loss_vs_parameters.png").exists()
    assert len(list((tmp_path / "parts").glob("*.checkpoint"))) == 2 * 3 * 3  # of each training, pilots too


def test_a_text_with_parts_of_its_own_is_scored_on_them(tmp_path, config):
    articles = "".join(f" \n = Cat {i} = \n \n {cats(3)}" for i in range(4))
    for part, text in {"train": TEXT, "valid": articles, "test": articles[::-1] + articles}.items():
        (tmp_path / f"{part}.txt").write_text(text)
    given = config(data=str(tmp_path), lr=0.02, controls=False, stride=4, documents="separate")
    _, summary, folder = run(tmp_path / "runs", given)
    data = read(str(tmp_path), "bytes", 16, 8)
    model = gpt2.build(gpt2.config("tiny", width=0.25, vocabulary=256, length=16))
    slth.Ticket.load(folder / "ticket.safetensors").apply(model)
    for part, text in {"validation": data.corpus.validation, "test": data.corpus.test}.items():
        found = texts.text_perplexity(model, text, texts.Bytes(), 16, 4, documents="separate")
        assert summary[f"{part}_bits_per_byte_ticket"] == pytest.approx(found.bits_per_byte, rel=1e-6)
        assert summary[f"{part}_perplexity_ticket"] == pytest.approx(found.per_token, rel=1e-6)
        assert summary[f"{part}_word_perplexity_ticket"] == pytest.approx(found.per_word, rel=1e-6)
        assert 0 < summary[f"{part}_bits_per_byte_dense"] != summary[f"{part}_bits_per_byte_ticket"]
    assert summary["corpus"]["test_digest"] == hashlib.sha256(data.corpus.test).hexdigest()
    (tmp_path / "test.txt").write_text(TEXT)
    with pytest.raises(lab.BadConfig, match=r"^documents='separate': must be joined with this text"):
        gpt2_prune.Config(**given)


def test_bytes_are_those_of_the_network(stored, config):
    _, summary, folder = stored
    model = gpt2.build(gpt2.config("tiny", width=0.25, length=16))
    assert summary["state_dict_bytes"] == 4 * sum(p.numel() for p in model.parameters())
    bits = sum(w.size for w in slth.Ticket.load(folder / "ticket.safetensors").weights)
    assert bits / 8 < summary["ticket_bytes"] < bits / 8 + 6000
    assert bits == sum(p.numel() for p in model.parameters() if p.dim() > 1)


def test_both_sides_choose_from_one_grid(stored):
    results, summary, _ = stored
    grid = {(point["lr"], point["base_std"], point["position_std"]) for point in summary["grid"]}
    assert grid == {(lr, *stds) for lr in (0.001, 0.02) for stds in ((0.06, 0.02), (0.03, 0.1))}
    measured = results[results["val_loss"].notna() & (results["run"] != "sparse")]
    for _, rows in measured.groupby(["run", "qk_scale"]):
        pilots, ends = rows[rows["step"] == 4], rows[rows["step"] == 30]
        assert set(pilots[["lr", "base_std", "position_std"]].itertuples(index=False, name=None)) == grid
        best = pilots.loc[pilots.groupby("base_std")["val_loss"].idxmin()].set_index("base_std")["lr"]
        assert ends.set_index("base_std")["lr"].to_dict() == best.to_dict()  # the best pilot of each init, in full
        chosen = ends[ends["stage"] == "full"]
        assert chosen["val_loss"].tolist() == [ends["val_loss"].min()]
        assert set(rows.loc[rows["stage"] == "full", "base_std"]) == set(chosen["base_std"])
    dense = summary["dense_point"]
    sparse = results[results["run"] == "sparse"]
    assert set(sparse[["lr", "base_std", "position_std"]].itertuples(index=False, name=None)) == {
        (dense["lr"], dense["base_std"], dense["position_std"])
    }


def test_the_summary_is_what_was_measured(stored):
    results, summary, _ = stored
    last = results[(results["stage"] == "full") & (results["step"] == 30) & results["val_loss"].notna()]
    for model in summary["models"]:
        of_scale = last[last["qk_scale"] == str(model["qk_scale"])]
        assert of_scale.set_index("run").loc["ticket", "val_loss"] == model["val_loss_ticket"]
        assert of_scale.set_index("run").loc["sparse", "val_loss"] == model["val_loss_random_mask_trained_weights"]
    assert last.set_index("run").loc["dense", "val_loss"] == summary["val_loss_dense"]
    gain = summary["val_loss_unigram"] - summary["val_loss_dense"]
    assert summary["recovered"] == pytest.approx((summary["val_loss_unigram"] - summary["val_loss_ticket"]) / gain)
    for name in ("ticket", "dense", "random_mask", "unigram"):
        assert summary[f"perplexity_{name}"] == pytest.approx(math.exp(summary[f"val_loss_{name}"]))
    measured = results[(results["run"] == "ticket") & results["val_loss"].notna() & (results["stage"] == "full")]
    assert measured["step"].tolist() == [10, 20, 30] * 2


def test_training_learns_and_the_controls_do_not(stored):
    _, summary, _ = stored
    untrained = math.log(256)
    for model in summary["models"]:
        learned = [model["val_loss_ticket"], model["val_loss_dense"], model["val_loss_random_mask_trained_weights"]]
        others = [model[f"val_loss_{name}"] for name in ("shuffled_mask", "random_mask", "redrawn_weights")]
        assert max(learned) < untrained - 1
        assert min(others) > max(learned) + 0.5
        assert len({*learned, *others}) == 6


def test_the_ticket_gives_the_same_loss_in_any_model_of_its_shape(stored, text):
    _, summary, folder = stored
    data = read(str(text), "bytes", 16, 8)
    model = gpt2.build(gpt2.config("tiny", width=0.25, vocabulary=256, length=16), seed=5)
    before = pruning.val_loss(model, data.validation)
    slth.Ticket.load(folder / "ticket.safetensors").apply(model)
    loss = pruning.val_loss(model, data.validation)
    assert loss == summary["val_loss_ticket"]
    assert abs(before - loss) > 0.5


@pytest.mark.parametrize(
    "changed",
    [
        {"method": {"name": "iterand", "rate": 0.5}, "policy": "global"},
        {"method": "biprop"},
        {"method": f"{TOY}:Scaled(factor=0.25)", "keep": 0.6},
        {"masked": "blocks"},
        {"method": "frozen", "init": "theory"},
        {"method": "bernoulli", "scores": "constant"},
        {"schedule": "cubic", "init": "gpt2", "dense_init": "theory", "keep": 0.3},
    ],
)
def test_every_search_ends_in_a_ticket(config, changed):
    study = gpt2_prune.Config(**config(lr=0.01, steps=3, every=1, **changed)).study
    _, found, file = prune.measure(study)
    plain = gpt2.build(study.sizes["tiny*0.25"])
    slth.Ticket.from_bytes(file).apply(plain)
    assert pruning.val_loss(plain, study.data.validation) == found[0]["val_loss_ticket"]
    assert all(math.isfinite(value) for name, value in found[0].items() if name.startswith("val_loss"))
    assert pruning.nonzero(plain) == found[0]["nonzero_ticket"]
    for name, weight in plain.named_parameters():
        whole = weight.dim() == 1 or (study.search.masked == "blocks" and ".h." not in name)
        if name.endswith("bias"):
            assert not weight.any()
        elif whole or study.search.policy == "layer":
            wanted = (1.0 if whole else study.search.keep) * weight.numel()
            assert abs(weight.count_nonzero() - wanted) <= 1.5  # of three parts at most, each rounded by half


def test_by_default_masks_are_those_of_the_best_recipe_of_a_bit(config):
    best = recipes.recipe_of("base")
    given = gpt2_prune.Config.defaults()
    for key in ("keep", "embedding_kind", "embedding_keep", "scale", "beta1", "beta2", "init"):
        assert given[key] == getattr(best, key)
    assert best.base_std in given["base_std"]
    assert best.lr in given["lr"]
    masks = {key: given[key] for key in gpt2_prune.PLAIN} | {"keep": given["keep"], "scale": "matrix"}  # and factors
    _, found, file = prune.measure(gpt2_prune.Config(**config(lr=0.01, steps=3, every=1, **masks)).study)
    assert math.isfinite(found[0]["val_loss_random_mask_trained_weights"])
    ticket = slth.Ticket.from_bytes(file)
    assert {str(w.kind): w.scale is not None for w in ticket.weights} == {"prune": True, "signed(levels=2)": True}
    plain = ticket.apply(gpt2.build(gpt2.config("tiny", width=0.25, vocabulary=256, length=16)))
    assert pruning.nonzero(plain) == found[0]["nonzero_ticket"]  # without the factors, which are in its weights


def test_no_gain_is_no_share():
    assert prune.recovered(3.0, 2.0, 2.25) == 0.75
    assert prune.recovered(3.0, 2.0, 3.5) == -0.5
    assert math.isnan(prune.recovered(3.0, 3.0, 2.0))
    assert math.isnan(prune.recovered(3.0, 3.1, 2.0))


# ---------------------------------------------------------------- checkpoints


@pytest.fixture
def fits(monkeypatch):
    """What slth.fit gives in this test, by label."""
    seen, fit = {}, slth.fit

    def noted(*args, **given):
        seen[given["name"]] = fit(*args, **given)
        return seen[given["name"]]

    monkeypatch.setattr(pruning.slth, "fit", noted)
    return seen


KILLED_AFTER_SOME_STEPS = """
import os, signal, sys
from slth.experiments import gpt2_prune, lab
from slth.experiments.studies.gpt2 import training as pruning
steps, draw = iter(range(int(sys.argv.pop(1)))), pruning.texts.batch
def batch(*args, **given):
    if next(steps, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(*args, **given)
pruning.texts.batch = batch
lab.launch(gpt2_prune.ex)
"""


def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path, config, fits):
    given = config(checkpoints=str(tmp_path / "kept"), steps=20)
    updates = [f"{key}={value}" for key, value in given.items() if key in SMALL or key in ("data", "checkpoints")]
    steps = 2 * 4 + 20 + 2 * 4 + 11  # two pilots and a dense training, two pilots and half a ticket
    arguments = [str(steps), "-F", str(tmp_path / "killed"), "with", *updates]
    command = [sys.executable, "-c", KILLED_AFTER_SOME_STEPS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ALONE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed" / "1" / "results.csv").exists()

    resumed, _, folder = run(tmp_path / "resumed", given)
    starts = [fit.resumed_at for fit in fits.values()]
    assert starts == [4, 4, 20, 4, 4, 10, 0]  # of 20 steps every second is kept
    whole, _, other = run(tmp_path / "whole", config(steps=20))
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    name = "ticket.safetensors"
    assert (folder / name).read_bytes() == (other / name).read_bytes()

    again, summary, _ = run(tmp_path / "again", given)  # all done before
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert summary["tokens_per_s"] is None


def test_a_folder_of_checkpoints_belongs_to_one_config(tmp_path, config):
    folder = str(tmp_path / "kept")
    given = config(checkpoints=folder)
    made = gpt2_prune.Config(**given)
    made.resumable.begin()
    gpt2_prune.Config(**json.loads(json.dumps(given)))
    for changed, message in [
        ({"keep": 0.3}, "keep=0.5, not 0.3"),
        ({"windows": 9}, "windows=8, not 9"),
        ({"lr": [0.001]}, r"lr=\[0.001, 0.02\], not \[0.001\]"),
    ]:
        with pytest.raises(lab.BadConfig, match=rf"^checkpoints='.*': must be another folder.*{message}$"):
            gpt2_prune.Config(**(given | changed))


def test_a_folder_of_checkpoints_belongs_to_one_text(tmp_path, config):
    (tmp_path / "a.txt").write_text(TEXT)
    given = config(checkpoints=str(tmp_path / "kept"), data=str(tmp_path / "a.txt"))
    made = gpt2_prune.Config(**given)
    made.resumable.begin()
    (tmp_path / "a.txt").write_text(TEXT.replace("cat", "dog"))
    with pytest.raises(lab.BadConfig, match="its checkpoints are of text="):
        gpt2_prune.Config(**given)
