"""The examples end with what they show, and are short enough to be read."""

import runpy

import pytest
from helpers import ROOT, cats

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


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
