"""The command `slth`: what it prints, and in which line it refuses."""

import os
import subprocess
import sys
import tomllib

import pytest
import torch
from helpers import EXPERIMENTS, ROOT
from safetensors.torch import load_file, save_file

import slth
from slth import cli
from slth.experiments.lab import scripts

BUILD = """
import torch

def build(width=6):
    layers = torch.nn.Linear(4, width, bias=False), torch.nn.ReLU(), torch.nn.Linear(width, 2, bias=False)
    return torch.nn.Sequential(*layers)

def broken():
    raise RuntimeError("no such\\nlayer")

three = 3
"""


def net(width=6):
    layers = torch.nn.Linear(4, width, bias=False), torch.nn.ReLU(), torch.nn.Linear(width, 2, bias=False)
    return torch.nn.Sequential(*layers)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder: build.py, and the ticket t.safetensors of random weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "build.py").write_text(BUILD)
    ticket().save("t.safetensors")
    return tmp_path


def ticket(**options):
    return slth.Ticket.of(slth.wrap(net(), 0.5, seed=0, **({"weights": "signed_constant"} | options)))


def refusal(capsys, *arguments):
    """The one line in which a command is refused."""
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_show_and_summary_are_those_of_a_ticket(folder, capsys):
    assert cli.main(["show", "t.safetensors"]) == 0
    assert capsys.readouterr().out == ticket().describe() + "\n"
    assert cli.main(["summary", "t.safetensors"]) == 0
    assert capsys.readouterr().out == f"{ticket().summary()}\n"


@pytest.mark.parametrize("place", ["build.py:build", "build:build(width=6)"])
def test_apply_writes_the_tickets_network(folder, capsys, place):
    assert cli.main(["apply", "t.safetensors", place, "--out", "out.safetensors"]) == 0
    assert capsys.readouterr().out.startswith("out.safetensors: ")
    state = load_file("out.safetensors")
    expected = ticket().apply(net()).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    sys.modules.pop("build", None)


def test_apply_to_the_network_that_was_pruned(folder, capsys):
    torch.manual_seed(3)
    trained = net()
    save_file(trained.state_dict(), "base.safetensors")
    pruned = slth.Ticket.of(slth.wrap(trained, 0.5, weights=None, seed=0))
    pruned.save("t.safetensors")
    arguments = ("apply", "t.safetensors", "build.py:build", "--out", "out.safetensors")
    assert "not that of the ticket's base" in refusal(capsys, *arguments)
    assert cli.main([*arguments, "--base", "base.safetensors"]) == 0
    capsys.readouterr()
    assert (load_file("out.safetensors")["0.weight"] == 0).float().mean() == 0.5
    assert "base=none: must hold the weights of build.py:build" in refusal(capsys, *arguments, "--base", "none")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["build.py", "--out", "o"], "MODULE=build.py: must be the place of a class or function"),
        (["build.py:three", "--out", "o"], "MODULE=build.py:three: build.py has no class or function three"),
        (["build.py:broken", "--out", "o"], "cannot be built (RuntimeError: no such"),
        (["build.py:build(width=7)", "--out", "o"], "0.weight: is float32 (7, 4), must be float32 (6, 4)"),
        (["build.py:build", "--out", "none/o"], "--out=none/o: must be in a folder that exists"),
    ],
)
def test_apply_refuses_in_a_line(folder, capsys, arguments, line):
    assert line in refusal(capsys, "apply", "t.safetensors", *arguments)
    assert not (folder / "o").exists()


def test_list_has_every_experiment_and_what_it_is(capsys):
    assert cli.main(["list"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.split("\n\n")[0].splitlines())
    assert list(rows) == scripts.names()
    assert rows["constant"].strip().startswith("Measure the constant C of Lemma 7")


def test_run_is_the_script_with_the_same_arguments(monkeypatch):
    called = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append((program, arguments)))
    cli.main(["run", "constant", "with", "smoke", "seed=1", "-F", "elsewhere", "--help"])
    script = str(cli.EXPERIMENTS / "constant.py")
    assert os.path.samefile(script, EXPERIMENTS / "constant.py")
    rest = ["with", "smoke", "seed=1", "-F", "elsewhere", "--help"]
    assert called == [(sys.executable, [sys.executable, script, *rest])]


def test_run_refuses_what_it_does_not_know(capsys, monkeypatch):
    line = refusal(capsys, "run", "aprox_error", "with", "smoke")
    assert line.startswith("EXPERIMENT=aprox_error: must be one of approx_error, constant, ")
    assert line.endswith("; did you mean approx_error?\n")
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert refusal(capsys, "run", "rate") == 'sacred is not installed: pip install "slth[experiments]"\n'


def test_help_is_quick():
    """Neither help nor the list loads torch."""
    code = "import sys; from slth import cli; cli.main(['list']); print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"


def test_the_command_is_installed():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {"slth": "slth.cli:main"}
    done = subprocess.run(
        [sys.executable, "-m", "slth", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: slth [-h] COMMAND ...")
