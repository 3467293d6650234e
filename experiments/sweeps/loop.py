"""Start the runs that are missing, as many at once as there is room for, and try again what failed."""

import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slth.experiments import lab
from slth.experiments.sweeps.client import last_line
from slth.experiments.sweeps.engine import Engine
from slth.experiments.sweeps.plan import Run
from slth.experiments.sweeps.store import Store

LOSSES = 5  # times that a run may lose its node; this is no fault of the run
TICK_S = 1.0  # at most between two looks at the engine
PATIENCE_S = 60.0  # to wait for a node that a run fits on, where the last one is gone
NEWS_S = 60.0  # between two lines where there is no terminal for a bar


@dataclass
class Attempt:
    """A run, and how it went so far."""

    run: Run
    failures: int = 0
    losses: int = 0
    place: Path = Path()

    @property
    def number(self) -> int:
        """Of this attempt, from 0 on."""
        return self.failures + self.losses


class News:
    """How far a sweep is: beside the bar, or where there is none as a line now and then, for a log."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._next = time.monotonic() + NEWS_S

    def tell(self, waiting: int, running: int, failed: int) -> None:
        """How many runs are waiting, running, and have failed for good."""
        self._bar.set_postfix_str(f"running {running}, failed {failed}", refresh=True)
        if self._bar.disable and time.monotonic() >= self._next:
            print(f"runs: {waiting} waiting, {running} running, {failed} failed", flush=True)
            self._next = time.monotonic() + NEWS_S


class Room:
    """How many runs may go on at once; for PATIENCE_S it may be none."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._none_since: float | None = None

    def now(self) -> int:
        """Raises lab.Refused where no node has come for too long."""
        room = self._engine.capacity()
        now = time.monotonic()
        if room:
            self._none_since = None
        elif self._none_since is None:
            self._none_since = now
            print(f"no node is left that a run fits on: waiting {PATIENCE_S:.0f} s for one", file=sys.stderr)
        elif now - self._none_since > PATIENCE_S:
            line = f"no node that a run fits on for {PATIENCE_S:.0f} s; what is finished stands"
            raise lab.Refused(f"{line}, and the same command goes on")
        return room


def drive(engine: Engine, store: Store, runs: Sequence[Run], request: dict[str, Any], retries: int) -> dict[str, str]:
    """Make all the runs; returns why, for those that failed more than `retries` times.

    Raises:
        OSError: if the folder cannot be written any more; what stands there is whole.
        lab.Refused: if the cluster was lost, or the last node that a run fits on.
    """
    room = Room(engine)
    waiting = deque(Attempt(run) for run in runs)
    running: dict[Any, Attempt] = {}
    failed: dict[str, str] = {}
    with lab.progress(None, "runs", total=len(runs)) as bar:
        news = News(bar)
        while waiting or running:
            most = room.now()
            while waiting and len(running) < most:
                attempt = waiting.popleft()
                if store.has(attempt.run.id):  # another sweep was faster
                    bar.update()
                    continue
                attempt.place = store.place_for(attempt.run.id, attempt.number)
                run = {"id": attempt.run.id, "updates": attempt.run.updates, "place": str(attempt.place)}
                running[engine.submit({**request, **run})] = attempt
            news.tell(len(waiting), len(running), len(failed))
            if waiting and not running:
                time.sleep(TICK_S)
            for ticket in engine.finished(list(running), TICK_S) if running else []:
                attempt = running.pop(ticket)
                why = _ended(store, attempt, engine.outcome(ticket))
                if why is None:
                    bar.update()
                elif attempt.failures > retries or attempt.losses > LOSSES:
                    failed[attempt.run.id] = why
                    bar.update()
                else:
                    waiting.append(attempt)
    return failed


def _ended(store: Store, attempt: Attempt, outcome: dict[str, Any]) -> str | None:
    """Keep a run that is complete; for another count what happened to it, and say why it ended.

    Raises:
        OSError: if it was for want of room: to try again would help no run.
    """
    try:
        if outcome.get("status") == 0:
            store.adopt(attempt.run.id, attempt.place)
            return None
        return _failed(store, attempt, outcome)
    except lab.BadConfig as error:
        return _failed(store, attempt, {"why": str(error)})
    finally:
        store.discard(attempt.place)


def _failed(store: Store, attempt: Attempt, outcome: dict[str, Any]) -> str:
    if "full" in outcome:
        raise OSError(outcome["full"])
    store.require_room()  # while all that the attempt wrote is still there
    if "lost" in outcome:
        attempt.losses += 1
    else:
        attempt.failures += 1
    why = outcome.get("lost") or outcome.get("why") or last_line(attempt.place / "log.txt")
    why = why or f"no message, exit status {outcome.get('status')}"
    kept = store.keep_log(attempt.run.id, attempt.place)
    return f"{why} (log: {kept})" if kept else why
