"""Doing the measurements, here or on several processes, and storing each as soon as it is done."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from slth.experiments.lab import progress
from slth.experiments.lab.live import Point, collected, replay
from slth.experiments.studies.mixing.config import Config
from slth.experiments.studies.mixing.errors import measure_error
from slth.experiments.studies.mixing.losses import measure_dense, measure_ticket
from slth.experiments.studies.mixing.matrices import measure_matrix
from slth.experiments.studies.mixing.spikes import measure_spikes
from slth.experiments.studies.mixing.study import Job, Study

MEASURES: dict[str, Callable[[Study, Job], dict[str, Any]]] = {
    "error": measure_error,
    "ticket": measure_ticket,
    "dense": measure_dense,
    "spikes": measure_spikes,
    "matrix": measure_matrix,
}


_here: Study  # of a process that was started for it


def measure(study: Study) -> dict[Job, dict[str, Any]]:
    """Do what is not stored yet, store it, and return all, in the order of the jobs."""
    jobs = study.jobs
    done = {job: held for job in jobs if (held := study.config.resumable.read(job.label)) is not None}
    left = [job for job in jobs if job not in done]
    for job, found in zip(left, progress(_all(study, left), "jobs", total=len(left)), strict=True):
        done[job] = found
    return {job: done[job] for job in jobs}


def _all(study: Study, jobs: list[Job]) -> Iterable[dict[str, Any]]:
    """What comes of the jobs, in their order."""
    if study.config.processes == 1 or len(jobs) < 2:
        return (_done(study, job) for job in jobs)
    return _on_processes(study, jobs)


def _on_processes(study: Study, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(study.config.processes, context, _begin, (study.config.values(),)) as pool:
        try:
            for found, points in pool.map(_done_here, jobs):
                replay(points)
                yield found
        except KeyboardInterrupt:  # what is not stored yet is done again: nobody waits for it
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(config: dict[str, Any]) -> None:
    """Read the config in a process of its own."""
    global _here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _here = Config(**config).study


def _end_with_parent() -> None:
    """A run that was cut leaves no process behind."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _done_here(job: Job) -> tuple[dict[str, Any], list[Point]]:
    """What comes of a job, and the curves that the process with the run is to log."""
    with collected() as points:
        return _done(_here, job), points


def _done(study: Study, job: Job) -> dict[str, Any]:
    """Measure, and store at once."""
    found = MEASURES[job.what](study, job)
    _keep(study, job, found)
    return found


def _keep(study: Study, job: Job, found: dict[str, Any]) -> None:
    """Store a measurement, and forget the checkpoints that led to it."""
    study.config.resumable.write(job.label, found)
    for checkpoint in study.how.folder.glob(f"{job.label}*.checkpoint") if study.how.folder else ():
        if checkpoint.name == f"{job.label}.checkpoint" or checkpoint.name.startswith(f"{job.label} pilot "):
            checkpoint.unlink(missing_ok=True)
