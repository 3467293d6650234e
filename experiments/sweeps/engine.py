"""Ray: where there are processors for a run, and word of what became of it."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import lab

from sweeps.client import Server, execute

REACH_S = 5.0  # for a cluster's address to answer
OBJECT_STORE = 80_000_000  # bytes, about the least that Ray takes; results do not go through it

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # an empty frame of this kind, with which each side begins


class Cluster:
    """Ray, on this machine or joined; use `cluster(...)`."""

    def __init__(self, ray: ModuleType, server: Server, cpus: int, gpus: float, workers: int | None) -> None:
        self._ray, self._server, self._workers = ray, server, workers
        self._needs = {"CPU": cpus, "GPU": gpus}
        task = ray.remote(execute)
        self._task = task.options(num_cpus=cpus, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD")

    def capacity(self) -> int:
        """How many runs go on at once, by the nodes that live now."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = {name: number for name, number in self._needs.items() if number}
        room = sum(min(int(node.get(name, 0) / number) for name, number in needs.items()) for node in nodes)
        return room if self._workers is None else min(room, self._workers)

    def submit(self, request: dict[str, Any]) -> Any:
        """Have a run made; returns the ticket to ask for it."""
        return self._task.remote(self._server, {**request, "gpus": self._needs["GPU"]})

    def finished(self, tickets: list[Any], timeout_s: float) -> list[Any]:
        """Those that have ended, waiting for one of them."""
        return list(self._ray.wait(tickets, num_returns=1, timeout=timeout_s)[0])

    def outcome(self, ticket: Any) -> dict[str, Any]:
        """{"status": exit status}, or {"lost": why} where the run's node or worker died."""
        try:
            return dict(self._ray.get(ticket))
        except self._ray.exceptions.RayError as error:
            return {"lost": f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"}


@contextlib.contextmanager
def cluster(address: str | None, server: Server, cpus: int, gpus: float, workers: int | None) -> Iterator[Cluster]:
    """Start Ray on this machine, or join the cluster at host:port, and leave it in the end.

    Raises:
        lab.Refused: if there is no Ray, no cluster at the address, or no node that has what one run asks for.
    """
    # Read when Ray is imported. A run without GPUs is told so by the server, not by Ray.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    try:
        import ray
    except ImportError as error:
        raise lab.Refused("a sweep needs Ray, which is not installed: pip install 'slth[cluster]'") from error
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            number = None if workers is None else workers * cpus
            small = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
            ray.init("local", num_cpus=number, **small, **quiet)  # without it, one that happens to run here is joined
        else:
            _require_open(address)
            ray.init(address=address, **quiet)
    except lab.Refused:
        raise
    except Exception as error:
        hint = "" if address is None else "; a cluster that asks for a token wants RAY_AUTH_MODE=token"
        raise lab.Refused(f"address={address}: Ray refuses: {str(error).strip()[:300]}{hint}") from error
    try:
        found = Cluster(ray, server, cpus, gpus, workers)
        if not found.capacity():
            raise lab.Refused(f"cpus={cpus} gpus={gpus}: no node has so many for one run")
        yield found
    finally:
        ray.shutdown()


def _require_open(address: str) -> None:
    """Ray itself would try for minutes: ask first whether anything there speaks its protocol, gRPC over HTTP/2."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=REACH_S) as connection:
            if os.environ.get("RAY_USE_TLS") != "1":
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
                if connection.recv(4)[3:] != SETTINGS[3:4]:
                    raise ValueError("something else than Ray does")
    except (OSError, ValueError, OverflowError) as error:
        raise lab.Refused(
            f"address={address}: no cluster answers there ({error}); it must be host:port of one"
        ) from error
