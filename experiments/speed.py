"""How fast the package is beside others, measured by turns in one run.

Subset sums against the MILP solver of scipy (and CP-SAT of OR-Tools, where that is installed), attention by its
merged matrices against the same attention head by head, the selection of the scores that a mask keeps against sorting
them, a training step of GPT-2 blocks under learned masks against dense training and masks made by sorting, and linear
attention over blocks of tokens (MHLA) against softmax attention.

On a machine that is busy with other work torch's threads wait for each other, which spoils the ratios of short calls:
there, set threads=1, or OMP_WAIT_POLICY=passive in the environment.

With device=cuda the kernels are measured instead: first each case is held against its reference, then what passed is
timed beside its peers. That also runs where Sacred is not installed, into the folder out=DIR.
"""

import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from slth.experiments.studies.speed.gpu import command, report

try:
    from slth.experiments import lab
except ModuleNotFoundError as missing:  # Sacred, on a GPU's machine
    if missing.name != "sacred":
        raise
    raise SystemExit(command.main(sys.argv[1:])) from None

from slth import plots
from slth.experiments.lab import BadConfig, Refused, as_float, as_int, as_int_list
from slth.experiments.studies.speed import (
    attention_routes,
    linear_attention,
    peers,
    selection,
    subset_sums,
    training_step,
)
from slth.experiments.studies.speed.timing import Row
from slth.threads import cores

AREAS = ("subset_sums", "attention_routes", "selection", "training_step", "linear_attention")

ex = lab.experiment("speed")

ex.add_config(
    device="cpu",  # cpu, or cuda: the kernels on a GPU
    what=None,  # one or several areas; None: all of the device
    candidates=[10, 16, 20, 24],  # of a subset-sum problem, one or several
    batch=20_000,  # subset-sum problems that we solve at once
    time_limit=20.0,  # seconds that a peer may spend on one of them
    routes=[[16, 256, 1024, 4], [32, 1024, 1024, 4], [64, 1024, 2048, 2], [64, 64, 1024, 4]],  # d_in, hidden, T, heads
    scores=[589_824, 2_359_296, 7_077_888],  # of which half are kept, one or several; 7.1M: a block of GPT-2 small
    blocks=[[2, 768, 8, 128]],  # of a training step: blocks, d, batch, length, one or several
    lengths=[4096, 16384],  # tokens of linear attention, one or several
    width=64,  # of its tokens and its head
    block=512,  # tokens of its blocks
    rounds=15,  # of every measurement, a third for steps and lengths; in each a peer solves another subset-sum problem
    threads=None,  # that we use; None: all cores
    seed=0,
)
ex.add_named_config(
    "smoke",
    candidates=10,
    routes=[[8, 64, 128, 2]],
    scores=100_000,
    blocks=[[1, 64, 2, 16]],
    lengths=[64, 256],
    width=16,
    block=32,
    rounds=3,
)


def check(config: dict[str, Any]) -> None:
    """Refused, where it can be BadConfig, for what cannot be measured."""
    if config["device"] == "cpu":
        cases_of(config)
    else:
        gpu_config(config)


def gpu_config(config: dict[str, Any]) -> dict[str, Any]:
    """Device, areas, rounds and seed of a measurement on a GPU, or Refused."""
    areas = config["what"]
    if not all(isinstance(area, str) for area in (areas if isinstance(areas, list) else [areas or ""])):
        raise BadConfig("what", areas, "None, or one or several areas")
    given = {key: config[key] for key in ("device", "what", "rounds", "seed") if config[key] is not None}
    try:
        return command.checked(command.DEFAULTS | given)
    except ValueError as error:
        raise Refused(str(error)) from error


