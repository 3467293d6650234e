"""How the sweep, and Ray's workers on every node, talk to the machine's fork server; and how they start it.

A request is one line of JSON over a Unix socket, its answer lines of JSON. Whoever asks keeps the connection open:
where it ends, the server kills what it forked for it.
"""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class ServerLost(Exception):
    """The server ended, or could not be reached, before it had answered."""


@dataclass(frozen=True)
class Server:
    """One server per machine: every sweep has its own, told from others by the sweep's token."""

    token: str
    script: str
    cpus: int

    @property
    def path(self) -> Path:
        """Its socket, on the machine where this is asked."""
        return Path(tempfile.gettempdir()) / f"slth-{os.getuid()}-{self.token}.sock"

    @property
    def log(self) -> Path:
        """What the server itself, not a run, writes on stderr."""
        return self.path.with_suffix(".log")

    def connect(self) -> socket.socket:
        """A connection to the machine's server, which is started where there is none."""
        with open(self.path.with_suffix(".lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several on one machine one starts it
            with contextlib.suppress(OSError):
                return self._connected()
            self._start()
            return self._connected()

    def _start(self) -> None:
        """Start it here; it ends by itself when nobody has been connected for a while."""
        threads = {name: str(self.cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        # OpenBLAS alone starts its threads when it is imported, and they would not survive the fork.
        environment = os.environ | threads | {"OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("server.py")), json.dumps(asdict(self))]
        with open(self.log, "ab") as log:
            started = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        if started.returncode:
            raise ServerLost(f"the server of the runs did not start: {self.last_words()}")

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self.path))
        except OSError:
            connection.close()
            raise
        return connection

    def ask(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines of the answer; the last one is the status that the forked process ended with.

        Raises:
            ServerLost: if there is no such line.
        """
        try:
            with self.connect() as connection, connection.makefile("rw", encoding="utf-8") as stream:
                print(json.dumps(request), file=stream, flush=True)
                answer = [json.loads(line) for line in stream]
        except OSError as error:
            raise ServerLost(f"the server of the runs was lost ({error}): {self.last_words()}") from error
        if not answer or "status" not in answer[-1]:
            raise ServerLost(f"the server of the runs ended: {self.last_words()}")
        return answer

    def last_words(self) -> str:
        """The last line of the server's own log."""
        return last_line(self.log) or "it left no message"

    def forget(self) -> None:
        """Remove what a server leaves behind on this machine."""
        for suffix in (".sock", ".log", ".lock"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)


def last_line(path: Path) -> str:
    """The last line of a text file that is not blank; nothing where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def execute(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    """What a Ray task does: have the node's server fork the run, and wait for its end.

    Returns {"status": the exit status, negative for a signal}, with "why" where there is no log, or {"lost": why}.
    """
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if request["gpus"] else ""
        answer = server.ask({**request, "environment": {"CUDA_VISIBLE_DEVICES": visible}})
        return {key: value for line in answer for key, value in line.items()}
    except ServerLost as error:
        return {"lost": str(error)}
