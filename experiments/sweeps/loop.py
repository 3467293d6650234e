"""Start the runs that are missing, as many at once as there is room for, and try again what failed."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lab

from sweeps.client import last_line
from sweeps.engine import Cluster
from sweeps.plan import Run
from sweeps.store import Store

LOSSES = 5  # times that a run may lose its node; this is no fault of the run


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


def drive(cluster: Cluster, store: Store, runs: Sequence[Run], request: dict[str, Any], retries: int) -> dict[str, str]:
    """Make all the runs; returns why, for those that failed more than `retries` times.

    Raises:
        OSError: if the folder cannot be written any more; what stands there is whole.
    """
    waiting = deque(Attempt(run) for run in runs)
    running: dict[Any, Attempt] = {}
    failed: dict[str, str] = {}
    with lab.progress(None, "runs", total=len(runs)) as table:
        while waiting or running:
            while waiting and len(running) < max(1, cluster.capacity()):
                attempt = waiting.popleft()
                if store.has(attempt.run.id):  # another sweep was faster
                    table.update()
                    continue
                attempt.place = store.place_for(attempt.run.id, attempt.number)
                run = {"id": attempt.run.id, "updates": attempt.run.updates, "place": str(attempt.place)}
                running[cluster.submit({**request, **run})] = attempt
            table.set_postfix_str(f"running {len(running)}, failed {len(failed)}", refresh=True)
            for ticket in cluster.finished(list(running), timeout_s=1.0) if running else []:
                attempt = running.pop(ticket)
                why = _ended(store, attempt, cluster.outcome(ticket))
                if why is None:
                    table.update()
                elif attempt.failures > retries or attempt.losses > LOSSES:
                    failed[attempt.run.id] = why
                    table.update()
                else:
                    waiting.append(attempt)
    return failed


def _ended(store: Store, attempt: Attempt, outcome: dict[str, Any]) -> str | None:
    """Keep a run that is complete; for another count what happened to it, and say why it ended."""
    name = attempt.run.id
    try:
        if outcome.get("status") == 0:
            store.adopt(name, attempt.place)
            return None
        why = outcome.get("lost") or outcome.get("why")
    except lab.BadConfig as error:
        why, outcome = str(error), {}
    except OSError:
        store.discard(attempt.place)
        raise
    if "lost" in outcome:
        attempt.losses += 1
    else:
        attempt.failures += 1
    log = attempt.place / "log.txt"
    why = why or last_line(log) or f"no message, exit status {outcome.get('status')}"
    kept = store.keep_log(name, attempt.place)
    store.discard(attempt.place)
    store.require_room()
    return f"{why} (log: {kept})" if kept else why
