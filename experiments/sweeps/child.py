"""What the server imports in advance, and what the processes do that it forks."""

import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import lab
import stores

from sweeps import plan as plans


def prepare(script: Path) -> None:
    """Import the experiment, and all that it imports, once."""
    lab.launched_by(script)


def plan(script: Path, version: str, request: dict[str, Any]) -> dict[str, Any]:
    """The runs of a sweep, or the one line that refuses it."""
    logging.disable()
    os.chdir(request["cwd"])
    try:
        return {"version": version, "runs": plans.resolve(script, request["named"], request["points"], version)}
    except lab.Refused as error:
        return {"refused": str(error)}


def run(script: Path, version: str, cpus: int, request: dict[str, Any]) -> int:
    """One run in the folder that the sweep made for it; the exit status is that of the same command line."""
    place = Path(request["place"])
    log = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    if version != request["version"]:
        print(f"{socket.gethostname()} has other code: {version}, the sweep's is {request['version']}", file=sys.stderr)
        return 1
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(cpus)
    values = [f"{key}={value!r}" for key, value in request["updates"].items()]
    sys.argv = [str(script), "with", *request["named"], *values, "-F", str(place), "--id", request["id"]]
    try:
        ex, check = lab.launched_by(script)
        if request["sql"]:  # not as -s: a run's folder holds its command line, and the URL may hold a password
            ex.observers.extend(stores.observers(request["sql"], request["id"]))
        lab.launch(ex, check)
    except lab.Refused as error:
        print(error, file=sys.stderr)
        return 1
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0