def cases_of(config: dict[str, Any]) -> list[Callable[[], list[Row]]]:
    """What is to be measured, or BadConfig."""
    rounds, seed = as_int(config, "rounds", 1), as_int(config, "seed", 0, 2**32 - 1)
    sums = partial(
        subset_sums.rows,
        batch=as_int(config, "batch", 1, 10**6),
        rounds=rounds,
        time_limit=as_float(config, "time_limit", above=0.0),
        seed=seed,
        threads=_threads(config),
    )
    cases = {
        "subset_sums": [partial(sums, n) for n in sorted(as_int_list(config, "candidates", 1, 40))],
        "attention_routes": [
            partial(attention_routes.rows, attention_routes.Shape(*shape), rounds=rounds, seed=seed)
            for shape in _shapes(config, "routes", "d_in, hidden, length, heads")
        ],
        "selection": [
            partial(selection.rows, n, rounds=rounds, seed=seed)
            for n in sorted(as_int_list(config, "scores", 2, 2**30))
        ],
        "training_step": [
            partial(training_step.rows, training_step.Shape(*shape), rounds=-(-rounds // 3), seed=seed)
            for shape in _shapes(config, "blocks", "blocks, d (a multiple of 64), batch, length")
        ],
        "linear_attention": [
            partial(
                linear_attention.rows,
                sorted(as_int_list(config, "lengths", 1, 2**20)),
                d=as_int(config, "width", 1),
                block=as_int(config, "block", 1),
                rounds=-(-rounds // 3),
                seed=seed,
            )
        ],
    }
    return [case for area in _areas(config) for case in cases[area]]


def _threads(config: dict[str, Any]) -> int:
    return cores() if config["threads"] is None else as_int(config, "threads", 1)


def _areas(config: dict[str, Any]) -> list[str]:
    given = list(AREAS) if config["what"] is None else config["what"]
    areas = given if isinstance(given, list) else [given]
    if not areas or not all(isinstance(area, str) and area in AREAS for area in areas) or len(set(areas)) < len(areas):
        raise BadConfig("what", given, f"one or several of {', '.join(AREAS)}, none twice")
    return areas


def _shapes(config: dict[str, Any], key: str, names: str) -> list[list[int]]:
    given, count = config[key], len(names.split(", "))
    try:
        shapes = [[as_int({key: size}, key, 1) for size in shape] for shape in given]
        if not shapes or any(len(shape) != count for shape in shapes):
            raise ValueError("nothing to measure, or of another length")
        if key == "blocks" and any(shape[1] % 64 for shape in shapes):
            raise ValueError("heads are 64 wide")
    except (BadConfig, TypeError, ValueError) as error:
        raise BadConfig(key, given, f"a list of [{names}], each an int >= 1") from error
    return shapes


def table_of(rows: list[Row]) -> pd.DataFrame:
    """The rows as a table; what a row does not have is empty, and counts stay whole numbers beside it."""
    table = pd.DataFrame(rows)
    counts = [name for name in table if all(isinstance(row.get(name, 0), int) for row in rows)]
    return table.astype(dict.fromkeys(counts, "Int64"))


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """The figures to quote (None where they were not measured), and on what they were measured.

    growth, ratio_softmax: of linear attention at the longest input, its time over that at the length before, and its
    peer's over its own.
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
            {"size": row.size, "ratio": row.ratio, "ideal": row.ideal, "share": row.ratio / row.ideal}
            for row in routes.itertuples()
        ],
        "ratio_sort_7m": at_7m.get("torch.sort"),
        "ratio_kthvalue_7m": at_7m.get("torch.kthvalue"),
        "reads_7m": 1 / at_7m[selection.READ] if len(at_7m) else None,
        "steps": [
            {"size": row.size, "peer": row.peer, "ratio": row.ratio}
            for row in table[table["what"] == training_step.WHAT].itertuples()
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
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@ex.main
def main(_config, _run):
    started = time.perf_counter()
    if _config["device"] != "cpu":
        return on_gpu(_config, _run)
    torch.set_num_threads(_threads(_config))
    table = table_of([row for case in lab.progress(cases_of(_config), "speed") for row in case()])
    summary = summarise(table) | {"seconds": time.perf_counter() - started}
    print(table[["what", "size", "ours_s", "peer", "peer_s", "ratio"]].to_string(index=False))
    lab.save(_run, table, summary, {"speed": plots.speed(table)})
    return summary


def on_gpu(config, run):
    """The same for the kernels; checks.csv has every check. RuntimeError, when all is stored, where one failed."""
    asked = gpu_config(config)
    keep = partial(_store, run)
    timed, summary = command.measure(asked["device"], asked["what"], asked["rounds"], asked["seed"], keep)
    lab.save(run, timed.table, summary, report.figures(timed))
    if failed := command.failures(summary):
        raise RuntimeError(f"{failed} checks or measurements failed: summary.json names them")
    return summary


def _store(run, name, contents):
    """A file of the run, at once."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, name)
        file.write_bytes(contents)
        run.add_artifact(file, name)


if __name__ == "__main__":
    lab.launch(ex, check)
