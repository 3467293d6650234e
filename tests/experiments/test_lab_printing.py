"""What cannot be printed fails no run."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from small_experiment import SCRIPT, make_experiment, read

from slth.experiments import lab
from slth.experiments.lab import border, command_line


def nobody():
    """A pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    ("store", "options"),
    [
        ("runs", lambda: {"stdout": nobody(), "stderr": nobody()}),
        ("runs", lambda: {"preexec_fn": lambda: os.closerange(0, 3)}),
        ("runs", lambda: dict.fromkeys(("stdout", "stderr"), os.open("/dev/full", os.O_WRONLY))),
        ("d\xe9p\xf4t", lambda: {"stdout": subprocess.DEVNULL, "env": {**os.environ, "PYTHONIOENCODING": "ascii"}}),
    ],
    ids=["reader gone", "closed", "full", "narrow"],
)
def test_lines_that_cannot_be_printed_fail_no_run(tmp_path, store, options):
    (tmp_path / "small.py").write_text(SCRIPT)
    command = [sys.executable, "small.py", "-F", store, "with", "end=no figure"]
    done = subprocess.run(command, cwd=tmp_path, check=False, **options())
    run = tmp_path / store / "1"
    assert (done.returncode, read(run / "run.json")["status"]) == (0, "COMPLETED")
    assert (run / "cout.txt").read_text() == f"results: {store}/1/results.csv\n"


def test_what_outlives_a_run_still_prints(capsys):
    with border.stdout_capturing.tee_output_python() as captured:
        kept = sys.stdout  # as colorama does, and handlers of logging
        print("within")
    kept.write("after\n")
    kept.flush()
    assert captured.get() == "within\n"
    assert capsys.readouterr().out == "within\nafter\n"


def test_a_name_that_is_no_text_is_stored_all_the_same():
    assert command_line.captured("results: \udcff/1\n") == "results: \\udcff/1\n"


def test_a_file_named_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    monkeypatch.setattr(sys, "argv", ["small.py"])
    with pytest.raises(SystemExit, match=r"runs=runs: cannot write there .* choose another with -F DIR"):
        lab.launch(make_experiment())


def test_an_id_that_is_taken_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "7").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["small.py", "-i", "7"])
    with pytest.raises(SystemExit, match="--id=7: runs/7 exists already"):
        lab.launch(make_experiment())


@dataclass(frozen=True)
class Faulty(lab.Options):
    """One whose own check fails."""

    hidden: int = lab.integer(1, help="a width")

    def check(self):
        1 // 0  # noqa: B018


def test_an_error_of_the_check_itself_is_shown_in_debug_mode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["small.py", "--debug"])
    with pytest.raises(ZeroDivisionError):
        lab.launch(make_experiment(Faulty))
