"""Which point of a grid is taken, and what is measured of the networks."""

import math

import pandas as pd
import pytest
import torch
from helpers import cats
from small_pruning import config_of
from tables import one_case

import slth
from slth.experiments import gpt2_prune, lab
from slth.experiments.lab import live, sharing
from slth.experiments.studies.gpt2 import training as pruning
from slth.search import checkpoint, controls
from slth.wrapping import effective, handle

TEXT = cats(150)


@pytest.fixture(scope="module")
def config(text):
    return config_of(text)


# ---------------------------------------------------------------- the grid


@one_case
@pytest.mark.parametrize(
    ("base", "position", "pairs"),
    [
        (0.1, 0.2, [(0.1, 0.2)]),
        ([0.1, 0.3], 0.2, [(0.1, 0.2), (0.3, 0.2)]),
        ([0.1, 0.3], [0.2], [(0.1, 0.2), (0.3, 0.2)]),
        ([0.04, 0.07], None, [(0.04, 0.02), (0.07, 0.12)]),
        ((0.1, 1), (0.2, 0.4), [(0.1, 0.2), (1.0, 0.4)]),
        ([0.1, 0.1], [0.2, 0.4], [(0.1, 0.2), (0.1, 0.4)]),
    ],
)
def test_inits_are_pairs(base, position, pairs, config):
    study = gpt2_prune.Config(**config(base_std=base, position_std=position, lr=[1, 2])).study
    assert study.grid == [(lr, *pair) for pair in pairs for lr in (1.0, 2.0)]


BAD = [[], 0, -1.0, math.nan, math.inf, "0.1", True, [0.1, "x"], [[0.1]], [None]]


@one_case
@pytest.mark.parametrize("bad", [*BAD, None, [0.1, 0.1]])
@pytest.mark.parametrize("key", ["lr", "base_std"])
def test_a_bad_grid_is_named(key, bad, config):
    with pytest.raises(lab.BadConfig, match=f"^{key}="):
        gpt2_prune.Config(**config(**{key: bad}))


@one_case
@pytest.mark.parametrize("bad", [*BAD, [0.1, 0.2, 0.3]])
def test_bad_positions_are_named(bad, config):
    with pytest.raises(lab.BadConfig, match=r"^position_std="):
        gpt2_prune.Config(**config(base_std=[0.1, 0.2], position_std=bad))


class Trainings:
    """Stands for `pruning.trained`: loss by (lr, base_std), or an error, for pilots of 5 steps and full ones."""

    def __init__(self, pilots, full):
        self.losses, self.asked = {5: pilots, 50: full}, []

    def __call__(self, source, search, data, how, point, steps, label):
        self.asked.append((steps, point, label))
        loss = self.losses[steps][point]
        if loss is None:
            raise FloatingPointError("diverged")
        fit = slth.search.Fit([{"step": steps, "train_loss": 0.5}, {"step": steps, "val_loss": loss}])
        return pruning.Trained(None, fit, *point, logit_std=0.1)


@pytest.fixture
def choose(monkeypatch, config):
    """Ask best_of: (what came of it, the rows, what was trained)."""
    how = gpt2_prune.Config(**config(steps=50)).study.how

    def ask(pilots, full):
        trainings = Trainings(pilots, full)
        monkeypatch.setattr(pruning, "trained", trainings)
        grid = list(full)
        best, rows = pruning.best_of(None, None, None, how, grid, "some", 5)
        return best, rows, trainings.asked

    return ask


A, B, C = (0.1, 1.0), (0.2, 1.0), (0.1, 2.0)


def test_the_best_pilot_is_taken(choose):
    best, rows, asked = choose({A: 3.0, B: 2.0, C: 2.5}, {A: 1.0, B: 1.5, C: 1.2})
    assert (best.lr, best.base_std, best.val_loss) == (0.2, 1.0, 1.5)  # by its pilot: what full ones give is not known
    assert [(steps, point) for steps, point, _ in asked] == [(5, A), (5, B), (5, C), (50, B)]
    assert len({label for _, _, label in asked}) == 4  # the names of checkpoints
    table = pd.DataFrame(rows)
    assert table["stage"].tolist() == ["grid"] * 3 + ["full"] * 2
    assert table["val_loss"].tolist()[:3] == [3.0, 2.0, 2.5]
    assert set(table.loc[table["stage"] == "full", "lr"]) == {0.2}


