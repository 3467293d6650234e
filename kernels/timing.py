"""Times of rivals that are taken by turns, so that a busy machine slows down all of them and their ratio stands."""

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
    """Seconds that each call took, at least one, and what each returned, in the order of the rounds."""

    seconds: list[float]
    values: list[Any]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def per(self, count: int) -> "Timing":
        """The same for one of `count` equal parts of a call."""
        return Timing([seconds / count for seconds in self.seconds], self.values)


def interleave(
    calls: Mapping[Name, Callable[[int], Any]],
    rounds: int,
    warmups: int = 1,
    lead_ins: int = 0,
    before: Callable[[int], Any] | None = None,
) -> dict[Name, Timing]:
    """Time each call once a round, in an order that is reversed from round to round.

    Args:
        calls: by name; each is given the number of the round (0 while it is warmed up), and must not return before its
            work is done: on a device it waits for the device.
        rounds: how many are timed, >= 1.
        warmups: rounds before them that are not.
        lead_ins: untimed calls right before each timed one, for every rival alike: with 1 none pays for the memory and
            caches that another has left behind, which is how it runs in a program that calls it again and again.
        before: called, untimed, before each rival's turn with the number of the round, negative while warming up.
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
    """COLUMNS, the median times in seconds and ratio = peer_s / ours_s; then SPREAD, the least and greatest times."""
    row = [what, size, ours.median, peer, theirs.median, theirs.median / ours.median, error_ours, error_peer]
    spread = [bound(timing.seconds) for timing in (ours, theirs) for bound in (min, max)]
    return dict(zip(COLUMNS + SPREAD, row + spread, strict=True))
