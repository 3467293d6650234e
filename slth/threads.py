"""Work on several cores with results that do not depend on how many there are."""

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

_MOST_HELPERS = 1024  # threads are started where they are wanted and none is idle, so this many never are


def cores() -> int:
    """Processors that this process may use, at most OMP_NUM_THREADS where that says how many."""
    here = processors()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(here, int(wanted)) if wanted.isdecimal() and int(wanted) else here


def in_parallel(work: Callable[[slice], None], count: int, threads: int | None = None) -> None:
    """Call work(part) for slices that cover range(count), on Python threads; default as many as :func:`cores`.

    For work that releases the interpreter's lock and treats each item on its own. Plain threads instead of numba's own
    pool, which stalls beside torch's and must not be entered twice; these stay from call to call, and work may itself
    call in_parallel. Raises ValueError for threads < 1, and what work raises.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: must be an int >= 1, or None for all cores")
    threads = threads or cores()
    pieces = min(count, 8 * threads) if threads > 1 else 1  # short pieces, so that no thread waits long for the other
    if pieces <= 1:
        work(slice(0, count))
        return
    bounds = np.linspace(0, count, pieces + 1).astype(int).tolist()
    _share([slice(a, b) for a, b in itertools.pairwise(bounds)], work, threads)


def holds(check: Callable[[slice], bool], count: int, piece: int) -> bool:
    """Whether check(part) is true of all slices of `piece` items that cover range(count), as :func:`in_parallel` calls.

    No more are checked once one is false.
    """
    false: list[int] = []

    def work(parts: slice) -> None:
        for number in range(parts.start, parts.stop):
            if not false and not check(slice(number * piece, min((number + 1) * piece, count))):
                false.append(number)

    in_parallel(work, -(-count // piece))
    return not false


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return, made at once on threads as :func:`in_parallel` has them. Raises what one raises."""
    results: list[Any] = [None] * len(calls)

    def work(which: slice) -> None:
        for i in range(which.start, which.stop):
            results[i] = calls[i]()

    in_parallel(work, len(calls))
    return results


def _share(parts: list[slice], work: Callable[[slice], None], threads: int) -> None:
    """The calling thread and threads - 1 helpers take the parts one by one, so that no call waits for a helper."""
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
        if torch.get_num_threads() != torch_threads:  # a thread keeps the number that it began with
            torch.set_num_threads(torch_threads)
        drain()

    helpers: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # while the interpreter ends there are no helpers: the calling thread does it all
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
    os.register_at_fork(after_in_child=_new_pool)  # threads do not follow into a forked process


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread inside: sums come in one order, and threads of our own do not fight with torch's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
