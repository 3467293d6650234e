"""Files that several runs of a sweep need: one run creates them, and the others use them."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER: Path | None = None  # of the shared files; a sweep sets it for its runs


@contextmanager
def shared(what: Mapping[str, Any]) -> Iterator[Path | None]:
    """Lock and yield the path of a shared file whose content depends only on `what` and the code.

    Yields None outside a sweep. No other run has the lock within the block. If the file does not exist, the caller
    creates it; if it exists, the caller uses it.

    Args:
        what: everything that the file's content depends on. Values that JSON does not support are converted with `str`.
    """
    if FOLDER is None:
        yield None
        return
    FOLDER.mkdir(exist_ok=True)
    name = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]
    with open(FOLDER / f"{name}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield FOLDER / name
