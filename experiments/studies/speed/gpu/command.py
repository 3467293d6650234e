"""`speed.py with device=cuda ...` without Sacred: the same measurement, with its files in a folder."""

from __future__ import annotations

import ast
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from slth import console, disk
from slth.experiments.studies.speed.gpu import report
from slth.experiments.studies.speed.gpu.hour import Hour

DEFAULTS: dict[str, Any] = {
    "device": "cuda",
    "only": list(report.AREAS),
    "rounds": 15,
    "minutes": None,
    "processes": 14,
    "seed": 0,
    "out": "runs/gpu",
}


def main(arguments: Sequence[str]) -> int:
    """Run the measurement with key=value arguments, and return the exit status.

    A bad argument prints one line and gives status 1. An interrupted measurement is resumed in the same folder. The
    status is also 1 if a check or a measurement failed; the other results are written anyway.
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

    try:
        timed, summary = Hour.of(config, folder / "parts").measure(keep)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    keep("summary.json", json.dumps(summary, indent=2).encode())
    for name, figure in report.figures(timed).items():
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        keep(f"{name}.png", png.getvalue())
    print(f"results: {folder / 'results.csv'}")
    return 1 if failures(summary) else 0


def failures(summary: dict[str, Any]) -> int:
    """Count the failed checks and measurements."""
    return len(summary["checks_failed"]) + len(summary["times_failed"])


def config_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the defaults updated by key=value arguments. Raises ValueError."""
    config = dict(DEFAULTS)
    for word in arguments:
        key, equals, text = word.partition("=")
        if key == "with" and not equals:
            continue
        key = "only" if key == "what" else key
        if key not in config:
            raise ValueError(f"{word}: unknown, must be one of {', '.join(config)}, as key=value")
        try:
            config[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            config[key] = text
    return checked(config)


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with its areas as a list. Raises ValueError for a config that cannot be measured."""
    areas = [config["only"]] if isinstance(config["only"], str) else config["only"]
    if not areas or not all(area in report.AREAS for area in areas):
        raise ValueError(f"only={areas}: must be one or several of {', '.join(report.AREAS)}")
    for key in ("rounds", "processes"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise ValueError(f"{key}={config[key]}: must be an int >= 1")
    minutes = config["minutes"]
    if minutes is not None and not (isinstance(minutes, int | float) and 0 < minutes < math.inf):
        raise ValueError(f"minutes={minutes}: must be a number > 0, or None")
    check_device(config["device"])
    return config | {"only": areas}


def check_device(device: str) -> None:
    """Raise ValueError unless there is such a GPU."""
    if not str(device).startswith("cuda") or not torch.cuda.is_available():
        raise ValueError(f"device={device}: must be cpu, or a CUDA device, of which torch finds none here")
