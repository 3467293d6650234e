"""`speed.py with device=cuda ...` where Sacred is not installed: the same measurement, its files in a folder."""

from __future__ import annotations

import ast
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from slth import console, disk
from slth.experiments.studies.speed.gpu import report

DEFAULTS: dict[str, Any] = {"device": "cuda", "what": list(report.AREAS), "rounds": 15, "seed": 0, "out": "runs/gpu"}


def main(arguments: Sequence[str]) -> int:
    """Measure as key=value words say; what is not allowed ends the program with one line and status 1.

    The status is 1, too, where a check or a measurement failed; what the others found is written all the same.
    """
    console.forgive()
    try:
        config = config_of(arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    folder = Path(config["out"])
    folder.mkdir(parents=True, exist_ok=True)

    def keep(name: str, contents: bytes) -> None:
        disk.write(folder / name, contents)

    timed, summary = measure(config["device"], config["what"], config["rounds"], config["seed"], keep)
    keep("results.csv", timed.table.to_csv(index=False).encode())
    keep("summary.json", json.dumps(summary, indent=2).encode())
    for name, figure in report.figures(timed).items():
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        keep(f"{name}.png", png.getvalue())
    print(f"results: {folder / 'results.csv'}")
    return 1 if failures(summary) else 0


def failures(summary: dict[str, Any]) -> int:
    """How many checks and measurements failed."""
    return len(summary["checks_failed"]) + len(summary["times_failed"])


def config_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The defaults and what the words say otherwise, or ValueError."""
    config = dict(DEFAULTS)
    for word in arguments:
        key, equals, text = word.partition("=")
        if key == "with" and not equals:
            continue
        if key not in config:
            raise ValueError(f"{word}: unknown, must be one of {', '.join(config)}, as key=value")
        try:
            config[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            config[key] = text
    return checked(config)


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """A config with its areas as a list. Raises ValueError for one that cannot be measured."""
    areas = [config["what"]] if isinstance(config["what"], str) else config["what"]
    if not areas or not all(area in report.AREAS for area in areas):
        raise ValueError(f"what={areas}: must be one or several of {', '.join(report.AREAS)}")
    if not isinstance(config["rounds"], int) or config["rounds"] < 1:
        raise ValueError(f"rounds={config['rounds']}: must be an int >= 1")
    check_device(config["device"])
    return config | {"what": areas}


def check_device(device: str) -> None:
    """Raise ValueError unless there is such a GPU."""
    if not str(device).startswith("cuda") or not torch.cuda.is_available():
        raise ValueError(f"device={device}: must be cpu, or a CUDA device, of which torch finds none here")


def measure(
    device: str, areas: Sequence[str], rounds: int, seed: int, keep: Callable[[str, bytes], None]
) -> tuple[report.Times, dict[str, Any]]:
    """Times and summary; what fails is told at once, and checks.csv is kept before anything is timed."""
    torch.backends.cuda.matmul.allow_tf32 = False
    where = torch.device(device)
    checked = report.checks(areas, where)
    keep("checks.csv", checked.to_csv(index=False).encode())
    for row in checked[~checked["holds"].astype(bool)].itertuples():
        print(f"does not hold: {row.case} {row.dtype} {row.output}: {row.difference:.3g}, allowed {row.allowed:.3g}")
    print(f"{int(checked['holds'].sum())} of {len(checked)} checks hold", flush=True)
    timed = report.times(areas, checked, where, rounds, seed)
    for line in (*timed.failed, *timed.skipped):
        print(line)
    if len(timed.table):
        print(timed.table[["what", "size", "ours_s", "peer", "peer_s", "ratio"]].to_string(index=False), flush=True)
    return timed, report.summarise(checked, timed, where)
