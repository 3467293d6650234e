"""Attentions side by side: equal sizes, what is measured, what is said of it, what is drawn, cut runs, refusals."""

import itertools
import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from figure_tables import lines_of, words
from helpers import cats
from hypothesis import given, settings
from hypothesis import strategies as st
from sacred.observers import FileStorageObserver
from scipy import stats
from tables import one_case

import slth
from slth import plots
from slth.attention import ATTENTIONS
from slth.attention.functional import repeat_heads
from slth.experiments import lab, mixing
from slth.experiments.lab import storage
from slth.experiments.studies.approximation import learning
from slth.experiments.studies.gpt2 import training as pruning
from slth.experiments.studies.mixing import jobs, verdicts
from slth.experiments.studies.mixing import losses as ticket_losses
from slth.experiments.studies.mixing.errors import constructed_error, examples, learn, measure_error, target_of
from slth.experiments.studies.mixing.losses import measure_ticket
from slth.experiments.studies.mixing.matrices import matrix_of, statistics
from slth.experiments.studies.mixing.networks import (
    attentions,
    multiply_adds,
    network,
    options_of,
    width_of,
)
from slth.experiments.studies.mixing.spikes import count_spikes
from slth.experiments.studies.mixing.study import Job
from slth.experiments.studies.mixing.tables import summarise, table_of
from slth.experiments.studies.mixing.variants import LINEAR, attention_of, has_matrix
from slth.models import gpt2
from slth.models.gpt2_attention import with_attention
from slth.plots.mixing import SHORT

pytestmark = [pytest.mark.xdist_group("mixing"), pytest.mark.usefixtures("blank_figures")]  # one stored run

TEXT = cats(400)
OWN = """
from dataclasses import replace
from slth.attention import GroupedQueryAttention

class Even(GroupedQueryAttention):
    facts = replace(GroupedQueryAttention.facts, grouped=False, width_step=2, mixing_inits=("random",))

    def __init__(self, *sizes, mixing_init="random", **options):
        super().__init__(*sizes, **options)

class Still(GroupedQueryAttention):
    facts = replace(GroupedQueryAttention.facts, causal=False)
"""
SMALL = {"variants": ["kha_linear", "mhla"], "seeds": 2, "hidden": [8, 16], "lengths": [8], "block": 4, "steps": 3}
SMALL |= {"error_steps": 3, "error_batch": 4, "size": "tiny*0.25", "length": 16, "keep": [0.3, 0.5], "batch": 2}
SMALL |= {"windows": 4, "spikes": True, "spike_lrs": [0.01], "spike_steps": 25, "lr": 0.01}
COLUMNS = ["variant", "keep", "hidden", "length", "seed", "error", "val_loss", "val_loss_dense", "parameters"]
COLUMNS += ["seconds_per_step"]  # others rely on these
TIMES = ["seconds_per_step", "seconds_per_step_dense"]


@pytest.fixture(scope="module")
def config(text):
    """The default config made small, with changes."""
    return lambda **changed: mixing.Config.defaults() | SMALL | {"data": str(text)} | changed


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


# ---------------------------------------------------------------- equal size


@pytest.mark.parametrize("variant", ATTENTIONS)
def test_no_other_width_is_nearer_to_the_parameters_of_mha(study, variant):
    d, hidden, length = 12, 6, 16

    def count(name, width):
        options = options_of(study, name, length, "natural")
        module = attention_of(name)(d, d, 4, width, causal=True, **options)
        return sum(p.numel() for p in module.parameters())

    wanted = 4 * 4 * d * hidden
    assert count("mha", hidden) == wanted
    step = ATTENTIONS[variant].facts.width_step
    widths = range(step, 20, step)
    off = {width: abs(count(variant, width) - wanted) for width in widths}
    chosen = width_of(study, variant, d, hidden, length)
    assert off[chosen] == min(off.values())
    assert variant != "mha" or chosen == hidden


def test_compute_is_counted_and_matched(config):
    d, hidden, length = 12, 6, 16
    module = ATTENTIONS["mha"](d, d, 4, hidden, causal=True)
    products = length * 4 * 4 * d * hidden + 2 * length**2 * 4 * hidden
    assert multiply_adds(module, length) == products
    study = mixing.Config(**config(equal="compute")).study
    assert width_of(study, "mha", d, hidden, length) == hidden
    # with one key and value head of four, 2.5 projections of 4 are left, and as much attention
    assert width_of(study, "mqa", d, hidden, length) == round(hidden * (4 * d + 32) / (2.5 * d + 32))


