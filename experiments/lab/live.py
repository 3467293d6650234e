"""Curves of a run while it is running: Sacred's metrics, which are stored in files, SQL, MongoDB and trackers.

    slth.fit(..., log=lab.curves("tiny dense"))      # tiny dense/train_loss, tiny dense/val_loss, ...

A study need not know the run: points are logged to the run whose main function is executing, or dropped if there is
none.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Point = tuple[str, float, int]  # name of the curve, value, step

_send: Callable[[str, float, int], object] | None = None


@contextmanager
def sent_to(send: Callable[[str, float, int], object]) -> Iterator[None]:
    """Send points of curves within the with block to send(name, value, step), such as Sacred's `run.log_scalar`."""
    global _send
    before, _send = _send, send
    try:
        yield
    finally:
        _send = before


def curves(name: str) -> Callable[[Mapping[str, float], int], None]:
    """Return a function for `slth.fit(..., log=)` that logs numbers at a step as points of the curves NAME/NUMBER.

    Numbers that are not finite are left out, since JSON does not have them.
    """

    def log(numbers: Mapping[str, float], step: int) -> None:
        for key, value in numbers.items():
            if _send is not None and math.isfinite(value):
                _send(f"{name}/{key}", value, step)

    return log


@contextmanager
def collected() -> Iterator[list[Point]]:
    """Collect points within the with block in a list, in a process without a run, for :func:`replay` in the other."""
    points: list[Point] = []
    with sent_to(lambda *point: points.append(point)):
        yield points


def replay(points: list[Point]) -> None:
    """Log the points that another process has collected."""
    for point in points:
        if _send is not None:
            _send(*point)
