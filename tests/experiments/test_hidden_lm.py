"""A trained language model and its ticket: the config, the training, the measurements, and what they would notice."""

import json
import math
import re
import sys

import pandas as pd
import pytest
import torch
from command_lines import launched
from helpers import EXPERIMENTS, cats
from tables import one_case

from slth.attention.facts import PROJECTIONS
from slth.construct import language_model, pruned, record_scales
from slth.experiments import hidden_lm, lab
from slth.experiments.lab import storage
from slth.experiments.studies.hidden import measure as hiding
from slth.threads import one_torch_thread

pytestmark = pytest.mark.usefixtures("blank_figures")

SCRIPT = EXPERIMENTS / "hidden_lm.py"
TEXT = cats(150)
SMALL = {
    "embeddings": "shared",
    "norm": True,
    "d": 8,
    "blocks": 2,
    "heads": 2,
    "layers": 2,
    "length": 12,
    "vocabulary": 128,
    "steps": 40,
    "batch": 8,
    "lr": 0.01,
    "candidates": [8, 12],
    "reach": "scale",
    "windows": 10,
    "sample": 5,
    "seed": 0,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def study_of(text):
    return lambda **changed: hidden_lm.Config(**SMALL | {"data": str(text)} | changed).study


def hidden(study, candidates):
    """(target, source, ticket, pruned source) as the experiment makes them."""
    target, _ = hiding.train_target(study)
    source = hiding.make_source(study, candidates).double()
    hiding._share_tables(target, source)
    if study.reach == "scale":
        record_scales(target, source)
    ticket = language_model(target, source)
    return target, source, ticket, pruned(source, ticket.masks)


# ---------------------------------------------------------------- the config


@one_case
@pytest.mark.parametrize(
    ("update", "message"),
    [
        ("blocks=0", "blocks=0: must be an int >= 1"),
        ("heads=3", "heads=3: must be a divisor of d=64"),
        ("d=6 heads=4", "heads=4: must be a divisor of d=6"),
        ("layers=0", "layers=0: must be an int >= 1"),
        ("length=1", "length=1: must be an int >= 2"),
        ("vocabulary=1", "vocabulary=1: must be an int >= 2"),
        ("steps=-1", "steps=-1: must be an int >= 0"),
        ("candidates=0", "candidates=0: must be an int >= 1"),
        ("candidates=[8,8]", "candidates=[8, 8]: must be an int >= 1 or a list of them, not empty, none twice"),
        ("candidates=[]", "candidates=[]: must be"),
        ("reach=foo", "reach='foo': must be one of scale, bound, none"),
        ("embeddings=foo", "embeddings='foo': must be one of shared, random"),
        ("norm=2", "norm=2: must be"),
        ("lr=0", "lr=0: must be a finite number > 0"),
        ("lr=nan", "lr='nan': must be a finite number > 0"),
        ("lr=1e999", "lr=inf: must be a finite number > 0"),
        ("windows=0", "windows=0: must be an int >= 1"),
        ("data=3", "data=3: must be stdlib or a path to a text file"),
        ("data=missing.txt", "data='missing.txt': must be stdlib or a UTF-8 text file .*No such file"),
        ("data=empty.txt", "data='empty.txt': must be .*is empty"),
        ("data=latin.txt", "data='latin.txt': must be .*is not UTF-8"),
        ("data=.", "data='.': must be .*has no train and no validation part"),
        ("data=short.txt", "data='short.txt': must be a text of at least 2580 characters, 20 windows"),
    ],
)
def test_what_cannot_be_run_ends_with_one_line(update, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty.txt").write_bytes(b"\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    (tmp_path / "short.txt").write_text("x" * 2579)
    (tmp_path / "fine.txt").write_text("x" * 2580)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hidden_lm.ex, "config_hooks", [*hidden_lm.ex.config_hooks])
    monkeypatch.setattr(hidden_lm.ex, "observers", [])
    updates = [update] if update.startswith("data") else ["data=fine.txt", *update.split()]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "with", *updates])
    with pytest.raises(SystemExit) as stopped:
        lab.launch(hidden_lm.ex)
    line = stopped.value.code  # text, which the interpreter prints before it ends with status 1
    assert isinstance(line, str)
    assert "\n" not in line
    assert re.match(message if ".*" in message else re.escape(message), line), line
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- the target