def test_attentions_of_the_user_s_own_are_variants(config, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    place = str(tmp_path / "own.py:Even")
    starts = {"mixing_init": "random", "dense_mixing_init": "random"}
    study = mixing.Config(**config(variants=[place, "gqa"], d_in=4, **starts)).study
    assert study.variants == ("mha", "gqa", place)
    assert options_of(study, place, 16, "random") == {"mixing_init": "random"}
    width = width_of(study, place, 4, 5, 8)
    assert width in (4, 6)
    found = measure_error(study, Job("error", place, 0, hidden=5, length=8))
    assert (found["width"], math.isnan(found["error_construct"])) == (width, False)
    assert "/" not in Job("error", place, 0).label
    for changed, said in (
        ({"variants": "own.py:Still"}, "variants='own.py:Still': must be an attention that can be causal"),
        ({"variants": "own.py:Even", "mixing_init": "natural"}, "mixing_init='natural': must be one of random for own"),
        ({"variants": "own.py:Odd"}, "variants=own.py:Odd: own.py has no class Odd"),
    ):
        with pytest.raises(lab.Refused, match=said):
            mixing.Config(**config(**starts | changed))


# ---------------------------------------------------------------- what is said


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=7), st.floats(-3, 3))
@settings(max_examples=25)
def test_intervals_move_with_the_differences(values, shift):
    found, moved = (verdicts.compared(pd.Series(v), 3) for v in (values, [v + shift for v in values]))
    for key in ("difference", "difference_low", "difference_high", "student_low", "student_high"):
        assert moved[key] == pytest.approx(found[key] + shift, abs=1e-9)
    assert min(values) - 1e-12 <= found["difference_low"] <= found["difference_high"] <= max(values) + 1e-12
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    assert found["student_high"] - found["difference"] == pytest.approx(half, abs=1e-9)


def test_the_interval_is_that_of_the_bootstrap():
    values = np.array([-0.3, 0.1, 0.25, 0.4, 0.05, -0.15])
    peer = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert verdicts.bootstrap(values, seed=0) == pytest.approx((peer.low, peer.high), abs=0.02)


@one_case
@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-0.1, -0.11, -0.09, -0.1, -0.12], "better"),
        ([0.1, 0.11, 0.09, 0.1, 0.12], "worse"),
        ([-0.1, -0.11, -0.09, -0.1], "cannot tell"),  # four seeds
        ([-0.1, -0.4, -0.01, -0.02, -0.01], "cannot tell"),  # below 0 all, which Student's interval is not
        ([0.1, -0.11, 0.09, -0.1, 0.02], "cannot tell"),
        ([0.0] * 5, "cannot tell"),
        ([-math.inf, -0.1, -0.1, -0.1, -0.1], "cannot tell"),
        ([math.nan] * 5, "cannot tell"),
        ([-0.5], "cannot tell"),
    ],
)
def test_verdicts(values, verdict):
    assert verdicts.compared(pd.Series(values), 0)["verdict"] == verdict


def test_p_is_that_of_student_s_test():
    for values in ([-0.3, 0.1, 0.25, 0.4, 0.05], [-0.1, -0.11, -0.09, -0.1, -0.12], [0.2, 0.3]):
        assert verdicts.compared(pd.Series(values), 0)["p"] == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    for values, p in (([0.0] * 5, 1.0), ([0.5] * 5, 0.0), ([0.5], math.nan), ([math.inf] * 5, math.nan)):
        assert verdicts.compared(pd.Series(values), 0)["p"] == pytest.approx(p, nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 1))
def test_holm_is_its_procedure(p, level):
    """Step down from the least p while it is at most level / (how many are left)."""
    rejected = set()
    for left, i in zip(range(len(p), 0, -1), np.argsort(p, kind="stable"), strict=True):
        if p[i] * left > level:
            break
        rejected.add(i)
    assert {i for i, value in enumerate(verdicts.holm(p)) if value <= level} == (
        rejected if level < 1 else {*range(len(p))}
    )


def test_holm_by_hand():
    assert verdicts.holm([0.04, 0.01, math.nan, 0.03]) == pytest.approx([0.09, 0.04, 1.0, 0.09])
    assert verdicts.holm([]) == []


