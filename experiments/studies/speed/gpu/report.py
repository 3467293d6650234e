"""Check and time all kernels: two tables, a summary and a figure."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from math import nan
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure

from slth import plots
from slth.kernels.cases import TOLERANCE, Case, all_cases, differences
from slth.kernels.listing import modules
from slth.kernels.timing import COLUMNS, SPREAD, Row

_BENCHES = {bench.AREA: bench for bench in modules("bench")}
#: Area -> the kernels that it depends on.
AREAS: dict[str, tuple[str, ...]] = {area: bench.KERNELS for area, bench in _BENCHES.items()} | {
    "step": ("masked_weight", "select_threshold", "attention")
}
#: Areas in the order of their ratios on a GPU, the worst first; other areas come last.
WORST_FIRST = ("step", "grouped", "masked_linear", "attention", "selection", "seeded", "mhla")
OPTIONAL = ("transformers",)  # optional packages: an area that needs a missing one is skipped
WORST = TOLERANCE[torch.bfloat16]  # largest error at a timed size; beyond it no time is reported
CHECK_COLUMNS = ["kernel", "case", "dtype", "output", "difference", "allowed", "holds"]


def check_tasks(areas: Sequence[str], *, large: bool = True) -> list[str]:
    """Return a name for each case and dtype of the areas' kernels, the large cases first."""
    kernels = {kernel for area in areas for kernel in AREAS[area]}
    cases = [case for case in all_cases() if case.kernel in kernels and (large or not case.large)]
    return [_task(case, dtype) for case in sorted(cases, key=lambda case: not case.large) for dtype in case.dtypes]


def check(task: str, device: torch.device, rounds: int = 1, seed: int = 0) -> list[Row]:
    """Return a row for each output of a case and dtype: Triton's difference from the reference, and the tolerance."""
    return _checked(*_case_of(task), device)


def _task(case: Case, dtype: torch.dtype) -> str:
    return f"{_name(dtype)} {case.name}"


def _case_of(task: str) -> tuple[Case, torch.dtype]:
    return next((case, dtype) for case in all_cases() for dtype in case.dtypes if _task(case, dtype) == task)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _about(case: Case, dtype: torch.dtype) -> Row:
    return {"kernel": case.kernel, "case": case.name, "dtype": _name(dtype)}


def _checked(case: Case, dtype: torch.dtype, device: torch.device) -> list[Row]:
    allowed = 0.0 if case.exact else TOLERANCE[dtype]
    about = _about(case, dtype)
    try:
        found = differences(case, dtype, device)
    except Exception as error:  # any error of a compiler or driver: only this case fails
        found = {f"{type(error).__name__}: {error}"[:200]: float("inf")}
    return [
        about | {"output": name, "difference": value, "allowed": allowed, "holds": value <= allowed}
        for name, value in found.items()
    ]


class Times(NamedTuple):
    """Rows, and one line for each failed or skipped measurement, which begins with the area."""

    table: pd.DataFrame
    failed: list[str]
    skipped: list[str]


def time(area: str, device: torch.device, rounds: int, seed: int) -> dict[str, Any]:
    """Time an area; return rows, without times if ours is wrong at the timed size, and failed and skipped lines."""
    try:
        found = _bench(area).rows(device, rounds, seed)
    except Exception as error:  # any error of a compiler or driver: other areas are still timed
        missing = isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL
        line = f"{area}: not timed, {type(error).__name__}: {error}"[:300]
        return {"rows": [], "failed": [] if missing else [line], "skipped": [line] if missing else []}
    failed = [
        f"{area}: {row['size']}: differs by {row['error_ours']:.2g} of the largest entry, allowed {WORST:.2g}"
        for row in found
        if not _right(row)
    ]
    return {"rows": [_without_wrong_times(row) for row in found], "failed": failed, "skipped": []}


def lost(kind: str, task: str, why: str) -> Any:
    """Return the result of a task during which a process ended."""
    if kind == "time":
        return {"rows": [], "failed": [f"{task}: not timed, {why}"], "skipped": []}
    return [_about(*_case_of(task)) | {"output": why, "difference": float("inf"), "allowed": 0.0, "holds": False}]


def spoils(found: object) -> bool:
    """Tell whether the process cannot use its device any more."""
    return "CUDA error" in str(found)


def checks_of(found: Iterable[Sequence[Row]]) -> pd.DataFrame:
    """Return the results of :func:`check` as a table."""
    return pd.DataFrame([row for rows in found for row in rows], columns=CHECK_COLUMNS)


def times_of(found: Iterable[Mapping[str, Any]]) -> Times:
    """Combine the results of :func:`time`."""
    found = list(found)
    rows, failed, skipped = ([line for one in found for line in one[key]] for key in ("rows", "failed", "skipped"))
    return Times(pd.DataFrame(rows) if rows else pd.DataFrame(columns=COLUMNS), failed, skipped)


def obstacle(area: str, checked: pd.DataFrame, undone: Sequence[str]) -> str:
    """Return why an area must not be timed: checks of its kernels failed or were not done; "" if it may be timed."""
    failed = set(checked.loc[~checked["holds"].astype(bool), "kernel"])
    if wrong := sorted(failed & set(AREAS[area])):
        return f"{area}: not timed, for checks of {', '.join(wrong)} failed"
    if left := sorted({_case_of(task)[0].kernel for task in undone} & set(AREAS[area])):
        return f"{area}: not timed, for checks of {', '.join(left)} were not done"
    return ""


def _bench(area: str) -> ModuleType:
    """Return the benchmark module of an area. Raises ModuleNotFoundError if a package that it needs is missing."""
    return _BENCHES.get(area) or importlib.import_module(f"slth.experiments.studies.speed.gpu.{area}")


def _right(row: Row) -> bool:
    return bool(row["error_ours"] <= WORST)  # False for NaN


def _without_wrong_times(row: Row) -> Row:
    """Return the row, without times if our result is wrong."""
    return row if _right(row) else row | dict.fromkeys(("ours_s", "peer_s", "ratio", *SPREAD), nan)


def broken(checked: pd.DataFrame) -> list[str]:
    """Return a line for each output beyond its tolerance."""
    return [
        f"{row.case} {row.dtype} {row.output}: {row.difference:.3g}, allowed {row.allowed:.3g}"
        for row in checked[~checked["holds"].astype(bool)].itertuples()
    ]


def figures(timed: Times) -> dict[str, Figure]:
    """Draw the times, if there are any; return the figure by its name."""
    measured = timed.table[timed.table["ratio"].notna()]
    return plots.figures(measured) if len(measured) else {}


def summarise(checked: pd.DataFrame, timed: Times, device: torch.device) -> dict[str, Any]:
    """Summarise the results to quote, and the device."""
    return {
        "checks": len(checked),
        "checks_failed": broken(checked),
        "times_failed": timed.failed,
        "times_skipped": timed.skipped,
        "ratios": [
            {"what": row["what"], "size": row["size"], "peer": row["peer"], "ratio": float(row["ratio"])}
            for row in timed.table.to_dict("records")
            if row["ratio"] == row["ratio"]  # not NaN, which JSON does not have
        ],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__,
    }
