"""The imports that the fork server makes in advance, and the work of the processes that it forks."""

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Any

from slth.experiments import lab
from slth.experiments.lab import scripts, sharing, storage, stores
from slth.experiments.sweeps import plan as plans


def prepare(script: Path) -> None:
    """Import the experiment and all its dependencies, before any process is forked."""
    scripts.load(script)


def plan(script: Path, version: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return {"version": ..., "runs": [...]}, or {"refused": message} if a config is invalid."""
    logging.disable()
    os.chdir(request["cwd"])
    try:
        return {"version": version, "runs": plans.resolve(script, request["named"], request["points"], version)}
    except lab.Refused as error:
        return {"refused": str(error)}


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the first error in the chain that means a full or read-only disk, or None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return error
        error = error.__cause__ or error.__context__
    return None


def require_place(place: Path) -> None:
    """Raise lab.Refused if the sweep has removed the run's folder."""
    if not place.is_dir():
        raise lab.Refused(f"{place}: gone, and with it the sweep that made it")


def run(script: Path, cpus: int, request: dict[str, Any]) -> int:
    """Execute one run in the folder that the sweep created for it.

    Returns the exit status that the same command line would have.

    Raises:
        OSError: if the folder is missing, or a disk is full or read-only.
    """
    place = Path(request["place"])
    log = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.chdir(request["cwd"])
    storage.HOME = place.parents[1]  # from SWEEP/.work/PLACE
    sharing.FOLDER = Path(request["shared"]) if request["shared"] else None
    os.environ.update(request["environment"])
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(cpus)
    values = [f"{key}={value!r}" for key, value in request["updates"].items()]
    words = [*request["named"], *values]
    sys.argv = [str(script), *(["with", *words] if words else []), "-F", str(place), "--id", request["id"]]
    try:
        ex = scripts.load(script)
        if request["sql"]:  # not as -s: a run's folder holds its command line, and the URL may hold a password
            ex.observers.extend(stores.observers(request["sql"], request["id"]))
        ex.before_storing(lambda: require_place(place))
        lab.launch(ex)
    except lab.Refused as error:
        print(error, file=sys.stderr)
        return 1
    except SystemExit as end:
        if cause := full_disk(end):
            raise cause from None
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0
