"""The fork server: it imports what runs need once, starts no threads, and forks a process for every request.

client.Server starts it as a script. The script opens the socket and continues in the background before it imports, so
that clients can connect as soon as the command returns. A forked process is killed when the connection of its request
closes, so the runs of a killed sweep or Ray worker end too. If the server dies, the kernel kills them (on Linux). The
server exits when the sweep that owns it disconnects, or after IDLE_S seconds without connections.
"""

import contextlib
import ctypes
import functools
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IDLE_S = 30.0


class Forker:
    """A server that calls work(request, connection) in a forked process per request, and sends its exit status."""

    def __init__(self, listener: socket.socket, work: Callable[[dict[str, Any], socket.socket], int]) -> None:
        self._listener, self._work = listener, work
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()  # readable when a child has ended
        for end in (self._wakeup_reader, self._wakeup_writer):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        for source in (listener, self._wakeup_reader):
            self._selector.register(source, selectors.EVENT_READ)
        self._connections: dict[socket.socket, bytearray] = {}  # the data received from each
        self._children: dict[int, socket.socket] = {}  # the connection that requested each process
        self._owner: socket.socket | None = None  # the sweep that this server belongs to

    def serve(self) -> None:
        """Handle requests until the owner disconnects or IDLE_S seconds pass without clients; then kill children."""
        last, serving = time.monotonic(), True
        while serving and time.monotonic() - last < IDLE_S:
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wakeup_reader:
                    self._reap()
                elif key.fileobj in self._connections:
                    serving = self._receive(key.fileobj) and serving
            if self._connections or self._children:
                last = time.monotonic()
        for pid in self._children:
            _kill(pid)

    def _accept(self) -> None:
        connection = self._listener.accept()[0]
        connection.setblocking(False)
        self._connections[connection] = bytearray()
        self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, connection: socket.socket) -> bool:
        """Receive data, and fork once a request is complete. Return False if the owner has disconnected."""
        try:
            data = connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            for pid, requester in self._children.items():
                if requester is connection:
                    _kill(pid)
            self._disconnect(connection)
            return connection is not self._owner
        buffer = self._connections[connection]
        buffer += data
        if buffer.endswith(b"\n"):
            request = json.loads(buffer)
            if request["do"] == "stay":
                self._owner = connection
                buffer.clear()
            else:
                self._fork(connection, request)
        return True

    def _disconnect(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._connections[connection]
        connection.close()

    def _reap(self) -> None:
        """Send the exit status of every child that has ended."""
        with contextlib.suppress(BlockingIOError):
            self._wakeup_reader.recv(1 << 16)
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self._children.pop(pid)
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)  # processes that the run has left behind
            if connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.setblocking(True)
                    connection.sendall(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
                self._disconnect(connection)

    def _fork(self, connection: socket.socket, request: dict[str, Any]) -> None:
        parent = os.getpid()
        if pid := os.fork():
            self._children[pid] = connection
            return
        status = 70
        try:
            self._close_all_but(connection)
            os.setsid()
            _die_with(parent)
            status = self._work(request, connection)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(status)

    def _close_all_but(self, connection: socket.socket) -> None:
        """Reset signals and close all sockets except `connection`, in a forked child."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        others = [other for other in self._connections if other is not connection]
        for end in (self._listener, self._wakeup_reader, self._wakeup_writer, *others):
            end.close()
        connection.setblocking(True)


def _kill(pid: int) -> None:
    """Kill a child and its process group; the child alone if it has no group of its own yet."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Make the kernel kill this process when its parent dies (only on Linux); exit if it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def listen(path: Path) -> socket.socket:
    """Open a Unix socket at the path, replace an old one, and listen on it."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(128)
    return listener


def work_on(script: Path, version: str, cpus: int, request: dict[str, Any], connection: socket.socket) -> int:
    """Execute a request in the forked process, a plan or a run, and return the exit status."""
    from slth.experiments.sweeps import child

    if request["do"] == "plan":
        answer = child.plan(script, version, request)
        connection.sendall(json.dumps(answer).encode() + b"\n")
        return 0
    if version != request["version"]:
        why = f"{socket.gethostname()} has other code: {version}, the sweep's is {request['version']}"
        connection.sendall(json.dumps({"lost": why}).encode() + b"\n")
        return 1
    try:
        return child.run(script, cpus, request)
    except OSError as error:  # before the run, or a full disk; other errors of a run are in its log
        why = f"{socket.gethostname()}: {error}"
        full = child.full_disk(error) is not None
        answer = {"full": why} if full else {"lost": f"{why}; every node must see the sweep's folder"}
        connection.sendall(json.dumps(answer).encode() + b"\n")
        return 1


def main() -> None:
    from slth.experiments.sweeps.client import Server

    server = Server(**json.loads(sys.argv[1]))
    listener = listen(server.path)
    own = server.path.stat().st_ino
    if os.fork():
        return
    os.setsid()
    from slth.experiments.sweeps import child, code

    script = Path(server.script)
    child.prepare(script)
    version = code.version(script, sys.modules)
    gc.collect()
    gc.freeze()  # imported objects stay in memory that the runs share
    try:
        Forker(listener, functools.partial(work_on, script, version, server.cpus)).serve()
    finally:
        server.forget(own)


if __name__ == "__main__":
    main()
