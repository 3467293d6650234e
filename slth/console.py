"""Standard output and error that never make a program fail because a line cannot be written."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm


class Forgiving:
    """A text stream that drops text it cannot write and escapes characters that its encoding lacks.

    Writing never fails, even if the stream is closed, the disk is full or the reader of a pipe is gone. All other
    attributes are those of the underlying stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text if possible. Returns len(text) in any case."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: the file is closed
            pass
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write the lines one after another, each as :meth:`write` does."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the buffer if possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def forgive() -> None:
    """Replace sys.stdout and sys.stderr by `Forgiving` streams, so that no print can fail from now on.

    File descriptors 0 to 2 that are closed are opened on the null device, so that no other file gets their numbers.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `descriptor`
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Forgiving):
            setattr(sys, name, Forgiving(stream or _nowhere()))


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def one_line(text: str) -> str:
    """Put a text on one line by escaping its unprintable characters, line breaks included."""
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
    """Make a progress bar at `done` of `total` steps; it is shown on a terminal, if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return NoBar()
    return tqdm(total=total, initial=done, desc=name, disable=None, leave=False)