def test_what_diverges_is_passed_over(choose):
    best, rows, _ = choose({A: None, B: 2.0, C: 2.5}, {A: 1.0, B: 1.5, C: 1.2})
    assert best.lr == 0.2
    assert rows[0]["val_loss"] == math.inf
    best, rows, asked = choose({A: 3.0, B: 2.0, C: 2.5}, {A: 1.0, B: None, C: 1.2})
    assert (best.lr, best.base_std) == C
    assert [point for steps, point, _ in asked if steps == 50] == [B, C]
    assert {row["base_std"] for row in rows if row["stage"] == "full"} == {2.0}


def test_one_point_needs_no_pilot(choose):
    best, rows, asked = choose({}, {A: 1.0})
    assert best.val_loss == 1.0
    assert [steps for steps, _, _ in asked] == [50]
    assert {row["stage"] for row in rows} == {"full"}


@one_case
@pytest.mark.parametrize(
    ("pilots", "full"),
    [({A: None, B: None}, {A: 1.0, B: 1.0}), ({A: 1.0, B: None}, {A: None, B: 1.0}), ({}, {A: None})],
)
def test_nothing_left_is_an_error(choose, pilots, full):
    with pytest.raises(FloatingPointError, match="some: training diverged at every point of the grid"):
        choose(pilots, full)


def test_the_best_init_is_the_one_that_ends_best(monkeypatch):
    ends = {(1.0, 0.1): 2.0, (1.0, 0.2): 1.0, (2.0, 0.3): None, (3.0, 0.4): 1.5}
    asked = []

    def best_of(source, search, data, how, grid, label, pilot_steps):
        asked.append((grid, label))
        ((lr, base_std),) = grid
        loss = ends[base_std, source.position_std]
        if loss is None:
            raise FloatingPointError("diverged")
        fit = slth.search.Fit([{"step": 9, "val_loss": loss}])
        rows = [{"stage": "grid", "val_loss": 7.0}, {"stage": "full", "val_loss": loss}]
        return pruning.Trained(None, fit, lr, base_std, logit_std=0.1), rows

    monkeypatch.setattr(pruning, "best_of", best_of)
    start = pruning.Source(None, "gpt2", 0.1, 9.0, 1.0, 0)
    source, best, rows = pruning.best_of_stds(start, None, None, None, list(ends), [0.1], "some", 5)
    assert (source.position_std, best.base_std, best.val_loss) == (0.2, 1.0, 1.0)
    assert [grid for grid, _ in asked] == [[(0.1, base_std)] for base_std, _ in ends]
    assert len({label for _, label in asked}) == 4  # the names of checkpoints
    full = [(row["position_std"], row["val_loss"]) for row in rows if row["stage"] == "full"]
    assert full == [(0.2, 1.0)]
    assert [row["position_std"] for row in rows] == [0.1, 0.1, 0.2, 0.2, 0.4, 0.4]
    ends.update(dict.fromkeys(ends))
    with pytest.raises(FloatingPointError, match="some: training diverged at every point of the grid"):
        pruning.best_of_stds(start, None, None, None, list(ends), [0.1], "some", 5)