def test_nine_comparisons_are_told_apart_less_easily_than_one():
    clear, faint, none = (
        [-0.1, -0.101, -0.099, -0.1, -0.102],
        [0.1, 0.16, 0.05, 0.12, 0.03],
        [0.1, -0.1, 0.0, 0.2, -0.2],
    )
    values = {"a": clear, "b": faint} | {f"c{i}": none for i in range(7)}
    family = {name: verdicts.compared(pd.Series(differences), 0) for name, differences in values.items()}
    for name, found in family.items():
        found |= {"dense": verdicts.compared(pd.Series(values[name][::-1]), 0), "width": 3}
    family["b"]["by_keep"] = {}  # others have none
    verdicts.correct(family)
    for one in (family, {name: found["dense"] for name, found in family.items()}):
        assert [found["verdict"] for found in one.values()] == ["better", "worse"] + ["cannot tell"] * 7
        assert [found["verdict_corrected"] for found in one.values()] == ["better"] + ["cannot tell"] * 8
        assert one["b"]["p"] < 0.05 < one["b"]["p_corrected"] == pytest.approx(8 * one["b"]["p"])
    alone = {"b": verdicts.compared(pd.Series(faint), 0)}
    verdicts.correct(alone)
    assert alone["b"]["verdict_corrected"] == "worse"
    lines = verdicts.in_groups({"variants": {"mha": {}, **family}, "seeds": range(5), "verdicts": ["worth", "b"]})
    assert lines[0] == "worth"
    assert "means of 5 paired seeds; verdicts corrected for 9 comparisons" in lines[1]
    assert [line.partition(":")[0] for line in lines[2:]] == [
        f"loss of {what}, {verdict}"
        for what in ("tickets", "dense training")
        for verdict in ("better than MHA", "cannot tell")
    ]
    assert lines[2].endswith(": a -0.100 nat")
    words = verdicts.in_words("b", family["b"], {"variants": dict.fromkeys([*values, "mha"])})
    assert "worse tickets than MHA" in words
    assert "corrected for 9 comparisons (Holm): cannot tell (p = 0.1" in words


def make_table(seeds=5, below=0.4, variants=tuple(ATTENTIONS)):
    """Losses and errors in which every variant is worse than the one before, seeds far apart; differences as said."""
    index = pd.MultiIndex.from_product([variants, (0.3, 0.5), range(seeds)], names=["variant", "keep", "seed"])
    losses = index.to_frame(index=False).assign(what="loss", hidden=18, length=64)
    losses["difference"] = losses["variant"].map({name: 0.01 * i for i, name in enumerate(variants)})
    losses["difference"] += 0.001 * (losses["seed"] - (seeds - 1) / 2) * (losses["variant"] != "mha")
    losses["val_loss"] = 2.0 - losses["keep"] + 0.1 * losses["seed"] + losses["difference"]
    losses["val_loss_dense"] = losses["val_loss"] - 0.2
    losses["below_bigram"] = below
    losses["below_bigram_dense"] = below + 0.2
    means = losses.groupby(["variant", "keep"])["difference"].transform("mean")
    losses = losses.assign(difference_low=means - 0.001, difference_high=means + 0.001)
    losses["conclusive"] = verdicts.conclusive(losses, seeds)
    index = pd.MultiIndex.from_product(
        [variants, (8, 16, 32), (16, 64), range(seeds)], names=["variant", "hidden", "length", "seed"]
    )
    errors = index.to_frame(index=False).assign(what="error", keep=0.5)
    errors["error"] = 2.0 ** (-errors["hidden"] / 8 + errors["seed"])
    errors["error_construct"] = np.where(errors["variant"] == "kha_mlp", math.nan, errors["error"] ** 2)
    return pd.concat([losses, errors], ignore_index=True)


@one_case
@pytest.mark.parametrize(("seeds", "below", "wanted"), [(5, 0.3, True), (4, 0.3, False), (5, 0.29, False)])
def test_conclusions_need_seeds_and_training(seeds, below, wanted):
    table = make_table(seeds, below)
    assert verdicts.conclusive(table, seeds) is wanted
    for draw in (plots.loss_by_variant, plots.difference_to_mha):
        assert (SHORT in words(plots.figure_of(draw(table))).replace("\n", " ")) is not wanted


# ---------------------------------------------------------------- spikes and matrices


@given(st.integers(0, 6), st.floats(1.0, 50.0), st.floats(-5, 5))
@settings(max_examples=30)
def test_spikes_are_counted(count, height, level):
    losses = [level + 3.0 / (1 + step) for step in range(25 + 10 * count)]
    smooth = count_spikes(losses)
    for spike in range(count):
        losses[24 + 10 * spike] += height
        losses[25 + 10 * spike] += height / 1.5  # a neighbour that belongs to it
    assert smooth == 0
    assert count_spikes(losses) == count


def test_a_loss_that_is_no_number_is_a_spike():
    assert count_spikes([2.0] * 30 + [math.nan]) == 1
    assert count_spikes([2.0] * 19 + [9.0]) == 0  # too early to know


def test_rank_and_entropy():
    same, alike = torch.eye(6), torch.full((2, 6, 6), 1 / 6)
    assert statistics(same) == pytest.approx({"rank": 6.0, "effective_rank": 6.0, "entropy": 0.0})
    assert statistics(alike) == pytest.approx({"rank": 1, "effective_rank": 1, "entropy": math.log(6)})
    faint = torch.diag(torch.tensor([1.0, 1.0, 1e-4]))
    assert statistics(faint)["rank"] == 2


