"""What measures the kernels on a GPU, as far as it runs without one: checks in the interpreter, refusals, no Sacred."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

from benchmarks import cases  # noqa: E402
from benchmarks.gpu import command, report, step  # noqa: E402

CPU = torch.device("cpu")


def test_every_kernel_has_cases_and_every_case_an_area():
    kernels = {case.kernel for case in cases.all_cases()}
    assert kernels == {kernel for area in report.AREAS.values() for kernel in area}
    names = [case.name for case in cases.all_cases()]
    assert len(set(names)) == len(names)


def test_a_check_that_fails_keeps_its_area_from_being_timed(capsys):
    checked = report.checks(["selection"], CPU, large=False)
    assert len(checked) > 5
    assert checked["holds"].all()
    broken = pd.DataFrame([checked.iloc[0].to_dict() | {"holds": False, "difference": 1.0}])
    assert report.times(["selection"], broken, CPU, 1, 0).empty
    assert "selection: not timed, for checks of select_threshold failed" in capsys.readouterr().out
    summary = report.summarise(broken, pd.DataFrame(), CPU)
    assert len(summary["checks_failed"]) == 1


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


def test_a_step_under_masks_is_timed_beside_a_dense_one():
    (row,) = step.rows(CPU, 1, 0, step.Shape(1, 64, 2, 8))
    assert row["peer"] == "dense"
    assert row["floor_s"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=cuda"], "device=cuda: must be cpu, or a CUDA device"),
        (["what=foo"], "must be one or several of masked_linear, selection"),
        (["rounds=0"], "rounds=0: must be an int >= 1"),
        (["hidden=3"], "hidden=3: unknown, must be one of device"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, message, capsys):
    if torch.cuda.is_available() and words == ["device=cuda"]:
        pytest.skip("there is a CUDA device")
    assert command.main(words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("sacred", [True, False])
def test_without_a_gpu_the_command_says_so(sacred, tmp_path):
    hidden = "" if sacred else "sys.modules['sacred'] = None; "
    code = f"import sys, runpy; {hidden}sys.path.insert(0, {str(EXPERIMENTS)!r}); "
    code += "sys.argv = ['speed.py', 'with', 'device=cuda']; runpy.run_path('speed.py', run_name='__main__')"
    command_line = [
        sys.executable,
        "-c",
        code.replace("'speed.py', run_name", f"{str(EXPERIMENTS / 'speed.py')!r}, run_name"),
    ]
    ran = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "must be cpu, or a CUDA device" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr
    assert not list(tmp_path.iterdir())
