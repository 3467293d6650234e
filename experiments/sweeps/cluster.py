"""The engine that makes runs as Ray tasks, on this machine or a cluster."""

import contextlib
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from slth.experiments import lab
from slth.experiments.sweeps.client import Server, on_node, short_temporary

REACH_S = 5.0  # timeout for connecting to a cluster's address
HEAD_S = 20.0  # timeout if the head does not answer any more; after 60 s Ray would end this process itself
MAX_LOSSES = 2  # consecutive lost runs after which a node is avoided: it has other code, no folder or no server
MESSAGE = 300  # maximum characters of Ray's messages in ours
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
OBJECT_STORE = 80_000_000  # bytes, about the minimum that Ray accepts; results are not passed through it

SESSION_BYTES = 74  # for "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store", with some reserve
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # an empty HTTP/2 SETTINGS frame, the first that each side sends


class Cluster:
    """An `engine.Engine` that makes runs with Ray; create it with `cluster(...)`."""

    def __init__(self, ray: ModuleType, name: str, server: Server, cpus: int, gpus: float, workers: int | None) -> None:
        self._ray, self._name, self._server, self._workers = ray, name, server, workers
        self._needs = {"CPU": cpus, "GPU": gpus}
        self._losses: Counter[str] = Counter()  # by node
        self._avoided: set[str] = set()
        task = ray.remote(on_node)
        self._task = task.options(num_cpus=cpus, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD")

    def capacity(self) -> int:
        """Return how many runs can run at once on the live nodes that are not avoided."""
        with self._refuse_if_lost():
            self._await_head()
            nodes = {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}
        needs = {name: number for name, number in self._needs.items() if number}
        rooms = {
            node: min(int(has.get(name, 0) / number) for name, number in needs.items()) for node, has in nodes.items()
        }
        fit = {node: room for node, room in rooms.items() if self._losses[node] < MAX_LOSSES}
        self._avoided = {*rooms} - {*fit} if any(fit.values()) else set()  # if only failing nodes have room, use these
        room = sum(room for node, room in rooms.items() if node not in self._avoided)
        return room if self._workers is None else min(room, self._workers)

    def submit(self, request: dict[str, Any]) -> Any:
        """Submit a run as a Ray task, and return the task's reference."""
        task = self._task
        if self._avoided:
            task = task.options(label_selector={"ray.io/node-id": f"!in({','.join(sorted(self._avoided))})"})
        with self._refuse_if_lost():
            return task.remote(self._server, request, self._needs["GPU"])

    def finished(self, tickets: list[Any], timeout_s: float) -> list[Any]:
        """Wait until a run has ended or the time is up, and return the tickets of runs that have ended."""
        with self._refuse_if_lost():
            return list(self._ray.wait(tickets, num_returns=1, timeout=timeout_s)[0])

    def outcome(self, ticket: Any) -> dict[str, Any]:
        """Return the run's `Server.outcome`; it has "lost" also if the run's node or worker died."""
        with self._refuse_if_lost():
            try:
                outcome = dict(self._ray.get(ticket))
            except self._ray.exceptions.RayError as error:
                return {"lost": lab.one_line(f"{type(error).__name__}: {error}")[-MESSAGE:]}
        node = outcome.pop("node")
        self._losses[node] = self._losses[node] + 1 if "lost" in outcome else 0
        if self._losses[node] == MAX_LOSSES:
            print(lab.one_line(f"a node is avoided where another has room: {outcome['lost']}"), file=sys.stderr)
        return outcome

    def _await_head(self) -> None:
        until = time.monotonic() + HEAD_S
        while True:
            try:
                return _probe(self._ray.get_runtime_context().gcs_address)
            except (OSError, ValueError):
                if time.monotonic() > until:
                    raise
            time.sleep(1.0)

    @contextlib.contextmanager
    def _refuse_if_lost(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            why = lab.one_line(f"{type(error).__name__}: {error}")[:MESSAGE]
            line = f"{self._name} was lost ({why}); what is finished stands, and the same command goes on"
            raise lab.Refused(line) from error


@contextlib.contextmanager
def cluster(address: str | None, server: Server, cpus: int, gpus: float, workers: int | None) -> Iterator[Cluster]:
    """Start Ray on this machine, or join the cluster at host:port, and disconnect at the end of the block.

    Raises:
        lab.Refused: if Ray is not installed or does not start, the address has no cluster, or no node has the
            resources of one run.
    """
    # Ray reads these at import. The server, not Ray, hides the GPUs from a run without GPUs.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    try:
        import ray
    except ImportError as error:
        line = "engine=ray and address need Ray, which is not installed: pip install 'slth[cluster]'"
        raise lab.Refused(line) from error
    try:
        if address is None:
            _start(ray, None if workers is None else workers * cpus)
        else:
            _join(ray, address)
        name = "Ray on this machine" if address is None else f"address={address}: the cluster"
        found = Cluster(ray, name, server, cpus, gpus, workers)
        if not found.capacity():
            raise lab.Refused(f"cpus={cpus} gpus={gpus}: no node has so many for one run")
        yield found
    finally:
        ray.shutdown()


def _start(ray: ModuleType, cpus: int | None) -> None:
    """Start Ray here, and retry once: on a busy machine, the processes of Ray may time out on each other."""
    small = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        sessions = _sessions()
    except OSError as error:
        raise lab.Refused(str(error)) from error
    for last in (False, True):
        try:
            # without "local", Ray would join an instance that already runs here
            ray.init("local", num_cpus=cpus, _temp_dir=sessions, **small, **QUIET)
            return
        except Exception as error:
            if last:
                why = str(error).strip()[:MESSAGE]
                hint = "the machine may be busy: run the same command again"
                raise lab.Refused(f"Ray did not start on this machine, tried twice: {why}; {hint}") from error
            ray.shutdown()


def _join(ray: ModuleType, address: str) -> None:
    _require_open(address)
    try:
        ray.init(address=address, **QUIET)
    except Exception as error:
        hint = "a cluster that asks for a token wants RAY_AUTH_MODE=token"
        raise lab.Refused(f"address={address}: Ray refuses: {str(error).strip()[:MESSAGE]}; {hint}") from error


def _sessions() -> str | None:
    """Return a folder for Ray's sessions with a path short enough for their sockets, or None if RAY_TMPDIR is set.

    Raises:
        OSError: if no temporary folder is suitable.
    """
    return None if "RAY_TMPDIR" in os.environ else str(short_temporary(room=SESSION_BYTES) / "ray")


def _require_open(address: str) -> None:
    """Raise lab.Refused unless a server at the address speaks HTTP/2, as Ray's does; Ray would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise lab.Refused(f"address={address}: must be host:port of a cluster")
    try:
        _probe(address)
    except (OSError, ValueError, OverflowError) as error:
        raise lab.Refused(
            f"address={address}: no cluster answers there ({error}); it must be host:port of one"
        ) from error


def _probe(address: str) -> None:
    """Connect, and raise OSError, ValueError or OverflowError if nothing answers in HTTP/2 (with TLS: at all)."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=REACH_S) as connection:
        if os.environ.get("RAY_USE_TLS") != "1":
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
            if connection.recv(4)[3:] != SETTINGS[3:4]:
                raise ValueError("something else than Ray does")
