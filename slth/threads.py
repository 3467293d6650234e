"""Run work on several cores, with results that do not depend on their number."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from slth.processors import processors

_MOST_HELPERS = 1024  # an upper bound only: threads start on demand


def cores() -> int:
    """Return the number of processors that this process may use, at most OMP_NUM_THREADS if that is set."""
    here = processors()
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(here, int(limit)) if limit.isdecimal() and int(limit) else here


def in_parallel(work: Callable[[slice], None], count: int, threads: int | None = None) -> None:
    """Call work(part) on Python threads, for slices `part` that cover range(count).

    For work that releases the GIL and treats each item independently. It may itself call in_parallel. The threads
    persist between calls. numba's own pool is not used, as it stalls beside torch's and is not reentrant.

    Args:
        work: called with each slice.
        count: number of items.
        threads: how many threads, an int >= 1; None for :func:`cores`.

    Raises:
        ValueError: if threads < 1. Errors that `work` raises are passed on.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: must be an int >= 1, or None for all cores")
    threads = threads or cores()
    pieces = min(count, 8 * threads) if threads > 1 else 1  # short pieces, so that no thread waits long for another
    if pieces <= 1:
        work(slice(0, count))
        return
    bounds = np.linspace(0, count, pieces + 1).astype(int).tolist()
    _share([slice(a, b) for a, b in itertools.pairwise(bounds)], work, threads)


def holds(check: Callable[[slice], bool], count: int, piece: int) -> bool:
    """Return whether check(part) is true for all slices of `piece` items that cover range(count).

    The checks run as :func:`in_parallel` does; once one is false, no further ones are started.
    """
    false: list[int] = []

    def work(parts: slice) -> None:
        for number in range(parts.start, parts.stop):
            if not false and not check(slice(number * piece, min((number + 1) * piece, count))):
                false.append(number)

    in_parallel(work, -(-count // piece))
    return not false


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Run several calls at once on threads, as :func:`in_parallel` does. Returns their results in order.

    An error that a call raises is passed on.
    """
    results: list[Any] = [None] * len(calls)

    def work(which: slice) -> None:
        for i in range(which.start, which.stop):
            results[i] = calls[i]()

    in_parallel(work, len(calls))
    return results


def _share(parts: list[slice], work: Callable[[slice], None], threads: int) -> None:
    """Have the calling thread and threads - 1 helpers take the parts one by one, so that no call waits for a helper."""
    left = deque(parts)
    torch_threads = torch.get_num_threads()

    def drain() -> None:
        while left:
            try:
                part = left.popleft()
            except IndexError:  # another thread was faster
                return
            work(part)

    def help_out() -> None:
        if torch.get_num_threads() != torch_threads:  # torch's setting is per thread and stays in a pooled one
            torch.set_num_threads(torch_threads)
        drain()

    helpers: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # at interpreter shutdown no helpers start: the calling thread does all the work
            helpers += (_pool.submit(help_out) for _ in range(min(threads, len(parts)) - 1))
        drain()
    finally:
        left.clear()
        errors = [helper.exception() for helper in helpers if not helper.cancel()]
    for error in filter(None, errors):
        raise error


def _new_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(_MOST_HELPERS, "slth")


_pool = ThreadPoolExecutor(_MOST_HELPERS, "slth")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_pool)  # a forked process has none of its parent's threads


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread in the block: sums have a fixed order, and our own threads do not compete with it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
