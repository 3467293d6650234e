"""A worker process for checks or times, which writes each result to disk before the next task starts."""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slth.numbers import plain

SPOILT = 70  # exit status of a process that cannot use its device any more


@dataclass(frozen=True)
class Job:
    """Tasks of a plan, and the file of results, with one JSON object per line.

    plan: name of a module such as `slth.experiments.studies.speed.gpu.report`. kind: check or time, the function of the
    plan that maps (task, device, rounds, seed) to a JSON result. The plan's function `spoils(found)` tells whether the
    process cannot use its device any more.
    """

    plan: str
    kind: str
    file: str
    tasks: tuple[str, ...]
    device: str
    rounds: int
    seed: int

    @property
    def found(self) -> dict[str, Any]:
        """Return the results so far, by task."""
        return {line["task"]: line["found"] for line in self._lines() if "found" in line}

    def begun(self, task: str) -> int:
        """Count how often a task was started."""
        return sum(line["task"] == task and "found" not in line for line in self._lines())

    def left(self) -> Job:
        """Return the job without the tasks that are done."""
        found = self.found
        return replace(self, tasks=tuple(task for task in self.tasks if task not in found))

    def note(self, task: str, **found: Any) -> None:
        """Append a line, which is on disk when this returns."""
        with open(self.file, "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"task": task, **found}, default=plain))  # the last line may have been cut
            file.flush()
            os.fsync(file.fileno())

    def work(self) -> bool:
        """Do all remaining tasks; return False if the device became unusable before the last one."""
        plan = importlib.import_module(self.plan)
        torch.backends.cuda.matmul.allow_tf32 = False
        for task in self.left().tasks:
            self.note(task)
            found = getattr(plan, self.kind)(task, torch.device(self.device), self.rounds, self.seed)
            self.note(task, found=found)
            if plan.spoils(found):
                return False
        return True

    def command(self) -> list[str]:
        """Return the command line of a process that does the job."""
        return [sys.executable, "-m", __name__, json.dumps(asdict(self))]

    def _lines(self) -> list[dict[str, Any]]:
        file, lines = Path(self.file), []
        for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                lines.append(json.loads(text))
            except ValueError:  # an empty line, or the one that was being written when the process was killed
                continue
        return lines


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.exit(0 if Job(**{**given, "tasks": tuple(given["tasks"])}).work() else SPOILT)
