"""Run the measurements, in this or several processes, and store each as soon as it is done."""

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


_here: Study  # the study of a worker process


def measure(study: Study) -> dict[Job, dict[str, Any]]:
    """Run the jobs that are not stored yet, store them, and return all results in the order of jobs."""
    jobs = study.jobs
    done = {job: held for job in jobs if (held := study.config.resumable.read(job.label)) is not None}
    left = [job for job in jobs if job not in done]
    for job, found in zip(left, progress(_all(study, left), "jobs", total=len(left)), strict=True):
        done[job] = found
    return {job: done[job] for job in jobs}


def _all(study: Study, jobs: list[Job]) -> Iterable[dict[str, Any]]:
    """Yield the results of jobs, in order."""
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
        except KeyboardInterrupt:  # unfinished jobs are run again later, so do not wait for them
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(config: dict[str, Any]) -> None:
    """Read the config in a worker process."""
    global _here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _here = Config(**config).study


def _end_with_parent() -> None:
    """End this process when its parent ends, so that an interrupted run leaves none behind."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _done_here(job: Job) -> tuple[dict[str, Any], list[Point]]:
    """Run a job; return its result, and the curves for the process with the run to log."""
    with collected() as points:
        return _done(_here, job), points


def _done(study: Study, job: Job) -> dict[str, Any]:
    """Run a job and store its result."""
    found = MEASURES[job.what](study, job)
    _keep(study, job, found)
    return found


def _keep(study: Study, job: Job, found: dict[str, Any]) -> None:
    """Store a measurement, and remove its checkpoints."""
    study.config.resumable.write(job.label, found)
    for checkpoint in study.how.folder.glob(f"{job.label}*.checkpoint") if study.how.folder else ():
        if checkpoint.name == f"{job.label}.checkpoint" or checkpoint.name.startswith(f"{job.label} pilot "):
            checkpoint.unlink(missing_ok=True)
