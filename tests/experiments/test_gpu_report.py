"""What measures the kernels on a GPU, as far as it runs without one: checks in the interpreter, refusals, no Sacred."""

import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import gpu_plan
import pandas as pd
import pytest
import torch
from command_lines import launched
from helpers import EXPERIMENTS
from tables import one_case

import slth.experiments
from slth import kernels
from slth.experiments.studies.speed.gpu import command, processes, report
from slth.experiments.studies.speed.gpu.hour import Hour
from slth.experiments.studies.speed.gpu.worker import Job
from slth.kernels import cases
from slth.kernels.timing import Timing, compare, interleave

CPU = torch.device("cpu")


def test_every_kernel_has_cases_and_every_case_an_area():
    kernels = {case.kernel for case in cases.all_cases()}
    assert kernels == {kernel for area in report.AREAS.values() for kernel in area}
    names = [case.name for case in cases.all_cases()]
    assert len(set(names)) == len(names)


def test_a_check_that_fails_keeps_its_area_from_being_timed(monkeypatch):
    few = [case for case in cases.all_cases() if case.kernel == "select_threshold" and not case.large][:2]
    monkeypatch.setattr(report, "all_cases", lambda: few)
    tasks = report.check_tasks(["selection", "mhla"])
    checked = report.checks_of(report.check(task, CPU) for task in tasks)
    assert {*checked["case"]} == {case.name for case in few}
    assert checked["holds"].all()
    assert report.obstacle("selection", checked, []) == report.obstacle("mhla", checked, tasks) == ""
    assert report.obstacle("selection", checked, tasks[1:]).endswith("checks of select_threshold were not done")
    lost = report.checks_of([report.lost("check", tasks[0], "its process ended with status -11")])
    assert report.obstacle("selection", lost, []) == "selection: not timed, for checks of select_threshold failed"
    summary = report.summarise(lost, report.times_of([report.lost("time", "mhla", "gone")]), CPU)
    assert summary["checks_failed"] == [f"{few[0].name} float32 its process ended with status -11: inf, allowed 0"]
    assert command.failures(summary) == 2


def test_a_case_that_raises_fails():
    def fails(tensors, impl):
        raise RuntimeError("out of resource: shared memory")

    case = cases.Case("broken", "attention", lambda device: {}, fails)
    (row,) = report._checked(case, torch.float32, CPU)
    assert not row["holds"]
    assert "out of resource" in row["output"]


def test_a_wrong_result_fails():
    case = cases.Case(
        "off", "attention", lambda device: {"x": torch.ones(3)}, lambda t, impl: {"y": t["x"] + (impl == "triton")}
    )
    (row,) = report._checked(case, torch.float32, CPU)
    assert row["difference"] == 1.0
    assert not row["holds"]


def test_a_step_under_masks_is_timed_beside_a_dense_one(monkeypatch):
    pytest.importorskip("transformers")
    from slth.experiments.studies.speed.gpu import step

    monkeypatch.setattr(step, "interleave", lambda turns, rounds, warmups: interleave(turns, rounds, warmups=0))
    with kernels.use("triton"):
        (row,) = step.rows(CPU, 1, 0, step.Shape(1, 64, 1, 8))
    assert row["peer"] == "dense"
    assert row["floor_s"] > 0
    assert 0 < row["error_ours"] < 2e-5  # 0 would say that both ways were the same one


# ---------------------------------------------------------------- measuring, its parts replaced


def area(rows):
    """What stands in for a bench.py: it gives these rows, or raises them."""

    def found(device, rounds, seed):
        if isinstance(rows, BaseException):
            raise rows
        return rows

    return SimpleNamespace(rows=found)


