"""The examples end with what they show, and are short enough to be read."""

import runpy
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT, cats
from nbclient import NotebookClient

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHOWN = {"learn_a_ticket": "2,304 of the random weights", "solve_for_a_ticket": "the same output: True"}


@pytest.fixture
def main(tmp_path, monkeypatch):
    """The main function of an example, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_is_short_and_says_how_it_is_run(path):
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert f"python examples/{path.name}" in text.split('"""')[1]


def test_construct_a_ticket(main, tmp_path):
    table = main("construct_a_ticket")(widths=(16, 48, 96), sources=2)
    mean = table.groupby("hidden")["error_mean"].median()
    assert mean.is_monotonic_decreasing
    assert (table["error_mean"] <= table["certificate"]).all()
    assert (tmp_path / "decay.png").stat().st_size > 10_000


def test_prune_gpt2(main, tmp_path):
    (tmp_path / "my.txt").write_text(cats(400))
    losses = main("prune_gpt2")("my.txt", steps=30, length=32)
    assert losses["ticket"] < losses["unigram"]
    assert (tmp_path / "gpt2.safetensors").exists()


def test_ship_a_ticket(main):
    same, distance = main("ship_a_ticket")()
    assert same
    assert distance < 1e-5


def test_compare_attentions(main):
    mean, half = main("compare_attentions")("mha", "mha", seeds=2, steps=2)
    assert (mean, half) == (0, 0)
    mean, half = main("compare_attentions")(seeds=2, steps=2)
    assert mean != 0
    assert half > 0


def test_hide_a_checkpoint(main, tmp_path):
    differences = main("hide_a_checkpoint")(steps=20)
    assert differences["exact"] == 0
    assert 0 < differences["3 bits a weight"] < 2


def test_own_loop(main):
    assert main("own_loop")() > 0.8


def outputs(path: Path, folder: Path) -> list[nbformat.NotebookNode]:
    """What the cells of a notebook give, run from the first to the last in a folder."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def kinds(of: list[nbformat.NotebookNode]) -> list[tuple[str, ...]]:
    """Text, tables and figures, in order."""
    return [(output.output_type, *sorted(output.get("data", ()))) for output in of]


@pytest.mark.parametrize("name", SHOWN)
def test_notebooks_give_what_they_show(name, tmp_path):
    path = ROOT / "examples" / "notebooks" / f"{name}.ipynb"
    stored = [out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", [])]
    made = outputs(path, tmp_path)
    assert kinds(made) == kinds(stored)
    assert any("image/png" in output.get("data", ()) for output in made)
    for shown in (made, stored):
        assert SHOWN[name] in "".join(output.get("text", "") for output in shown)


def test_no_notebook_is_left_out():
    assert {path.stem for path in (ROOT / "examples").rglob("*.ipynb")} == set(SHOWN)
