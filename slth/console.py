"""Standard output and error of programs whose work must not fail because a line cannot be written."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm


class Forgiving:
    """A text stream that drops what it cannot write, and escapes letters that its encoding does not have.

    The stream may be closed, its disk full, its reader gone. All that is not writing is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written. Returns len(text)."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: of a closed file
            pass
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what waits, where it can be written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def forgive() -> None:
    """From now on nothing that is printed fails this program: sys.stdout and sys.stderr are `Forgiving`.

    Descriptors 0 to 2 that are closed lead to the null device, so that no other file gets their numbers.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the least number that is free: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Forgiving):
            setattr(sys, name, Forgiving(stream or _nowhere()))


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def one_line(text: str) -> str:
    """Any text on one line, its unprintable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class NoBar:
    """A progress bar that shows nothing."""

    def __enter__(self) -> NoBar:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self) -> None:
        """Show nothing."""

    def set_postfix(self, **numbers: object) -> None:
        """Show nothing."""


def bar(total: int, done: int, name: str) -> tqdm[Any] | NoBar:
    """A bar at `done` of `total` steps, seen where standard error is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return NoBar()
    return tqdm(total=total, initial=done, desc=name, disable=None, leave=False)
