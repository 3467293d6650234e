"""The fork server: it imports what a run needs once, starts no threads, and forks a process for every request.

Started as a script by client.Server. It listens, goes on in the background and only then imports, so that whoever
started it can connect when the command has ended. Each forked process lives no longer than the connection that asked
for it: a sweep or a Ray worker that is killed takes its runs along, and the kernel kills them with the server. The
server ends when the sweep that started it does, or when nobody has been connected for IDLE_S.
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
    """Forks work(request, connection) for each request, and tells its exit status, until nobody is left to ask."""

    def __init__(self, listener: socket.socket, work: Callable[[dict[str, Any], socket.socket], int]) -> None:
        self._listener, self._work = listener, work
        self._bell, self._rope = socket.socketpair()  # rings where a child has ended
        for end in (self._bell, self._rope):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._rope.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        for source in (listener, self._bell):
            self._selector.register(source, selectors.EVENT_READ)
        self._connections: dict[socket.socket, bytearray] = {}  # what each has said so far
        self._children: dict[int, socket.socket] = {}  # who asked for them
        self._owner: socket.socket | None = None  # the sweep that this server belongs to

    def serve(self) -> None:
        """Until the owner goes, or nobody has been here for IDLE_S."""
        last, here = time.monotonic(), True
        while here and time.monotonic() - last < IDLE_S:
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._listener:
                    self._greet()
                elif key.fileobj is self._bell:
                    self._bury()
                elif key.fileobj in self._connections:
                    here = self._hear(key.fileobj) and here
            if self._connections or self._children:
                last = time.monotonic()
        for pid in self._children:
            _kill(pid)

    def _greet(self) -> None:
        connection = self._listener.accept()[0]
        connection.setblocking(False)
        self._connections[connection] = bytearray()
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> bool:
        """Take in what is said, and fork when a request is whole; False where the owner has gone."""
        try:
            data = connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            for pid, asked in self._children.items():
                if asked is connection:
                    _kill(pid)
            self._leave(connection)
            return connection is not self._owner
        said = self._connections[connection]
        said += data
        if said.endswith(b"\n"):
            request = json.loads(said)
            if request["do"] == "stay":
                self._owner = connection
                said.clear()
            else:
                self._fork(connection, request)
        return True

    def _leave(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._connections[connection]
        connection.close()

    def _bury(self) -> None:
        """Tell the exit status of every child that has ended."""
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(1 << 16)
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self._children.pop(pid)
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)  # what the run may have left running
            if connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.setblocking(True)
                    connection.sendall(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
                self._leave(connection)

    def _fork(self, connection: socket.socket, request: dict[str, Any]) -> None:
        parent = os.getpid()
        if pid := os.fork():
            self._children[pid] = connection
            return
        status = 70
        try:
            self._forget_all_but(connection)
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

    def _forget_all_but(self, connection: socket.socket) -> None:
        """In a child: leave the server's signals and sockets, but the one that asked."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        others = [other for other in self._connections if other is not connection]
        for end in (self._listener, self._bell, self._rope, *others):
            end.close()
        connection.setblocking(True)


def _kill(pid: int) -> None:
    """Kill the child with all that it started; it may not lead a group yet."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process where its parent dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def listen(path: Path) -> socket.socket:
    """A socket at the path, in a folder of this user alone."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(128)
    return listener


def work_on(script: Path, version: str, cpus: int, request: dict[str, Any], connection: socket.socket) -> int:
    """In the forked process: plan, or run."""
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
    except OSError as error:  # before the run, or of a full disk: what else it raises is in its log
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
    gc.freeze()  # what has been imported stays shared with the runs
    try:
        Forker(listener, functools.partial(work_on, script, version, server.cpus)).serve()
    finally:
        server.forget(own)


if __name__ == "__main__":
    main()
