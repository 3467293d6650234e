"""The engine of a single machine: runs are processes that its fork server starts."""

import contextlib
import heapq
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from slth.experiments import lab
from slth.experiments.sweeps.client import Server, ServerLost
from slth.processors import processors

LOST = 5  # losses of the server in a row, with no run ended between, after which the sweep ends
Slot = tuple[int, str]
"""A slot for one run: its number, and the GPUs that the run sees, as a value of CUDA_VISIBLE_DEVICES."""


@dataclass(eq=False)
class Job:
    """A submitted run: its connection to the server, or the message that says why the request could not be sent."""

    slot: Slot
    connection: socket.socket | None
    lost: str = ""


class Machine:
    """An `engine.Engine` that makes runs on this machine; create it with `machine(...)`."""

    def __init__(self, server: Server, devices: Sequence[str]) -> None:
        self._server, self._capacity = server, len(devices)
        self._free: list[Slot] = [*enumerate(devices)]  # a heap
        self._jobs: set[Job] = set()
        self._losses = 0  # since a run ended, in runs: a server that ends loses as many as `capacity`

    def capacity(self) -> int:
        """Return how many runs can run at once."""
        return self._capacity

    def submit(self, request: dict[str, Any]) -> Job:
        """Send a run to the server, which forks a process for it."""
        slot = heapq.heappop(self._free)
        try:
            job = Job(slot, self._server.send(request, devices=slot[1]))
        except ServerLost as error:
            job = Job(slot, None, str(error))
        self._jobs.add(job)
        return job

    def finished(self, jobs: list[Job], timeout_s: float) -> list[Job]:
        """Wait until a run has ended or the time is up, and return the jobs that have ended or were never sent."""
        of_connection = {job.connection: job for job in jobs if job.connection is not None}
        if unsent := [job for job in jobs if job.connection is None]:
            return unsent
        return [of_connection[connection] for connection in wait([*of_connection], timeout_s)]  # type: ignore[index]

    def outcome(self, job: Job) -> dict[str, Any]:
        """Return the `Server.outcome` of a run that has ended, and free its slot."""
        self._jobs.remove(job)
        heapq.heappush(self._free, job.slot)
        if job.connection is None:
            outcome, lost = {"lost": job.lost}, self._capacity
        else:
            outcome, lost = self._server.outcome(job.connection), 1
        self._losses = self._losses + lost if "lost" in outcome else 0
        if self._losses >= LOST * self._capacity:
            raise lab.Refused(f"{outcome['lost']}; finished runs stay, and the same command continues")
        return outcome

    def close(self) -> None:
        """Kill all runs that have not ended, by closing their connections."""
        for job in self._jobs:
            if job.connection is not None:
                job.connection.close()


@contextlib.contextmanager
def machine(server: Server, cpus: int, gpus: float, workers: int | None) -> Iterator[Machine]:
    """Create the engine of this machine; at the end of the block, the runs that have not ended are killed.

    Args:
        server: the fork server of this machine.
        cpus: processors per run.
        gpus: GPUs per run, a fraction below 1 or a whole number; with 0, runs see no GPU.
        workers: runs at once, fewer if they need more GPUs than there are; None: as many as the processors allow.

    Raises:
        lab.Refused: if the machine does not have the resources of one run.
    """
    room = processors() // cpus if workers is None else workers
    present = _gpus() if gpus else []
    devices = shares(present, gpus)[:room] if gpus else [""] * room
    if not devices:
        there = f"{processors()} processors" + (f" and {len(present)} GPUs" if gpus else "")
        raise lab.Refused(f"cpus={cpus} gpus={gpus}: this machine has {there}, too few for one run")
    with contextlib.closing(Machine(server, devices)) as here:
        yield here


def shares(devices: Sequence[str], gpus: float) -> list[str]:
    """Return a value of CUDA_VISIBLE_DEVICES for each run that fits on the devices.

    With gpus < 1, floor(1 / gpus) runs share each device, and the first runs are on different devices. With gpus >= 1,
    each run has that many devices to itself.
    """
    if gpus < 1:
        return [device for _ in range(int(1 / gpus)) for device in devices]
    size = int(gpus)
    return [",".join(group) for group in zip(*[iter(devices)] * size, strict=False)]


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, as named in CUDA_VISIBLE_DEVICES."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if visible is None else visible.split(",")[:count]