def row(size, error):
    timing = Timing([2.0], [None])
    return compare("what", size, timing, "peer", timing, error, math.nan)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Run the command on areas given as rows or errors: (status, folder)."""

    def run(**areas):
        held = {"kernel": "select_threshold", "case": "case", "dtype": "float32", "output": "out"}
        held |= {"difference": 0.0, "allowed": 0.0, "holds": True}
        monkeypatch.setattr(report, "AREAS", dict.fromkeys(areas, ("select_threshold",)))
        monkeypatch.setattr(report, "check_tasks", lambda areas: ["float32 case"])
        monkeypatch.setattr(report, "check", lambda *given: [held])
        monkeypatch.setattr(command, "check_device", lambda device: None)
        known = {name: area(rows) for name, rows in areas.items()}
        monkeypatch.setattr(report, "_bench", known.__getitem__)
        return command.main(["device=cpu", f"only={list(areas)}", f"out={tmp_path}"]), tmp_path

    return run


def test_what_is_right_is_told(measured):
    status, folder = measured(one=[row("a", 0.0)], two=[row("b", report.WORST)])
    assert status == 0
    assert pd.read_csv(folder / "results.csv")["ratio"].tolist() == [1.0, 1.0]
    files = {"checks.csv", "results.csv", "summary.json", "speed.png", "parts"}
    assert {file.name for file in folder.iterdir()} == files


def test_an_area_that_raises_leaves_the_others_their_times(measured):
    status, folder = measured(one=RuntimeError("out of memory"), two=[row("b", 1e-3)])
    assert status == 1
    assert pd.read_csv(folder / "results.csv")["size"].tolist() == ["b"]
    assert len(pd.read_csv(folder / "checks.csv")) == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["times_failed"] == ["one: not timed, RuntimeError: out of memory"]


@pytest.mark.parametrize("error", [2 * report.WORST, math.nan, math.inf])
def test_what_is_wrong_at_the_timed_size_has_no_time(measured, error):
    status, folder = measured(one=[row("right", 1e-3), row("wrong", error)])
    assert status == 1
    right, wrong = pd.read_csv(folder / "results.csv").to_dict("records")
    assert right["ours_s"] == 2.0
    assert all(math.isnan(wrong[column]) for column in ("ours_s", "peer_s", "ratio", "ours_s_low", "peer_s_high"))
    summary = json.loads((folder / "summary.json").read_text())
    assert [ratio["size"] for ratio in summary["ratios"]] == ["right"]
    assert summary["times_failed"][0].startswith("one: wrong: differs by")


def test_an_area_whose_package_is_missing_is_left_out_with_a_note(measured):
    missing = ModuleNotFoundError("No module named 'transformers'", name="transformers")
    status, folder = measured(one=missing, two=[row("b", 1e-3)])
    assert status == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["times_skipped"] == ["one: not timed, ModuleNotFoundError: No module named 'transformers'"]


def test_checks_are_kept_before_anything_is_timed(measured, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measured(one=[row("a", 0.0)], two=KeyboardInterrupt())
    assert {file.name for file in tmp_path.iterdir()} == {"checks.csv", "results.csv", "parts"}
    status, _ = measured(one=KeyboardInterrupt(), two=[row("b", 0.0)])  # goes on: one is not timed again
    assert status == 0
    assert pd.read_csv(tmp_path / "results.csv")["size"].tolist() == ["a", "b"]


def test_a_folder_belongs_to_one_measurement(measured, tmp_path, capsys):
    measured(one=[row("a", 0.0)])
    assert command.main(["device=cpu", "only=one", "rounds=2", f"out={tmp_path}"]) == 1
    assert "has a measurement of other settings" in capsys.readouterr().err


def test_no_area_begins_after_its_time(measured):
    _, folder = measured(one=[row("a", 0.0)])
    hour = Hour("cpu", ("one",), 15, 0, 1e-9, 14, folder / "parts")
    (folder / "parts" / "time.one.jsonl").unlink()
    timed, summary = hour.measure(lambda name, contents: None)
    assert timed.table.empty
    assert summary["times_skipped"] == ["one: not timed, no time was left"]


def test_tasks_that_kill_or_hold_up_their_process_are_lost_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(gpu_plan.__file__))
    job = Job("gpu_plan", "time", str(tmp_path / "one"), ("dies", "spoils", "b"), "cpu", 3, 0)
    processes.do([job], math.inf)
    assert job.found == {"dies": "lost: its process ended with status 3", "spoils": "spoils 3", "b": "b 3"}
    job = Job("gpu_plan", "time", str(tmp_path / "two"), ("hangs",), "cpu", 3, 0)
    started = time.monotonic()
    processes.do([job], started + 1.0)
    assert time.monotonic() < started + 60.0  # it would hang for 600 s
    assert job.found == {}
    for _ in range(2):  # it was begun in two other runs
        job.note("hangs")
    processes.do([job], math.inf)
    assert job.found == {"hangs": "lost: its process ended twice"}


def test_a_process_that_starts_while_all_are_stopped_ends_too(tmp_path, monkeypatch):
    crew, start, started = processes._Crew(math.inf), subprocess.Popen, []

    def stopped_meanwhile(command):
        crew.stop()
        started.append(start([sys.executable, "-c", "import time; time.sleep(30)"]))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", stopped_meanwhile)
    job = Job("gpu_plan", "time", str(tmp_path / "one"), ("a",), "cpu", 3, 0)
    crew.take_through(job)
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert job.found == {}


@one_case
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=cuda"], "device=cuda: must be cpu, or a CUDA device"),
        (["minutes=0"], "minutes=0: must be a number > 0, or None"),
        (["what=foo"], "must be one or several of attention, grouped, masked_linear"),
        (["rounds=0"], "rounds=0: must be an int >= 1"),
        (["hidden=3"], "hidden=3: unknown, must be one of device"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, message, capsys):
    if torch.cuda.is_available() and words == ["device=cuda"]:
        pytest.skip("there is a CUDA device")
    assert command.main(words) == 1
    assert message in capsys.readouterr().err


NO_GPU = "must be cpu, or a CUDA device"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_command_says_so(tmp_path):
    ran = launched("speed", tmp_path, "with", "device=cuda")
    assert (ran.returncode, len(ran.stderr.strip().splitlines())) == (1, 1), ran.stderr
    assert NO_GPU in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_and_without_sacred_the_command_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["speed.py", "with", "device=cuda"])
    for name in [name for name in sys.modules if f"{name}.".startswith(("sacred.", "slth.experiments.lab."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sacred", None)
    monkeypatch.delattr(slth.experiments, "lab")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXPERIMENTS / "speed.py"), run_name="__main__")
    err = capsys.readouterr().err
    assert (end.value.code, len(err.splitlines())) == (1, 1), err
    assert NO_GPU in err
    assert not list(tmp_path.iterdir())


def test_a_stored_run_with_failures_is_failed_and_whole(monkeypatch, tmp_path):
    pytest.importorskip("sacred")
    found = {"rows": [], "failed": ["seeded: not timed, OSError: gone"], "skipped": []}
    monkeypatch.setattr(command, "check_device", lambda device: None)
    monkeypatch.setattr(report, "check_tasks", lambda areas: [])
    monkeypatch.setattr(report, "time", lambda *given: found)
    ran = launched("speed", tmp_path, "-F", tmp_path, "with", "device=cpu:0", "only=seeded")
    assert ran.returncode == 1
    assert "1 checks or measurements failed" in ran.stderr
    folder = tmp_path / "1"
    assert json.loads((folder / "run.json").read_text())["status"] == "FAILED"
    assert {"checks.csv", "results.csv", "summary.json"} <= {file.name for file in folder.iterdir()}