def test_the_runs_of_a_sweep_train_a_dense_network_once(config, tmp_path, monkeypatch):
    def trained(folder, **changed):
        monkeypatch.setattr(sharing, "FOLDER", folder)
        study = gpt2_prune.Config(**config(steps=20, **changed)).study
        (size,) = study.sizes
        source = study.source(size, study.dense_init, 1.0)
        with live.collected() as points:
            made = pruning.trained(source, None, study.data, study.how, (0.01, 0.06), 20, "dense")
        losses = {point for point in points if point[0] in ("dense/train_loss", "dense/val_loss")}
        return made.fit, made.logit_std, made.model.state_dict(), losses

    folder = tmp_path / "shared"
    alone, *_ = runs = [trained(None), trained(folder), trained(folder, keep=0.3, method="iterand")]
    assert [fit.resumed_at for fit, *_ in runs] == [0, 0, 20]
    for fit, logit_std, weights, losses in runs:
        assert (fit.rows, logit_std, losses) == (alone[0].rows, alone[1], alone[3])
        assert all(torch.equal(weights[name], weight) for name, weight in alone[2].items())
    others = [trained(folder, **changed)[0] for changed in ({"seed": 1}, {"batch": 2}, {"windows": 4}, {"every": 5})]
    assert [fit.resumed_at for fit in others] == [0] * 4


def dense(config, **changed):
    """Train densely: the fit and the weights."""
    study = gpt2_prune.Config(**config(**{"steps": 4, "lr": 0.01} | changed)).study
    source = study.source("tiny*0.25", "gpt2", 1.0)
    trained = pruning.trained(source, None, study.data, study.how, (study.lrs[0], 0.06), 4, "dense")
    return trained.fit, trained.model.state_dict()


