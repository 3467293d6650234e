"""Atomic writes: a file is written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically: if the process is killed or the power fails, the old content is still there.

    The bytes go to a hidden temporary file in the same folder, which replaces the file once they are on the disk.
    Symbolic links are followed. Raises OSError, with the path, if the file cannot be written; the temporary file is
    then removed.
    """
    _replace(path, data)
    _sync_folder(Path(os.path.realpath(path)).parent)


def write_all(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write files, given as {name: content}, into a folder, each atomically as :func:`write` does."""
    for name, data in files.items():
        _replace(Path(folder) / name, data)
    _sync_folder(Path(folder))


def _replace(path: str | os.PathLike[str], data: bytes) -> None:
    file = Path(os.path.realpath(path))
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # the caller's path, not the temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def clear_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove temporary files that a killed :func:`write` of this path left. No other process may be writing it."""
    file = Path(os.path.realpath(path))
    name = re.compile(re.escape(f".{file.name}.") + r"[0-9a-f]{8}\.tmp")
    for other in file.parent.iterdir():
        if name.fullmatch(other.name):
            other.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, if the system can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
