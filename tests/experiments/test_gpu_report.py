"""What measures the kernels on a GPU, as far as it runs without one: checks in the interpreter, refusals, no Sacred."""

import json
import math
import runpy
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from command_lines import launched
from helpers import EXPERIMENTS
from tables import one_case

import slth.experiments
from slth import kernels
from slth.experiments.studies.speed.gpu import command, report
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
    checked = report.checks(["selection", "mhla"], CPU)
    assert {*checked["case"]} == {case.name for case in few}
    assert checked["holds"].all()
    broken = pd.DataFrame([checked.iloc[0].to_dict() | {"holds": False, "difference": 1.0}])
    timed = report.times(["selection"], broken, CPU, 1, 0)
    assert timed.table.empty
    assert timed.skipped == ["selection: not timed, for checks of select_threshold failed"]
    summary = report.summarise(broken, timed, CPU)
    assert len(summary["checks_failed"]) == 1
    assert command.failures(summary) == 1


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
        held = pd.DataFrame(
            [["select_threshold", "case", "float32", "out", 0.0, 0.0, True]], columns=report.CHECK_COLUMNS
        )
        monkeypatch.setattr(report, "AREAS", dict.fromkeys(areas, ("select_threshold",)))
        monkeypatch.setattr(report, "checks", lambda areas, device: held)
        monkeypatch.setattr(command, "check_device", lambda device: None)
        known = {name: area(rows) for name, rows in areas.items()}
        monkeypatch.setattr(report, "_bench", known.__getitem__)
        return command.main(["device=cpu", f"what={list(areas)}", f"out={tmp_path}"]), tmp_path

    return run


def test_what_is_right_is_told(measured):
    status, folder = measured(one=[row("a", 0.0)], two=[row("b", report.WORST)])
    assert status == 0
    assert pd.read_csv(folder / "results.csv")["ratio"].tolist() == [1.0, 1.0]
    assert {file.name for file in folder.iterdir()} == {"checks.csv", "results.csv", "summary.json", "speed.png"}


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
        measured(one=KeyboardInterrupt())
    assert [file.name for file in tmp_path.iterdir()] == ["checks.csv"]


@one_case
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=cuda"], "device=cuda: must be cpu, or a CUDA device"),
        (["what=foo"], "must be one or several of attention, masked_linear"),
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
    broken = report.Times(pd.DataFrame(columns=report.COLUMNS), ["one: not timed, OSError: gone"], [])
    row = ["k", "c", "float32", "out", 0.0, 0.0, True]
    monkeypatch.setattr(command, "check_device", lambda device: None)
    monkeypatch.setattr(report, "checks", lambda areas, device: pd.DataFrame([row], columns=report.CHECK_COLUMNS))
    monkeypatch.setattr(report, "times", lambda *given: broken)
    ran = launched("speed", tmp_path, "-F", tmp_path, "with", "device=cpu:0", "what=seeded")
    assert ran.returncode == 1
    assert "1 checks or measurements failed" in ran.stderr
    folder = tmp_path / "1"
    assert json.loads((folder / "run.json").read_text())["status"] == "FAILED"
    assert {"checks.csv", "results.csv", "summary.json"} <= {file.name for file in folder.iterdir()}