@pytest.mark.parametrize("embeddings", ["shared", "random"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("reach", ["scale", "bound"])
def test_training_lowers_the_loss_and_bounds_hold(study_of, embeddings, norm, reach):
    study = study_of(embeddings=embeddings, norm=norm, reach=reach)
    target, learned = hiding.train_target(study)
    assert learned["val_loss_target"] < learned["val_loss_untrained"] - 0.3
    assert learned["val_loss_untrained"] == pytest.approx(math.log(len(study.characters)), rel=0.2)
    assert all(weight.dtype == torch.float64 and not weight.requires_grad for weight in target.parameters())
    factors = [
        torch.linalg.matrix_norm(weight, ord=2).max().item()
        for block in target.transformer.blocks
        for weight in [getattr(block.attention, role) for role in PROJECTIONS] + list(block.feed_forward.layers)
    ]
    assert (max(factors) <= 1 + 1e-6) == (reach == "bound")
    if reach == "bound" and embeddings == "random":
        assert all(table.weight.abs().max() <= 1 for table in (target.embedding, target.positions, target.head))


def test_the_bound_holds_without_training_as_well(study_of):
    target, learned = hiding.train_target(study_of(reach="bound", steps=0))
    assert learned["val_loss_target"] == pytest.approx(learned["val_loss_untrained"], abs=0.5)
    for block in target.transformer.blocks:
        for weight in [getattr(block.attention, role) for role in PROJECTIONS] + list(block.feed_forward.layers):
            assert torch.linalg.matrix_norm(weight, ord=2).max() <= 1 + 1e-6


def test_the_loss_is_the_mean_log_probability_of_what_follows(study_of):
    study = study_of(steps=0)
    target, learned = hiding.train_target(study)
    rows = study.validation
    probabilities = target(rows[:, :-1]).softmax(-1)
    picked = probabilities.gather(-1, rows[:, 1:, None])
    assert learned["val_loss_target"] == pytest.approx(-picked.log().mean().item(), rel=1e-12)


def test_a_training_that_diverges_is_named(study_of):
    with pytest.raises(lab.BadConfig, match=r"lr=1e\+30: must be smaller: the target's training diverged at step"):
        hiding.train_target(study_of(lr=1e30))


# ---------------------------------------------------------------- tickets

CASES = [
    (embeddings, norm, reach)
    for embeddings in ("shared", "random")
    for norm in (True, False)
    for reach in ("scale", "bound", "none")
]


@pytest.mark.parametrize(("embeddings", "norm", "reach"), CASES)
def test_tickets_are_exact_and_certified(study_of, embeddings, norm, reach):
    study = study_of(embeddings=embeddings, norm=norm, reach=reach)
    target, learned = hiding.train_target(study)
    table, texts, _ = hiding.hide(study, target)
    summary = hiding.summarise(study, table, learned)
    json.dumps(storage.plain(summary), allow_nan=False)
    assert summary["exact_weights"] is True
    assert summary["certificate_violations"] == 0
    assert (table["error"] <= table["certificate"]).all()
    assert (table["error"] > 0).all()
    assert list(table[["candidates", "block"]].itertuples(index=False, name=None)) == [(8, 1), (8, 2), (12, 1), (12, 2)]
    for candidates, rows in table.groupby("candidates"):
        source = hiding.make_source(study, candidates)
        random = [w.numel() for n, w in source.named_parameters() if ".weight" not in n]
        assert set(rows["bits"]) == {sum(random)}
        assert rows["keep"].between(0.01, 0.99).all()
    assert summary["bits"] == table["bits"].iloc[-1] > table["bits"].iloc[0]
    assert summary["loss_gap"] == summary["val_loss_ticket"] - summary["val_loss_target"]
    assert summary["loss_gap"] == summary["loss_gaps"][-1]
    assert 0 <= summary["agreement"] <= 1
    assert summary["agreement"] == 1 - summary["disagreements"][-1]
    assert summary["seconds_construct"] > 0
    assert summary["certificate"] == table["certificate"].iloc[-1]
    assert summary["val_loss_target"] == learned["val_loss_target"]
    assert summary["tokens_compared"] == 12 * len(study.validation) == 12 * 10
    assert (summary["error_embedding"] > 0) == (embeddings == "random")
    assert list(texts) == ["target", "ticket, 8 candidates", "ticket, 12 candidates"]
    assert all(len(sample) == 12 // 4 + 5 for sample in texts.values())
    if reach == "scale":
        assert abs(summary["loss_gap"]) < 0.1 * learned["val_loss_untrained"]
        last = table[table["block"] == 2]["error"].tolist()
        assert last[1] < last[0]


def test_more_candidates_make_the_ticket_the_target(study_of):
    study = study_of(candidates=18, blocks=1, layers=1)
    target, _ = hiding.train_target(study)
    table, *_ = hiding.hide(study, target)
    assert table["error"].max() < 0.02
    assert table["agreement"].min() > 0.98
    assert abs(table["val_loss_ticket"] - table["val_loss_target"]).max() < 1e-2
    assert table["unreachable"].max() == 0


def test_the_same_seed_gives_the_same_table(study_of):
    def table(seed):
        study = study_of(seed=seed, candidates=8)
        return hiding.hide(study, hiding.train_target(study)[0])

    first, again, other = table(1), table(1), table(2)
    pd.testing.assert_frame_equal(
        first[0].drop(columns="seconds_construct"), again[0].drop(columns="seconds_construct"), check_exact=True
    )
    assert first[1] == again[1]
    assert first[0]["val_loss_ticket"][0] != other[0]["val_loss_ticket"][0]


# ---------------------------------------------------------------- what the checks notice


@pytest.mark.parametrize("embeddings", ["shared", "random"])
def test_exact_means_every_bit(study_of, embeddings):
    study = study_of(embeddings=embeddings, steps=2)
    _, source, ticket, found = hidden(study, 8)
    assert hiding._is_exact(source, found, ticket.masks)
    assert hiding._is_exact(hiding.make_source(study, 8), found, ticket.masks)  # drawn afresh, in float32
    assert not hiding._is_exact(hiding.make_source(study_of(seed=1), 8), found, ticket.masks)
    with torch.no_grad():
        for name, mask in ticket.masks.items():
            weight = found.get_parameter(name)
            for kept in (True, False):
                at = tuple((mask == kept).nonzero()[0].tolist())
                held = weight[at].clone()
                weight[at] = torch.nextafter(held, torch.full_like(held, math.inf))  # by one ulp
                assert not hiding._is_exact(source, found, ticket.masks)
                weight[at] = held
    assert hiding._is_exact(source, found, ticket.masks)
    name = next(iter(ticket.masks))
    fewer = {n: m for n, m in ticket.masks.items() if n != name}
    assert not hiding._is_exact(source, found, fewer)


@pytest.mark.parametrize("name", ["transformer.blocks.0.attention.value", "transformer.blocks.1.feed_forward.layers.0"])
def test_one_flipped_bit_is_noticed(study_of, name):
    study = study_of()
    target, source, ticket, found = hidden(study, 12)
    inputs = study.validation[:, :-1]
    mask = ticket.masks[name]
    at = tuple(mask.nonzero()[0].tolist())
    flipped = {n: m.clone() for n, m in ticket.masks.items()}
    flipped[name][at] = False
    damaged = pruned(source, flipped)
    assert not hiding._is_exact(source, damaged, ticket.masks)
    assert hiding._is_exact(source, damaged, flipped)

    def error(model):
        return (model(inputs) - target(inputs)).abs().max().item()

    assert error(damaged) > 1.1 * error(found)


def test_a_ticket_of_another_network_is_worthless(study_of):
    study = study_of()
    target, _, ticket, found = hidden(study, 12)
    other = hiding.make_source(study_of(seed=1), 12).double()
    hiding._share_tables(target, other)
    record_scales(target, other)
    wrong = pruned(other, ticket.masks)
    assert not hiding._is_exact(other, found, ticket.masks)

    def gap(model):
        return abs(hiding._losses(model, study.validation).mean() - hiding._losses(target, study.validation).mean())

    assert gap(wrong) > 10 * gap(found)


def test_violations_are_counted(study_of):
    study = study_of(candidates=8, steps=2)
    target, learned = hiding.train_target(study)
    table, *_ = hiding.hide(study, target)
    table.loc[0, "certificate"] = table.loc[0, "error"] * 0.99
    table.loc[1, "certificate"] = math.nan
    table.loc[0, "exact_weights"] = False
    summary = hiding.summarise(study, table, learned)
    assert summary["certificate_violations"] == 2
    assert summary["exact_weights"] is False


# ---------------------------------------------------------------- as a program


def test_a_run(tmp_path, text):
    arguments = ["smoke", f"data={text}", "d=8", "length=12", "steps=20", "windows=5", "-F", str(tmp_path / "runs")]
    done = launched("hidden_lm", tmp_path, "with", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "--- ticket, 12 candidates" in done.stdout
    folder = tmp_path / "runs" / "1"
    table, summary, config = lab.load_run(folder)
    assert set(table["candidates"]) == {8, 12}
    assert summary["exact_weights"] is True
    assert summary["certificate_violations"] == 0
    wanted = {"val_loss_target", "val_loss_ticket", "agreement", "certificate", "bits", "seconds_construct", "seconds"}
    assert wanted <= summary.keys()
    assert config["data"] == str(text)
    assert {path.stem for path in folder.glob("*.png")} == {"error_vs_block", "gap_vs_candidates"}


@pytest.mark.slow
@pytest.mark.parametrize("embeddings", ["shared", "random"])
def test_a_trained_model_is_found_in_a_random_one_at_the_default_size(embeddings):
    study = hidden_lm.Config(embeddings=embeddings).study
    with one_torch_thread():
        target, learned = hiding.train_target(study)
        table, *_ = hiding.hide(study, target)
    summary = hiding.summarise(study, table, learned)
    assert summary["val_loss_target"] < 2.0
    assert abs(summary["loss_gap"]) <= 0.001
    assert summary["agreement"] >= 0.999
    assert summary["candidates_least"] == 24
    assert summary["exact_weights"]
    assert summary["certificate_violations"] == 0
