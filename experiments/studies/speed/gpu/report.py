"""Checks and times of all kernels: two tables, a summary and a figure."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
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
#: What is timed -> the kernels that it stands on.
AREAS: dict[str, tuple[str, ...]] = {area: bench.KERNELS for area, bench in _BENCHES.items()} | {
    "step": ("masked_weight", "select_threshold", "attention")
}
OPTIONAL = ("transformers",)  # packages without which an area is left out
WORST = TOLERANCE[torch.bfloat16]  # error at a timed size beyond which no time is told
CHECK_COLUMNS = ["kernel", "case", "dtype", "output", "difference", "allowed", "holds"]


def checks(areas: Sequence[str], device: torch.device, *, large: bool = True) -> pd.DataFrame:
    """One row for each output of each case and dtype: by how much Triton may differ from the reference, and does."""
    kernels = {kernel for area in areas for kernel in AREAS[area]}
    cases = [case for case in all_cases() if case.kernel in kernels and (large or not case.large)]
    rows = [row for case in cases for dtype in case.dtypes for row in _checked(case, dtype, device)]
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def _checked(case: Case, dtype: torch.dtype, device: torch.device) -> list[Row]:
    allowed = 0.0 if case.exact else TOLERANCE[dtype]
    about = {"kernel": case.kernel, "case": case.name, "dtype": str(dtype).removeprefix("torch.")}
    try:
        found = differences(case, dtype, device)
    except Exception as error:  # whatever a compiler or a driver throws: this case fails, others are still told
        found = {f"{type(error).__name__}: {error}"[:200]: float("inf")}
    return [
        about | {"output": name, "difference": value, "allowed": allowed, "holds": value <= allowed}
        for name, value in found.items()
    ]


class Times(NamedTuple):
    """Rows; what went wrong and what was left out, a line each, which begins with the area."""

    table: pd.DataFrame
    failed: list[str]
    skipped: list[str]


def times(areas: Sequence[str], checked: pd.DataFrame, device: torch.device, rounds: int, seed: int) -> Times:
    """The rows of all areas whose kernels passed every check, without times where ours is wrong at the timed size."""
    broken = set(checked.loc[~checked["holds"].astype(bool), "kernel"])
    rows: list[Row] = []
    failed: list[str] = []
    skipped: list[str] = []
    for area in areas:
        if wrong := sorted(broken & set(AREAS[area])):
            skipped.append(f"{area}: not timed, for checks of {', '.join(wrong)} failed")
            continue
        try:
            found = _bench(area).rows(device, rounds, seed)
        except Exception as error:  # whatever a compiler or a driver throws: other areas are still timed
            missing = isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL
            line = f"{area}: not timed, {type(error).__name__}: {error}"[:300]
            (skipped if missing else failed).append(line)
            continue
        rows += [_told(row) for row in found]
        failed += [
            f"{area}: {row['size']}: differs by {row['error_ours']:.2g} of the largest entry, allowed {WORST:.2g}"
            for row in found
            if not _right(row)
        ]
    return Times(pd.DataFrame(rows) if rows else pd.DataFrame(columns=COLUMNS), failed, skipped)


def _bench(area: str) -> ModuleType:
    """What has the rows of an area. Raises ModuleNotFoundError where a package that it needs is missing."""
    return _BENCHES.get(area) or importlib.import_module(f"slth.experiments.studies.speed.gpu.{area}")


def _right(row: Row) -> bool:
    return bool(row["error_ours"] <= WORST)  # which NaN is not


def _told(row: Row) -> Row:
    """The row, without its times where our result is wrong."""
    return row if _right(row) else row | dict.fromkeys(("ours_s", "peer_s", "ratio", *SPREAD), nan)


def figures(timed: Times) -> dict[str, Figure]:
    """The times as a figure, by its name, where there are any."""
    told = timed.table[timed.table["ratio"].notna()]
    return plots.figures(told) if len(told) else {}


def summarise(checked: pd.DataFrame, timed: Times, device: torch.device) -> dict[str, Any]:
    """The figures to quote, and on what they were measured."""
    holds = checked["holds"].astype(bool)
    return {
        "checks": len(checked),
        "checks_failed": [
            f"{row.case} {row.dtype} {row.output}: {row.difference:.3g}, allowed {row.allowed:.3g}"
            for row in checked[~holds].itertuples()
        ],
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
