"""CONTRIBUTING's recipes do what they say."""

import re
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd
import pytest
import torch
from legible import require_legible
from regression import fit, wrapped

import slth
from slth import kernels, plots
from slth.attention import find
from slth.experiments import studies
from slth.experiments.lab import scripts
from slth.kernels.cases import TOLERANCE, differences
from slth.plots import registry
from slth.search import method

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
#: By file, the one that is named last before the code.
RECIPES = dict(re.findall(r"`([\w/]+\.py)`(?:(?!\.py`|```).)*```python\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def recipe(tmp_path):
    """Write the file of a recipe into a folder. Returns its path."""

    def written(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECIPES[name])
        return path

    return written


def imported(path, name):
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", RECIPES)
def test_the_style_is_that_of_the_project(name):
    for command in (["check", "--quiet"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--stdin-filename", name, "-"]
        done = subprocess.run(ruff, input=RECIPES[name], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_attention(recipe):
    kind = find(f"{recipe('slth/attention/tempered.py')}:TemperedAttention")
    module, x = kind(d_in=4, d_out=3, heads=2, hidden=2, temperature=3.0), torch.ones(2, 5, 4).cumsum(1)
    assert torch.allclose(module(x), module.reference(x), atol=1e-6)


def test_a_search(recipe):
    search, model = method(f"{recipe('slth/search/momentum.py')}:Momentum(decay=0.5)"), wrapped()
    fit(model, search, 3)
    means = [masked.buffer("mean") for masked in slth.handle(model).weights.values()]
    assert all(mean.any() for mean in means)
    search.prepare(model)  # as a second search of the kind does, which begins anew
    assert not any(masked.buffer("mean").any() for masked in slth.handle(model).weights.values())


def test_an_experiment(recipe, monkeypatch):
    sums = imported(recipe("experiments/studies/sums/__init__.py"), "slth.experiments.studies.sums")
    monkeypatch.setitem(sys.modules, sums.__name__, sums)
    monkeypatch.setattr(studies, "sums", sums, raising=False)
    ex = scripts.load(recipe("experiments/sums.py"))
    config, changed = scripts.resolve(ex, {}, ["smoke"])
    assert changed == {"candidates": [4, 8], "problems": 50}
    assert config == changed | {"seed": 0}
    imported(recipe("tests/experiments/test_sums.py"), "test_sums").test_more_candidates_come_nearer()


def test_a_figure(recipe, monkeypatch):
    """One file, found by listing, is all that it takes to be drawn of one run and of several."""
    path = recipe("slth/plots/sums.py")
    monkeypatch.setitem(sys.modules, "slth.plots.sums", imported(path, "slth.plots.sums"))
    monkeypatch.setattr(registry, "__file__", str(path))
    entries, curves = (tuple(registry._listed(name)) for name in ("FIGURES", "CURVES"))
    monkeypatch.setattr(registry, "ENTRIES", entries)
    table = pd.DataFrame({"candidates": [4, 8, 12], "error_median": [0.1, 0.01, 0.001]})
    for size in plots.SIZES:
        figures = plots.figures(table, layout=plots.Layout(size))
        assert list(figures) == ["error_vs_candidates"]
        require_legible(figures["error_vs_candidates"])
    (line,) = figures["error_vs_candidates"].axes[0].lines
    assert line.get_ydata() == pytest.approx([0.1, 0.01, 0.001])
    assert list(plots.across_runs([({"seed": seed}, table) for seed in (0, 1)], curves)) == ["error_vs_candidates"]


def test_a_kernel(recipe, tmp_path, monkeypatch):
    folder = tmp_path / "gated"
    folder.mkdir()
    for name in ("__init__.py", "reference.py", "triton.py", "cases.py"):
        recipe(name).rename(folder / name)
    monkeypatch.setattr(kernels, "__path__", [*kernels.__path__, str(tmp_path)])
    cases = import_module("slth.kernels.gated.cases")
    for case in cases.CASES:
        assert max(differences(case, torch.float32, torch.device("cpu")).values()) <= TOLERANCE[torch.float32]
    (compiled,) = cases.offline_cases()
    assert set(compiled.kernel.arg_names) == {*compiled.types, *compiled.constants}


def test_a_statement(recipe):
    statement = imported(recipe("proofs_check/norms.py"), "norms").check(0.2)
    assert statement.holds
    assert (len(statement.checks), len(statement.controls)) == (2, 4)
