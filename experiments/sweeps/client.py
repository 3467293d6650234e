"""How the sweep, or Ray's workers on every node, talk to the machine's fork server; and how they start it.

A request is one line of JSON over a Unix socket, its answer lines of JSON. Whoever asks keeps the connection open:
where it ends, the server kills what it forked for it.
"""

import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class ServerLost(Exception):
    """The server ended, or could not be reached, before it had answered."""


SOCKET_BYTES = 103  # of a Unix socket's path that every system takes: 107 on Linux, 103 on macOS
SERVER_NAME_BYTES = 32  # of a socket's name, and the slashes around
FALLBACKS = ("/tmp", "/var/tmp", "/dev/shm")


def short_temporary(room: int) -> Path:
    """The folder of temporary files where `room` more bytes make a socket's path; TMPDIR may be too long for that.

    TMPDIR comes first; where it is too long, or holds letters that Ray does not take, one of the system's.

    Raises:
        OSError: if none of them is short enough and can be written.
    """
    own = tempfile.gettempdir()
    for folder in (own, *FALLBACKS):
        fits = len(os.fsencode(folder)) + room <= SOCKET_BYTES
        if fits and folder.isascii() and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    most = SOCKET_BYTES - room
    raise OSError(f"TMPDIR={own}: must be a folder of at most {most} ASCII letters, or {', '.join(FALLBACKS)} writable")


def own_folder() -> Path:
    """Where this machine's servers of this user have their sockets; nobody else may enter.

    Raises:
        OSError: if something else has the name, or there is no place for it.
    """
    name = f"slth-{os.getuid()}"
    folder = short_temporary(room=len(name) + SERVER_NAME_BYTES) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise OSError(f"{folder} is no folder of this user alone")
    return folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Of several that start or end a server on one machine, one at a time."""
    with open(folder / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Server:
    """One server per machine: every sweep has its own, told from others by the sweep's token."""

    token: str
    script: str
    cpus: int

    @property
    def path(self) -> Path:
        """Its socket, on the machine where this is asked."""
        return own_folder() / f"{self.token}.sock"

    @property
    def log(self) -> Path:
        """What the server itself, not a run, writes on stderr."""
        return self.path.with_suffix(".log")

    def connect(self) -> socket.socket:
        """A connection to the machine's server, which is started where there is none.

        Raises:
            ServerLost: if it cannot be started, or is another user's.
        """
        try:
            with alone(own_folder()):
                with contextlib.suppress(OSError):
                    return self._connected()
                self._start()
                return self._connected()
        except OSError as error:
            raise ServerLost(f"the server of the runs cannot be reached: {error}") from error

    def _start(self) -> None:
        """Start it here; it ends by itself when nobody has been connected for a while."""
        threads = {name: str(self.cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        # OpenBLAS alone starts its threads when it is imported, and they would not survive the fork.
        environment = os.environ | threads | {"OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", str(Path(__file__).with_name("server.py")), json.dumps(asdict(self))]
        with open(self.log, "ab") as log:
            started = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        if started.returncode:
            raise ServerLost(f"the server of the runs did not start: {self.last_words()}")

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self.path))
            if _peer(connection) != os.getuid():
                raise ServerLost(f"the server at {self.path} is another user's")
        except (OSError, ServerLost):
            connection.close()
            raise
        return connection

    def send(self, request: dict[str, Any], devices: str = "") -> socket.socket:
        """Ask; returns the connection on which the answer comes. A run sees these GPUs, and is killed where it closes.

        Raises:
            ServerLost: if there is no server to ask.
        """
        connection = self.connect()
        try:
            request = {**request, "environment": {"CUDA_VISIBLE_DEVICES": devices}}
            connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            connection.close()
            raise self._lost(error) from error
        return connection

    def answer(self, connection: socket.socket) -> list[dict[str, Any]]:
        """The lines of the answer, once all are there; the last one is the status that the forked process ended with.

        Raises:
            ServerLost: if there is no such line.
        """
        try:
            with connection, connection.makefile(encoding="utf-8") as stream:
                answer = [json.loads(line) for line in stream]
        except OSError as error:
            raise self._lost(error) from error
        if not answer or "status" not in answer[-1]:
            raise ServerLost(f"the server of the runs ended: {self.last_words()}")
        return answer

    def ask(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Send, and wait for the answer. Raises as these do."""
        return self.answer(self.send(request))

    def outcome(self, connection: socket.socket) -> dict[str, Any]:
        """What became of the run that was asked for on this connection, once it has ended.

        Returns {"status": the exit status, negative for a signal}; also with "lost": why, where the machine could not
        begin the run or its server ended; also with "full": why, where a disk takes no more.
        """
        try:
            return {key: value for line in self.answer(connection) for key, value in line.items()}
        except ServerLost as error:
            return {"lost": str(error)}

    def _lost(self, error: OSError) -> ServerLost:
        return ServerLost(f"the server of the runs was lost ({error}): {self.last_words()}")

    def last_words(self) -> str:
        """The last line of the server's own log."""
        return last_line(self.log) or "it left no message"

    def forget(self, inode: int | None = None) -> None:
        """Remove what a server leaves behind on this machine; with an inode, if the socket is that one still."""
        with contextlib.suppress(OSError), alone(own_folder()):
            if inode is None or self.path.stat().st_ino == inode:
                self.path.unlink(missing_ok=True)
                self.log.unlink(missing_ok=True)


def _peer(connection: socket.socket) -> int:
    """The user who listens at the other end of a Unix socket; this one where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()
    pid_uid_gid = struct.Struct("3i")
    uid: int = pid_uid_gid.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, pid_uid_gid.size))[1]
    return uid


def last_line(path: Path) -> str:
    """The last line of a text file that is not blank; nothing where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def on_node(server: Server, request: dict[str, Any], gpus: float) -> dict[str, Any]:
    """What a Ray task does: `execute`, with the GPUs that Ray gives it, and say on which node."""
    import ray

    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpus else ""
    return {**execute(server, request, devices), "node": ray.get_runtime_context().get_node_id()}


def execute(server: Server, request: dict[str, Any], devices: str = "") -> dict[str, Any]:
    """Have the machine's server fork the run, wait for its end, and return its `Server.outcome`."""
    try:
        return server.outcome(server.send(request, devices))
    except ServerLost as error:
        return {"lost": str(error)}
