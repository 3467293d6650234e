"""Convert signals that end a process into an exception, so that its run is stored as interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_SOON = 0.05  # seconds


class Ended(KeyboardInterrupt):
    """Raised when a signal asks this process to end; its run is then stored as interrupted."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        super().__init__(number.name)


@contextlib.contextmanager
def signals_end_a_run() -> Iterator[None]:
    """Raise Ended, once, for SIGTERM and SIGHUP, which would otherwise end the process and leave its run RUNNING.

    If Python ignores the exception (in a `__del__`, or a callback of its garbage collector), the signal is sent again.
    """
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    caught = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores SIGHUP
    owner = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a process forked within the run ends as usual
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in caught:
            signal.signal(other, signal.SIG_IGN)  # while the run is stored
        raise Ended(signal.Signals(number))

    def again(ignored: sys.UnraisableHookArgs) -> None:
        if not isinstance(ignored.exc_value, Ended):
            usual(ignored)
            return
        for other in caught:
            signal.signal(other, end)
        threading.Timer(_SOON, os.kill, (owner, ignored.exc_value.number)).start()

    usual = sys.unraisablehook
    sys.unraisablehook = again
    for number in caught:
        signal.signal(number, end)
    try:
        yield
    finally:
        sys.unraisablehook = usual
        for number in caught:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)
