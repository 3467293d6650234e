"""Checks and times of all kernels: two tables, a summary and a figure."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from benchmarks.cases import TOLERANCE, Case, all_cases, differences
from benchmarks.timing import Row

#: What is timed -> the kernels that it stands on.
AREAS = {
    "masked_linear": ("masked_weight", "masked_linear"),
    "selection": ("select_threshold",),
    "attention": ("attention", "merged_attention", "masked_mha"),
    "mhla": ("mhla",),
    "seeded": ("seeded_weight", "seeded_linear"),
    "step": ("masked_weight", "select_threshold", "attention"),
}
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


def times(areas: Sequence[str], checked: pd.DataFrame, device: torch.device, rounds: int, seed: int) -> pd.DataFrame:
    """The rows of all areas whose kernels passed every check."""
    failed = set(checked.loc[~checked["holds"].astype(bool), "kernel"])
    rows: list[Row] = []
    for area in areas:
        if broken := sorted(failed & set(AREAS[area])):
            print(f"{area}: not timed, for checks of {', '.join(broken)} failed", flush=True)
            continue
        module = importlib.import_module(f"benchmarks.gpu.{area}")
        rows += module.rows(device, rounds, seed)
    return pd.DataFrame(rows)


def summarise(checked: pd.DataFrame, timed: pd.DataFrame, device: torch.device) -> dict[str, Any]:
    """The figures to quote, and on what they were measured."""
    holds = checked["holds"].astype(bool)
    return {
        "checks": len(checked),
        "checks_failed": [
            f"{row.case} {row.dtype} {row.output}: {row.difference:.3g}, allowed {row.allowed:.3g}"
            for row in checked[~holds].itertuples()
        ],
        "ratios": [
            {"what": row.what, "size": row.size, "peer": row.peer, "ratio": float(row.ratio)}
            for row in timed.itertuples()
        ],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__,
    }
