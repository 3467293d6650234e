"""Files that several runs of a sweep need: one run creates them, and the others use them."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slth.disk import write

FOLDER: Path | None = None  # of the shared files; a sweep sets it for its runs if they can share any


@contextlib.contextmanager
def shared(what: Mapping[str, Any]) -> Iterator[Path]:
    """Lock and yield the path of a shared file whose content depends only on `what` and the code.

    To be called where FOLDER is set. No other run has the lock within the block. If the file does not exist, the caller
    creates it; if it exists, the caller uses it. If the block raises FloatingPointError, so does every later call for
    the same file, with the same message.

    Args:
        what: everything that the file's content depends on. Values that JSON does not support are converted with `str`.

    Raises:
        OSError: if the folder cannot be written.
        FloatingPointError: if an earlier block for the same file raised it.
    """
    assert FOLDER is not None
    FOLDER.mkdir(exist_ok=True)
    name = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]
    with open(FOLDER / f"{name}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _same_divergence(FOLDER / f"{name}.json"):
            yield FOLDER / name


@contextlib.contextmanager
def _same_divergence(note: Path) -> Iterator[None]:
    """Store the message of a FloatingPointError of the block in a file; if the file exists, raise that error again."""
    if note.exists():
        raise FloatingPointError(json.loads(note.read_text(encoding="utf-8"))["diverged"])
    try:
        yield
    except FloatingPointError as error:
        with contextlib.suppress(OSError):
            write(note, json.dumps({"diverged": str(error)}).encode())
        raise