@pytest.mark.parametrize("variant", [LINEAR, *(name for name in ATTENTIONS if has_matrix(name))])
@pytest.mark.parametrize("causal", [False, True])
def test_the_matrix_is_what_tokens_attend_with(study, variant, causal):
    options = options_of(study, variant, 16, "natural")
    module = attention_of(variant)(6, 6, 2, 3, causal=causal, dtype=torch.float64, **options)
    x = slth.weights.inits.normal((3, 16, 6), 1.0, seed=0, name="x").double()
    heads = matrix_of(module, x) @ repeat_heads(x.unsqueeze(-3) @ module.value, 2) @ module.output
    assert torch.allclose(heads.sum(-3), module(x), atol=1e-12)


def test_spikes_and_matrices_are_of_what_was_asked_for(config, tmp_path, monkeypatch):
    """Of a class of the user's own, too, which states a matrix or does not."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    variants = ["gqa", "kha_linear", "own.py:Even"]
    start = dict.fromkeys(("mixing_init", "dense_mixing_init"), "random")
    jobs = mixing.Config(**config(variants=variants, seeds=1, **start)).study.jobs
    assert {job.variant for job in jobs if job.what == "spikes"} == {"mha", *variants}
    assert {job.variant for job in jobs if job.what == "matrix"} == {"mha", "gqa", "own.py:Even"}


def test_linear_attention_stays_linear_and_mhla_positive(study):
    for variant in (LINEAR, "mhla"):
        model, _ = network(study, variant, 0, ticket=False)
        start = [inner.mixing.detach().clone() for inner in attentions(model)]
        pruning.train(model, study.data, study.how, 0.05, 3, variant)
        for before, inner in zip(start, attentions(model), strict=True):
            if variant == "mhla":
                inner(torch.zeros(1, 4, 36))
                mixing = inner.mixing.detach()
                assert not torch.equal(before, mixing)
                assert 0 < float(mixing.min()) <= float(mixing.max()) <= 1
            else:
                assert torch.equal(inner.mixing, torch.ones_like(inner.mixing))


def test_constructions_are_there_where_the_theory_has_them(study):
    narrow = replace(study, d=2, config=replace(study.config, target_norm=1.0))
    target = target_of(narrow, 0)
    found = {}
    for variant, hidden in itertools.product(ATTENTIONS, (8, 32)):
        job = Job("error", variant, 0, hidden=hidden, length=8)
        test = examples(target, 16, job, "test")
        width = width_of(narrow, variant, 2, hidden, 8)
        found[variant, hidden] = constructed_error(narrow, job, width, target, test)
    for variant, kind in ATTENTIONS.items():
        if kind.facts.constructible is True:
            assert found[variant, 32] < 0.1 * found[variant, 8]
        else:
            assert math.isnan(found[variant, 32])


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


# ---------------------------------------------------------------- the figures


def test_the_figures_show_the_table():
    table = make_table()
    losses = table[table["what"] == "loss"]
    axes = plots.loss_by_variant(table)
    for name in ATTENTIONS:
        own = losses[losses["variant"] == name]
        wanted = own.groupby("keep")["val_loss"].mean().to_numpy()
        assert any(np.array_equal(line.get_ydata(), wanted) for line in lines_of(axes))
    panels = plots.difference_to_mha(table)
    assert [axes.get_title() for axes in panels] == ["keep 0.3", "keep 0.5"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == list(ATTENTIONS)[1:]
    bars = [line.get_xdata() for line in panels[0].get_lines() if len(line.get_xdata()) == 2][1:]
    at = losses[losses["keep"] == 0.3].groupby("variant", sort=False)[["difference_low", "difference_high"]].first()
    assert np.allclose(bars, at.to_numpy()[1:])
    panels = plots.error_by_variant(table)
    assert [axes.get_title() for axes in panels] == ["learned, $T$ = 16", "learned, $T$ = 64", "constructed, $T$ = 16"]
    assert [len(lines_of(axes)) for axes in panels] == [len(ATTENTIONS), len(ATTENTIONS), len(ATTENTIONS) - 1]
    errors = table[(table["what"] == "error") & (table["length"] == 64)]
    medians = errors[errors["variant"] == "gta"].groupby("hidden")["error"].median()
    drawn = [line.get_ydata() for line in lines_of(panels[1]) if len(line.get_xdata()) == 3]
    assert any(np.allclose(y, medians, rtol=1e-12) for y in drawn)


@pytest.mark.parametrize("draw", [plots.loss_by_variant, plots.difference_to_mha, plots.error_by_variant])
def test_a_table_without_what_is_drawn_is_refused(draw):
    with pytest.raises(ValueError, match="lacks the columns"):
        draw(pd.DataFrame({"variant": ["mha"]}))
    with pytest.raises(ValueError, match="no rows with what="):
        draw(make_table().assign(what="matrix"))
