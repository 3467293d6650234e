"""Run jobs in processes that may crash or hang: such a task is recorded as lost, and all others are done."""

from __future__ import annotations

import importlib
import math
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from slth.experiments.studies.speed.gpu.worker import SPOILT, Job

_LOOK_S = 1.0  # seconds between two reads of results


def do(jobs: Sequence[Job], deadline: float, report: Callable[[], object] = lambda: None) -> None:
    """Run jobs in parallel, each in a process, until `deadline` of time.monotonic(); call report from time to time.

    A task during which its process ends, or that was started twice before, is recorded as lost by the plan's function
    `lost`, and a new process continues after it. Tasks that are not done at the deadline have no result.
    """
    crew = _Crew(deadline)
    with ThreadPoolExecutor(max(1, len(jobs))) as pool:
        try:
            waiting = [pool.submit(crew.take_through, job) for job in jobs]
            while wait(waiting, _LOOK_S).not_done:
                report()
            for one in waiting:
                one.result()
        finally:
            crew.stop()
    report()


class _Crew:
    """Processes, one for each job, that are stopped together."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self.stopped = deadline, threading.Event()
        self.running: dict[Job, subprocess.Popen[bytes]] = {}

    def stop(self) -> None:
        """End all running processes."""
        self.stopped.set()
        for process in list(self.running.values()):
            process.kill()

    def take_through(self, job: Job) -> None:
        """Start processes for the remaining tasks of a job until none is left."""
        while (left := job.left()).tasks and not self.stopped.is_set() and self._seconds() > 0:
            if job.begun(left.tasks[0]) > 1:
                _lose(job, left.tasks[0], "its process ended twice")
                continue
            process = self.running[job] = subprocess.Popen(left.command())
            if self.stopped.is_set():  # stop() may have run before this process was listed
                process.kill()
            try:
                status = process.wait(None if self.deadline == math.inf else self._seconds())
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return
            if status not in (0, SPOILT) and (lost := job.left().tasks) and not self.stopped.is_set():
                _lose(job, lost[0], f"its process ended with status {status}")

    def _seconds(self) -> float:
        """Return the seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())


def _lose(job: Job, task: str, why: str) -> None:
    job.note(task, found=importlib.import_module(job.plan).lost(job.kind, task, why))
