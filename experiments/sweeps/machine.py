"""This machine alone: the runs are processes of its server, as many at once as there are processors and GPUs for."""

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

Slot = tuple[int, str]
"""Room for one run: its number, and the GPUs that the run sees, as CUDA_VISIBLE_DEVICES names them."""


@dataclass(eq=False)
class Job:
    """A run that was asked for: the connection on which its end is reported, or why it could not be asked for."""

    slot: Slot
    connection: socket.socket | None
    lost: str = ""


class Machine:
    """An `engine.Engine`; use `machine(...)`."""

    def __init__(self, server: Server, devices: Sequence[str]) -> None:
        self._server, self._capacity = server, len(devices)
        self._free: list[Slot] = [*enumerate(devices)]  # a heap
        self._jobs: set[Job] = set()

    def capacity(self) -> int:
        """How many runs go on at once."""
        return self._capacity

    def submit(self, request: dict[str, Any]) -> Job:
        """Have the server fork the run."""
        slot = heapq.heappop(self._free)
        try:
            job = Job(slot, self._server.send(request, devices=slot[1]))
        except ServerLost as error:
            job = Job(slot, None, str(error))
        self._jobs.add(job)
        return job

    def finished(self, jobs: list[Job], timeout_s: float) -> list[Job]:
        """Those that have ended, waiting for one of them."""
        of_connection = {job.connection: job for job in jobs if job.connection is not None}
        if unsent := [job for job in jobs if job.connection is None]:
            return unsent
        return [of_connection[connection] for connection in wait([*of_connection], timeout_s)]  # type: ignore[index]

    def outcome(self, job: Job) -> dict[str, Any]:
        """What became of a run that has ended; its slot is free for the next."""
        self._jobs.remove(job)
        heapq.heappush(self._free, job.slot)
        return {"lost": job.lost} if job.connection is None else self._server.outcome(job.connection)

    def close(self) -> None:
        """End the runs that go on still."""
        for job in self._jobs:
            if job.connection is not None:
                job.connection.close()


@contextlib.contextmanager
def machine(server: Server, cpus: int, gpus: float, workers: int | None) -> Iterator[Machine]:
    """Room for runs of so many processors and GPUs each; what goes on in the end is killed.

    Args:
        server: of this machine.
        cpus: of a run.
        gpus: of a run, a share of one or a whole number; a run of 0 sees none.
        workers: runs at once, at most where they need GPUs; None: as many as there are processors for.

    Raises:
        lab.Refused: if the machine has less than one run asks for.
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
    """What each of the runs sees that so many GPUs have room for: a share of one each, or several; none is in two.

    The first ones are on different GPUs.
    """
    if gpus < 1:
        return [device for _ in range(int(1 / gpus)) for device in devices]
    size = int(gpus)
    return [",".join(group) for group in zip(*[iter(devices)] * size, strict=False)]


def _gpus() -> list[str]:
    """The GPUs that this process may use."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if visible is None else visible.split(",")[:count]
