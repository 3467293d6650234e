"""Interleaved timing of several calls, so that a busy machine slows down all of them and ratios stay valid."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

COLUMNS = ["what", "size", "ours_s", "peer", "peer_s", "ratio", "error_ours", "error_peer"]
SPREAD = ["ours_s_low", "ours_s_high", "peer_s_low", "peer_s_high"]
Row = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds and return value of each round, of which there is at least one."""

    seconds: list[float]
    values: list[Any]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    def per(self, count: int) -> "Timing":
        """Divide the times by `count`, the number of equal parts of a call."""
        return Timing([seconds / count for seconds in self.seconds], self.values)


def interleave(
    calls: Mapping[Name, Callable[[int], Any]],
    rounds: int,
    warmups: int = 1,
    lead_ins: int = 0,
    before: Callable[[int], Any] | None = None,
) -> dict[Name, Timing]:
    """Time each call once per round, in an order that is reversed from round to round.

    Args:
        calls: name -> call. A call gets the number of the round (0 during warm-up) and must return after its work is
            done, so on a device it must synchronise.
        rounds: number of timed rounds, >= 1.
        warmups: number of untimed rounds before them.
        lead_ins: untimed calls directly before each timed one. With 1, no call pays for the state of memory and caches
            after another one, as in a program that calls it repeatedly.
        before: called untimed before each call with the number of the round, which is negative during warm-up.
    """
    names = list(calls)
    timings = {name: Timing([], []) for name in names}
    for turn in range(-warmups, rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            if before:
                before(turn)
            for _ in range(lead_ins):
                calls[name](max(turn, 0))
            started = time.perf_counter()
            value = calls[name](max(turn, 0))
            seconds = time.perf_counter() - started
            if turn >= 0:
                timings[name].seconds.append(seconds)
                timings[name].values.append(value)
    return timings


def compare(what: str, size: str, ours: Timing, peer: str, theirs: Timing, error_ours: float, error_peer: float) -> Row:
    """Return a row of COLUMNS, with median seconds and ratio = peer_s / ours_s, and SPREAD, the extreme times."""
    row = [what, size, ours.median, peer, theirs.median, theirs.median / ours.median, error_ours, error_peer]
    spread = [bound(timing.seconds) for timing in (ours, theirs) for bound in (min, max)]
    return dict(zip(COLUMNS + SPREAD, row + spread, strict=True))
