"""What is said of attentions side by side, and drawn."""

import math

import numpy as np
import pandas as pd
import pytest
from figure_tables import lines_of, words
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tables import one_case

from slth import plots
from slth.attention import ATTENTIONS
from slth.experiments.studies import comparing
from slth.experiments.studies.mixing import verdicts
from slth.plots.mixing import SHORT

# ---------------------------------------------------------------- what is said


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=7), st.floats(-3, 3))
@settings(max_examples=25)
def test_intervals_move_with_the_differences(values, shift):
    found, moved = (comparing.compared(pd.Series(v), 3) for v in (values, [v + shift for v in values]))
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
    assert comparing.bootstrap(values, seed=0) == pytest.approx((peer.low, peer.high), abs=0.02)


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
    assert comparing.compared(pd.Series(values), 0)["verdict"] == verdict


def test_p_is_that_of_student_s_test():
    for values in ([-0.3, 0.1, 0.25, 0.4, 0.05], [-0.1, -0.11, -0.09, -0.1, -0.12], [0.2, 0.3]):
        assert comparing.compared(pd.Series(values), 0)["p"] == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    for values, p in (([0.0] * 5, 1.0), ([0.5] * 5, 0.0), ([0.5], math.nan), ([math.inf] * 5, math.nan)):
        assert comparing.compared(pd.Series(values), 0)["p"] == pytest.approx(p, nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 1))
def test_holm_is_its_procedure(p, level):
    """Step down from the least p while it is at most level / (how many are left)."""
    rejected = set()
    for left, i in zip(range(len(p), 0, -1), np.argsort(p, kind="stable"), strict=True):
        if p[i] * left > level:
            break
        rejected.add(i)
    assert {i for i, value in enumerate(comparing.holm(p)) if value <= level} == (
        rejected if level < 1 else {*range(len(p))}
    )


def test_holm_by_hand():
    assert comparing.holm([0.04, 0.01, math.nan, 0.03]) == pytest.approx([0.09, 0.04, 1.0, 0.09])
    assert comparing.holm([]) == []


def test_nine_comparisons_are_told_apart_less_easily_than_one():
    clear, faint, none = (
        [-0.1, -0.101, -0.099, -0.1, -0.102],
        [0.1, 0.16, 0.05, 0.12, 0.03],
        [0.1, -0.1, 0.0, 0.2, -0.2],
    )
    values = {"a": clear, "b": faint} | {f"c{i}": none for i in range(7)}
    family = {name: comparing.compared(pd.Series(differences), 0) for name, differences in values.items()}
    for name, found in family.items():
        found |= {"dense": comparing.compared(pd.Series(values[name][::-1]), 0), "width": 3}
    family["b"]["by_keep"] = {}  # others have none
    comparing.correct(family)
    for one in (family, {name: found["dense"] for name, found in family.items()}):
        assert [found["verdict"] for found in one.values()] == ["better", "worse"] + ["cannot tell"] * 7
        assert [found["verdict_corrected"] for found in one.values()] == ["better"] + ["cannot tell"] * 8
        assert one["b"]["p"] < 0.05 < one["b"]["p_corrected"] == pytest.approx(8 * one["b"]["p"])
    alone = {"b": comparing.compared(pd.Series(faint), 0)}
    comparing.correct(alone)
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
    table = make_table(seeds, below, ["mha", "mea"])
    assert verdicts.conclusive(table, seeds) is wanted
    for draw in (plots.loss_by_variant, plots.difference_to_mha):
        assert (SHORT in words(plots.figure_of(draw(table))).replace("\n", " ")) is not wanted


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
