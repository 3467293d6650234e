"""The client of a machine's fork server: it starts the server and sends requests, for a sweep or a Ray worker.

A request is one line of JSON over a Unix socket; the answer is one or more lines of JSON. The client must keep the
connection open until the answer is complete: when it is closed, the server kills the process that it forked for it.
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
    """The server ended or became unreachable before it answered."""


SOCKET_BYTES = 103  # maximum length of a Unix socket's path: 107 on Linux, 103 on macOS
SERVER_NAME_BYTES = 32  # for the name of a socket and the slashes around it
FALLBACKS = ("/tmp", "/var/tmp", "/dev/shm")


def short_temporary(room: int) -> Path:
    """Return a temporary folder whose path leaves `room` bytes for the rest of a socket's path.

    This is TMPDIR, unless its path is too long or has non-ASCII characters, which Ray does not support; then it is one
    of the system's temporary folders.

    Raises:
        OSError: if no such folder is short enough and writable.
    """
    own = tempfile.gettempdir()
    for folder in (own, *FALLBACKS):
        fits = len(os.fsencode(folder)) + room <= SOCKET_BYTES
        if fits and folder.isascii() and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    most = SOCKET_BYTES - room
    raise OSError(f"TMPDIR={own}: must be a folder of at most {most} ASCII letters, or {', '.join(FALLBACKS)} writable")


def own_folder() -> Path:
    """Return the folder of this user's server sockets on this machine, which only this user can access.

    Raises:
        OSError: if the name is in use by something else, or no temporary folder is suitable.
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
    """Hold the lock under which servers of this machine are started and removed."""
    with open(folder / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Server:
    """The fork server of one sweep, identified by the sweep's token; there is one on each machine."""

    token: str
    script: str
    cpus: int

    @property
    def path(self) -> Path:
        """The path of its socket on the current machine."""
        return own_folder() / f"{self.token}.sock"

    @property
    def log(self) -> Path:
        """The path of the server's own stderr; runs have logs of their own."""
        return self.path.with_suffix(".log")

    def connect(self) -> socket.socket:
        """Connect to this machine's server, and start it first if it is not running.

        Raises:
            ServerLost: if it cannot be started, or belongs to another user.
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
        """Start the server on this machine; it exits by itself after some time without connections."""
        threads = {name: str(self.cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        # Only OpenBLAS starts its threads at import, and they would not survive the fork.
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
        """Send a request, and return the connection on which the answer arrives.

        The run is killed if the connection is closed.

        Args:
            request: values that JSON supports.
            devices: the GPUs that the run sees, as in CUDA_VISIBLE_DEVICES.

        Raises:
            ServerLost: if the server cannot be reached.
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
        """Wait for the complete answer and return its lines; the last one has the exit status of the forked process.

        Raises:
            ServerLost: if the answer ends without a status.
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
        """Send a request and wait for the answer. Raises ServerLost as `send` and `answer` do."""
        return self.answer(self.send(request))

    def outcome(self, connection: socket.socket) -> dict[str, Any]:
        """Wait for the end of the run that was requested on this connection, and return its outcome.

        The outcome is {"status": exit status, negative for a signal}. It has a message under "lost" if the machine
        could not start the run or its server ended, and under "full" if a disk is full or read-only.
        """
        try:
            return {key: value for line in self.answer(connection) for key, value in line.items()}
        except ServerLost as error:
            return {"lost": str(error)}

    def _lost(self, error: OSError) -> ServerLost:
        return ServerLost(f"the server of the runs was lost ({error}): {self.last_words()}")

    def last_words(self) -> str:
        """Return the last line of the server's own log."""
        return last_line(self.log) or "it left no message"

    def forget(self, inode: int | None = None) -> None:
        """Remove the server's socket and log on this machine. With `inode`, do so only if the socket has that inode."""
        with contextlib.suppress(OSError), alone(own_folder()):
            if inode is None or self.path.stat().st_ino == inode:
                self.path.unlink(missing_ok=True)
                self.log.unlink(missing_ok=True)


def _peer(connection: socket.socket) -> int:
    """Return the user id of the process that listens on a Unix socket, or our own if the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()
    pid_uid_gid = struct.Struct("3i")
    uid: int = pid_uid_gid.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, pid_uid_gid.size))[1]
    return uid


def last_line(path: Path) -> str:
    """Return the last line of a text file that is not blank, or "" if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def on_node(server: Server, request: dict[str, Any], gpus: float) -> dict[str, Any]:
    """Do the work of a Ray task: `execute` with the GPUs that Ray assigns, and add the node's id to the outcome."""
    import ray

    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpus else ""
    return {**execute(server, request, devices), "node": ray.get_runtime_context().get_node_id()}


def execute(server: Server, request: dict[str, Any], devices: str = "") -> dict[str, Any]:
    """Start a run with this machine's server, wait until it ends, and return its `Server.outcome`."""
    try:
        return server.outcome(server.send(request, devices))
    except ServerLost as error:
        return {"lost": str(error)}
