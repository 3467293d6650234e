"""The main loop of a sweep: it starts runs, as many at once as the engine allows, and retries failed ones."""

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

LOSSES = 5  # times that a run may lose its node; this does not count as a failure of the run
TICK_S = 1.0  # maximum wait before the engine is polled again
PATIENCE_S = 60.0  # wait for a node that a run fits on, after the last one is gone
NEWS_S = 60.0  # between two progress lines, without a terminal


@dataclass
class Attempt:
    """A run, the numbers of its failures and lost nodes so far, and the folder of its current attempt."""

    run: Run
    failures: int = 0
    losses: int = 0
    place: Path = Path()

    @property
    def number(self) -> int:
        """The number of this attempt, from 0."""
        return self.failures + self.losses


class News:
    """The progress of a sweep: text beside the progress bar, or without a terminal one line per NEWS_S seconds."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._next = time.monotonic() + NEWS_S

    def tell(self, waiting: int, running: int, failed: int) -> None:
        """Show how many runs are waiting, are running, and have failed after all retries."""
        self._bar.set_postfix_str(f"running {running}, failed {failed}", refresh=True)
        if self._bar.disable and time.monotonic() >= self._next:
            print(f"runs: {waiting} waiting, {running} running, {failed} failed", flush=True)
            self._next = time.monotonic() + NEWS_S


class Room:
    """The number of runs that can run at once. It may be 0 for at most PATIENCE_S seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._none_since: float | None = None

    def now(self) -> int:
        """Return the current number. Raises lab.Refused if it has been 0 for more than PATIENCE_S seconds."""
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
    """Make all the runs, and return the messages of those that still fail after all retries, by run id.

    Args:
        engine: starts the runs.
        store: the sweep's folder.
        runs: the missing runs.
        request: the part of the server's request that all runs share.
        retries: maximum retries of a failed run; a run that lost its node is also retried, at most LOSSES times.

    Raises:
        OSError: if the folder cannot be written any more; the finished runs in it are complete.
        lab.Refused: if the cluster is lost, or the last node that a run fits on.
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
                if store.has(attempt.run.id):  # another sweep has finished it
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
    """Move a completed run to the sweep's folder and return None, or count the failure and return its message.

    Raises:
        OSError: if the disk is full or read-only, so that a retry would not help.
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
