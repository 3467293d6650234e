"""Work on several cores with results that do not depend on how many there are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(work: Callable[[slice], None], count: int, threads: int | None = None) -> None:
    """Call work(part) for slices that cover range(count), on Python threads; default as many as :func:`cores`.

    For work that releases the interpreter's lock and treats each item on its own. Plain threads instead of numba's own
    pool, which stalls beside torch's and must not be entered twice. Raises ValueError for threads < 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: must be an int >= 1, or None for all cores")
    threads = threads or cores()
    pieces = min(count, 8 * threads) if threads > 1 else 1  # short pieces, so that no thread waits long for the other
    bounds = np.linspace(0, count, pieces + 1).astype(int).tolist()
    parts = [slice(a, b) for a, b in itertools.pairwise(bounds) if a < b]
    if len(parts) <= 1:
        work(slice(0, count))
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread inside: sums come in one order, and threads of our own do not fight with torch's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
