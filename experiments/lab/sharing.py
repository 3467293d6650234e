"""What several runs of a sweep have in common is made by one of them, and taken by the others."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER: Path | None = None  # where the runs of a sweep lay what others may take; a sweep names its own


@contextmanager
def shared(what: Mapping[str, Any]) -> Iterator[Path | None]:
    """The place of a file that depends on nothing but `what`, and on the code; None outside a sweep.

    Within the block no other run has the place. Who finds no file there makes it; who finds one takes it.

    Args:
        what: all that the file depends on; values that JSON does not know count as their text.
    """
    if FOLDER is None:
        yield None
        return
    FOLDER.mkdir(exist_ok=True)
    name = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]
    with open(FOLDER / f"{name}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield FOLDER / name
