"""The table of a run on the CPU, and its summary."""

import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from slth.experiments.studies.speed import (
    attention_routes,
    linear_attention,
    peers,
    selection,
    subset_sums,
    training_step,
)
from slth.kernels.timing import Row
from slth.threads import cores


def table_of(rows: list[Row]) -> pd.DataFrame:
    """Return the rows as a table; missing entries are empty, and columns of counts stay integers."""
    table = pd.DataFrame(rows)
    counts = [name for name in table if all(isinstance(row.get(str(name), 0), int) for row in rows)]
    return table.astype(dict.fromkeys(counts, "Int64"))


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Summarise the results to quote (None if not measured), and the machine.

    growth: linear attention's time at the longest input over that at the length before. ratio_softmax: its peer's time
    over its own, at the longest input.
    """
    sums = table[table["what"] == subset_sums.WHAT]
    routes = table[table["what"] == attention_routes.WHAT]
    at_20 = sums[sums["size"] == "n=20"].set_index("peer")
    at_7m = table[(table["what"] == selection.WHAT) & (table["size"] == "n=7,077,888")].set_index("peer")["ratio"]
    linear = table[table["what"] == linear_attention.WHAT].to_dict("records")
    return {
        "problems_per_second_n20": 1 / at_20["ours_s"].iloc[0] if len(at_20) else None,
        "ratio_milp_n20": at_20["ratio"].get("scipy.milp"),
        "worse": int(sums["worse"].sum()) if len(sums) else None,
        "routes": [
            {"size": row["size"], "ratio": row["ratio"], "ideal": row["ideal"], "share": row["ratio"] / row["ideal"]}
            for _, row in routes.iterrows()
        ],
        "ratio_sort_7m": at_7m.get("torch.sort"),
        "ratio_kthvalue_7m": at_7m.get("torch.kthvalue"),
        "reads_7m": 1 / at_7m[selection.READ] if len(at_7m) else None,
        "steps": [
            {"size": row["size"], "peer": row["peer"], "ratio": row["ratio"]}
            for _, row in table[table["what"] == training_step.WHAT].iterrows()
        ],
        "linear_attention": [{key: row[key] for key in ("size", "ratio", "growth")} for row in linear],
        "growth": linear[-1]["growth"] if linear else None,
        "ratio_softmax": linear[-1]["ratio"] if linear else None,
        "spread": ((table["ours_s_high"] - table["ours_s_low"]) / table["ours_s"]).max(),
        "peers": peers.installed(),
        "cpu": cpu(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu() -> str:
    """Return the processor's name, if the system provides it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
