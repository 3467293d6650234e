"""Curves of a run while they grow: Sacred's metrics, which files, SQL and MongoDB and trackers show.

    slth.fit(..., log=lab.curves("tiny dense"))      # tiny dense/train_loss, tiny dense/val_loss, ...

A study need not know the run: what is logged goes to the one whose main function is being called, and nowhere where
there is none.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Point = tuple[str, float, int]  # name of the curve, value, step

_send: Callable[[str, float, int], object] | None = None


@contextmanager
def sent_to(send: Callable[[str, float, int], object]) -> Iterator[None]:
    """Within the block points of curves go to a function of name, value and step, as Sacred's `run.log_scalar`."""
    global _send
    before, _send = _send, send
    try:
        yield
    finally:
        _send = before


def curves(name: str) -> Callable[[Mapping[str, float], int], None]:
    """What logs numbers by name at a step as points of the curves NAME/NUMBER, for `slth.fit(..., log=)`.

    A number that is not finite is left out: JSON has none.
    """

    def log(numbers: Mapping[str, float], step: int) -> None:
        for key, value in numbers.items():
            if _send is not None and math.isfinite(value):
                _send(f"{name}/{key}", value, step)

    return log


@contextmanager
def collected() -> Iterator[list[Point]]:
    """Within the block points go into a list, in a process that has no run, for :func:`replay` in the one that has."""
    points: list[Point] = []
    with sent_to(lambda *point: points.append(point)):
        yield points


def replay(points: list[Point]) -> None:
    """Log what another process collected."""
    for point in points:
        if _send is not None:
            _send(*point)
