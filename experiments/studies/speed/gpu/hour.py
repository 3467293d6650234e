"""Run a measurement on a GPU within a time budget: checks in parallel, then times, the worst areas first.

All results are written to disk immediately, and an interrupted measurement is resumed from them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import slth.kernels
from slth import disk
from slth.experiments.studies.speed.gpu import processes, report
from slth.experiments.studies.speed.gpu.worker import Job

AREA_S = 150.0  # most seconds per area
CHECKS = 0.6  # most share of the total time for checks
Keep = Callable[[str, bytes], None]  # stores a file by name


@dataclass(frozen=True)
class Hour:
    """The settings of the measurement: areas on a device, a time limit in minutes; folder: the folder of results."""

    device: str
    areas: tuple[str, ...]
    rounds: int
    seed: int
    minutes: float | None
    processes: int
    folder: Path

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path) -> Hour:
        """Create it from a checked config."""
        known = [area for area in report.WORST_FIRST if area in config["only"]]
        areas = (*known, *(area for area in config["only"] if area not in known))
        return cls(
            config["device"],
            areas,
            config["rounds"],
            config["seed"],
            config["minutes"],
            config["processes"],
            folder,
        )

    def measure(self, keep: Keep) -> tuple[report.Times, dict[str, Any]]:
        """Return times and summary; checks.csv and results.csv are written during the measurement.

        Raises ValueError if the folder has another measurement.
        """
        self._begin()
        ends = math.inf if self.minutes is None else time.monotonic() + 60.0 * self.minutes
        checked, undone = self._checks(ends, keep)
        timed = self._times(ends, checked, undone, keep)
        if undone:
            timed = timed._replace(skipped=[*timed.skipped, f"{len(undone)} checks were not done: no time was left"])
        return timed, report.summarise(checked, timed, torch.device(self.device))

    def _checks(self, ends: float, keep: Keep) -> tuple[pd.DataFrame, list[str]]:
        """Run the checks; return their table, and the tasks that were not done."""
        tasks = report.check_tasks(self.areas)
        jobs = [self._job("check", i, tuple(tasks[i :: self.processes])) for i in range(self.processes)]
        jobs = [job for job in jobs if job.tasks]

        def found() -> dict[str, Any]:
            return {task: rows for job in jobs for task, rows in job.found.items() if task in job.tasks}

        def write() -> pd.DataFrame:
            checked = report.checks_of(found().values())
            keep("checks.csv", checked.to_csv(index=False).encode())
            return checked

        now = time.monotonic()
        self._do(jobs, now + CHECKS * (ends - now), write)
        checked, undone = write(), [task for task in tasks if task not in found()]
        for line in report.broken(checked):
            print(f"does not hold: {line}")
        print(f"{int(checked['holds'].sum())} of {len(checked)} checks hold", flush=True)
        return checked, undone

    def _times(self, ends: float, checked: pd.DataFrame, undone: list[str], keep: Keep) -> report.Times:
        found: list[dict[str, Any]] = []
        for area in self.areas:
            found.append(self._time(area, ends, checked, undone))
            one, timed = report.times_of(found[-1:]), report.times_of(found)
            keep("results.csv", timed.table.to_csv(index=False).encode())
            for line in (*one.failed, *one.skipped):
                print(line)
            if len(one.table):
                columns = ["what", "size", "ours_s", "peer", "peer_s", "ratio"]
                print(one.table[columns].to_string(index=False), flush=True)
        return report.times_of(found)

    def _time(self, area: str, ends: float, checked: pd.DataFrame, undone: list[str]) -> dict[str, Any]:
        job = self._job("time", area, (area,))
        if why := report.obstacle(area, checked, undone):
            return {"rows": [], "failed": [], "skipped": [why]}
        until = min(ends, time.monotonic() + AREA_S)
        self._do([job], until)
        if area in job.found:
            return dict(job.found[area])
        if until == ends:
            return {"rows": [], "failed": [], "skipped": [f"{area}: not timed, no time was left"]}
        return dict(report.lost("time", area, f"it took more than {AREA_S:g} s"))

    def _job(self, kind: str, name: object, tasks: tuple[str, ...]) -> Job:
        file = self.folder / f"{kind}.{name}.jsonl"
        return Job(report.__name__, kind, str(file), tasks, self.device, self.rounds, self.seed)

    def _do(self, jobs: list[Job], deadline: float, write: Callable[[], object] = lambda: None) -> None:
        """Run jobs in processes on a GPU; elsewhere, where nothing hangs, in this process."""
        if torch.device(self.device).type == "cuda":
            processes.do(jobs, deadline, write)
            return
        for job in jobs:
            while time.monotonic() < deadline and (left := job.left().tasks):
                replace(job, tasks=left[:1]).work()

    def _begin(self) -> None:
        """Create the folder, or check that it has this measurement."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings, file = json.dumps(self._settings(), indent=1).encode(), self.folder / "settings.json"
        if not file.exists():
            disk.write(file, settings)
        elif file.read_bytes() != settings:
            raise ValueError(f"{self.folder}: has a measurement of other settings or code: must be another folder")

    def _settings(self) -> dict[str, Any]:
        """Return the settings that results depend on."""
        where, digest = torch.device(self.device), hashlib.sha256()
        code = Path(slth.kernels.__path__[0])
        for file in sorted(code.rglob("*.py")):
            digest.update(file.relative_to(code).as_posix().encode() + file.read_bytes())
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
        own = {"rounds": self.rounds, "seed": self.seed, "processes": self.processes}
        return own | {"device": name, "torch": torch.__version__, "kernels": digest.hexdigest()}
