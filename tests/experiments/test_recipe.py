"""Recipes of searches: what is trained, what is said of it, what is refused."""

import math

import numpy as np
import pandas as pd
import pytest
from helpers import cats
from sacred.observers import FileStorageObserver
from scipy import stats

from slth.experiments import lab, recipe
from slth.experiments.studies.gpt2 import recipes
from slth.models import gpt2

pytestmark = [pytest.mark.xdist_group("recipe"), pytest.mark.usefixtures("blank_figures")]

SMALL = {"size": "tiny*0.25", "length": 16, "steps": 6, "batch": 4, "windows": 8, "seeds": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(cats(150))
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory, text):
    """A run of three recipes: (measurements, summary)."""
    folder = tmp_path_factory.mktemp("stored")
    recipe.ex.observers[:] = [FileStorageObserver(folder)]
    changes = {"data": str(text), "recipes": ["base", "base(kind=signed)", "dense"]}
    try:
        recipe.ex.run(config_updates=SMALL | changes)
    finally:
        recipe.ex.observers[:] = []
    results, summary, _ = lab.load_run(folder / "1")
    return results, summary, folder / "1"


def test_each_recipe_meets_each_seed(stored):
    results, summary, folder = stored
    assert sorted(zip(results["recipe"], results["seed"], strict=True)) == [
        (name, seed) for name in ("base", "base(kind=signed)", "dense") for seed in (0, 1)
    ]
    assert results["val_loss"].gt(0).all()
    assert results.groupby("recipe")["val_loss"].nunique().eq(2).all()
    assert (folder / "loss_by_recipe.png").exists()
    assert summary["dense"] == "dense"


def test_what_is_said(stored):
    results, summary, _ = stored
    losses = results.pivot(index="seed", columns="recipe", values="val_loss")
    found = summary["recipes"]["base(kind=signed)"]
    difference = losses["base(kind=signed)"] - losses["base"]
    assert found["difference"] == pytest.approx(difference.mean())
    assert found["p_corrected"] == pytest.approx(stats.ttest_1samp(difference, 0.0).pvalue)
    assert "difference" not in summary["recipes"]["dense"]


def test_bits_are_those_of_masks_and_factors():
    config = gpt2.config("tiny", vocabulary=256, length=128)
    tables, blocks = 384 * 144, 995_328
    mixed = recipes.Recipe(keep=0.33, embedding_kind="signed(levels=2)", embedding_keep=0.8)
    of_prune = -(0.33 * math.log2(0.33) + 0.67 * math.log2(0.67))
    expected = (tables * math.log2(5) + blocks * of_prune) / (tables + blocks)
    assert mixed.bits(config) == pytest.approx(expected)
    rows = 384 + 4 * (3 * 144 + 144 + 576 + 144)
    scaled = recipes.Recipe(keep=0.33, embedding_kind="signed(levels=2)", embedding_keep=0.8, scale="row")
    assert scaled.bits(config) == pytest.approx(expected + 32 * rows / (tables + blocks))


def test_shares_have_students_interval():
    dense, losses = pd.Series([2.0, 2.1, 2.2]), pd.Series([2.1, 2.3, 2.25])
    found = recipes.shares(3.0, dense, losses)
    values = (3.0 - losses) / (3.0 - dense)
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    np.testing.assert_allclose([found["recovered_low"], found["recovered_high"]], [low, high])


def test_all_known_recipes_fit_the_default_model():
    config = gpt2.config("tiny", vocabulary=256, length=128)
    for name in recipes.RECIPES:
        recipes.recipe_of(name).search(0).check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": "none"}, r"recipes='none': must be one of base, a factor a matrix.*no recipe 'none'"),
        ({"recipes": []}, r"recipes=\[\]: must be a recipe or a list of them"),
        ({"recipes": ["base", "base"]}, "none twice"),
        ({"recipes": ["base(kept=0.4)"]}, r"no field 'kept', must be one of init, base_std"),
        ({"recipes": ["base(keep=0)"]}, r"keep=0: must be a number in \(0, 1\]"),
        ({"recipes": ["base(kind=n_of_m)"]}, r"must be a recipe that fits \(kind=n_of_m\(n=2, m=4\) of"),
        ({"recipes": ["base(method=biprop)"]}, r"Biprop must have plain masks"),
    ],
)
def test_bad_recipes_are_refused(changes, message):
    with pytest.raises(lab.BadConfig, match=message):
        recipe.Config(**(SMALL | changes))