@pytest.mark.parametrize("broken", ["no folder", "full at the end", "damaged"])
def test_without_the_shared_file_a_network_is_trained_all_the_same(broken, config, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(pruning._LOG, "warning", lambda text, *of: said.append(text % of))  # whatever logging is set to
    fit, weights = dense(config)
    folder = tmp_path / "shared"
    monkeypatch.setattr(sharing, "FOLDER", folder / "none" if broken == "no folder" else folder)
    if broken == "damaged":
        dense(config)
        (file,) = [path for path in folder.iterdir() if not path.suffix]
        file.write_bytes(file.read_bytes()[:-1])
    if broken == "full at the end":
        save = checkpoint.save

        def fill(path, model, optimiser, identity, manifest):
            if manifest["step"]:
                raise OSError(28, "No space left on device")
            save(path, model, optimiser, identity, manifest)

        monkeypatch.setattr(checkpoint, "save", fill)
    again, same = dense(config)
    assert (again.rows, again.resumed_at) == (fit.rows, 0)
    assert all(torch.equal(same[name], weight) for name, weight in weights.items())
    assert len(said) == 1
    assert said[0].startswith("dense: trained without sharing: ")


def test_a_dense_network_that_diverges_is_trained_once(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "FOLDER", tmp_path / "shared")
    with pytest.raises(FloatingPointError) as first:
        dense(config, lr=1e30)
    monkeypatch.setattr(slth, "fit", None)
    with pytest.raises(FloatingPointError) as second:
        dense(config, lr=1e30, keep=0.3)
    assert str(second.value) == str(first.value)


def test_a_rate_at_which_training_breaks_down_is_passed_over(config):
    study = gpt2_prune.Config(**config(lr=[1e30, 0.01], steps=4, pilot_steps=3)).study
    source = study.source("tiny*0.25", "gpt2", 1.0)
    grid = [(lr, 0.06) for lr in study.lrs]
    best, rows = pruning.best_of(source, None, study.data, study.how, grid, "dense", 3)
    assert best.lr == 0.01
    assert rows[0]["val_loss"] == math.inf


# ---------------------------------------------------------------- what is measured


@pytest.fixture
def ticket(config):
    study = gpt2_prune.Config(**config(steps=5, lr=0.02)).study
    source = study.source("tiny*0.25", "signed", 1.0)
    return study, pruning.trained(source, study.search, study.data, study.how, (0.02, 0.06), 5, "ticket")


def test_loss_is_the_mean_log_probability_of_what_follows(config):
    study = gpt2_prune.Config(**config(windows=40)).study
    model = study.source("tiny*0.25", "gpt2", 1.0).build(0.1)
    windows = torch.cat([study.data.validation] * 3)[:70]  # several pieces, the last a short one
    with torch.no_grad():
        probabilities = model(windows[:, :-1]).logits.double().softmax(-1)
    picked = probabilities.gather(-1, windows[:, 1:, None])
    assert pruning.val_loss(model, windows) == pytest.approx(-picked.log().mean().item(), rel=1e-6)


def test_nonzero_counts_what_is_not_zero(ticket):
    study, trained = ticket
    plain = study.source("tiny*0.25", "gpt2", 1.0).build(0.1)
    matrices = 4 * 12 * 36 * 36 + (256 + 16) * 36
    assert pruning.nonzero(plain) == matrices + 9 * 36  # the tied head once, scales of normalisations, biases at 0
    with torch.no_grad():
        plain.transformer.wte.weight[3] = 0
        plain.transformer.h[0].mlp.c_fc.bias[:5] = 1
    assert pruning.nonzero(plain) == matrices + 9 * 36 - 36 + 5
    under_masks = pruning.nonzero(trained.model)
    assert under_masks == handle(trained.model).kept() + 9 * 36
    unwrapped = slth.unwrap(trained.model)
    assert under_masks == sum(int(p.count_nonzero()) for p in unwrapped.parameters()) == pruning.nonzero(unwrapped)


def test_controls_change_what_they_say(ticket, monkeypatch):
    _, trained = ticket
    before = {name: w.clone() for name, w in effective(trained.model).items()}
    seen = []

    def look(model, windows):
        seen.append({name: weight.clone() for name, weight in effective(model).items()})
        return float(len(seen))

    monkeypatch.setattr(pruning, "val_loss", look)
    losses = pruning.control_losses(trained, pruning.Data(*[None] * 7), seed=0)
    assert losses == {"shuffled_mask": 1.0, "random_mask": 2.0, "redrawn_weights": 3.0}
    shuffled, random_mask, redrawn = seen
    for name, weight in before.items():
        kept = weight != 0
        for other in (shuffled[name] != 0, random_mask[name] != 0):
            assert other.sum() == kept.sum()
            assert 0.3 < (other & kept).sum() / kept.sum() < 0.7  # of a half, what chance would keep
        assert not (shuffled[name] != 0).equal(random_mask[name] != 0)
        both = kept & (shuffled[name] != 0)
        assert weight[both].equal(shuffled[name][both])
        assert (redrawn[name] != 0).equal(kept)
        assert 0.3 < (redrawn[name] == weight)[kept].float().mean() < 0.7  # signs of one size: half agree


def test_weights_under_a_random_mask_are_trained_and_no_other(ticket):
    study, dense = ticket
    source = study.source("tiny*0.25", "signed", 1.0)
    model, fit = pruning.sparse_training(source, study.search, study.data, study.how, dense, "sparse")
    start = study.search.wrap(source.build(dense.base_std))
    controls.random_mask(start, study.how.seed + 1)
    assert fit.last["val_loss"] == pruning.val_loss(model, study.data.validation)
    masks, wanted = handle(model).masks(), handle(start).masks()
    for name, weight in effective(model).items():
        assert masks[name].equal(wanted[name])
        assert (weight[~masks[name]] == 0).all()
        assert (weight != effective(start)[name])[masks[name]].float().mean() > 0.5


def test_a_loss_that_is_no_number_is_divergence(ticket, monkeypatch):
    study, _ = ticket
    monkeypatch.setattr(pruning, "val_loss", lambda model, windows: math.nan)
    source = study.source("tiny*0.25", "gpt2", 1.0)
    with pytest.raises(FloatingPointError, match="dense: the validation loss is nan"):
        pruning.trained(source, None, study.data, study.how, (0.02, 0.06), 5, "dense")


def test_speed_is_that_of_the_steps_done_here(config):
    how = gpt2_prune.Config(**config(steps=100, batch=2, length=5)).study.how
    assert how.tokens_per_s(slth.search.Fit(seconds=2.0)) == 500.0
    assert how.tokens_per_s(slth.search.Fit(seconds=2.0, resumed_at=80)) == 100.0
    assert math.isnan(how.tokens_per_s(slth.search.Fit(seconds=0.0, resumed_at=100)))
