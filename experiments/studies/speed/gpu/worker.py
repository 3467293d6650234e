"""A process of its own for some checks or times, each of which is on the disk before the next begins."""

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

SPOILT = 70  # the status of a process whose device takes no more work


@dataclass(frozen=True)
class Job:
    """Tasks of a plan, and the file (a JSON object a line) that what is found goes to.

    plan: the name of a module as `slth.experiments.studies.speed.gpu.report`. kind: check or time, its function that
    finds something, as JSON, given (task, device, rounds, seed). Its function `spoils(found)` says whether the device
    takes no more work of the process.
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
        """What was found so far, by task."""
        return {line["task"]: line["found"] for line in self._lines() if "found" in line}

    def begun(self, task: str) -> int:
        """How often a task was begun."""
        return sum(line["task"] == task and "found" not in line for line in self._lines())

    def left(self) -> Job:
        """The same job without the tasks that are done."""
        found = self.found
        return replace(self, tasks=tuple(task for task in self.tasks if task not in found))

    def note(self, task: str, **found: Any) -> None:
        """Add a line, which is on the disk when this returns."""
        with open(self.file, "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"task": task, **found}, default=plain))  # the last line may have been cut
            file.flush()
            os.fsync(file.fileno())

    def work(self) -> bool:
        """Do all tasks that are left; False where the device was spoilt before the last."""
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
        """The command line of a process that does the job."""
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
