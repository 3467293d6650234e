"""Time subset-sum problems with `slth.construct.subset_sum.solve` against solvers of integer programs."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from slth.construct.subset_sum import solve
from slth.experiments.studies.speed import peers
from slth.kernels.timing import Row, Timing, compare, interleave
from slth.threads import cores
from slth.weights import inits

WHAT = "subset_sum"
FULL_BATCH = 20  # most candidates of a full batch, whose time doubles with every two candidates


def rows(
    candidates: int, *, batch: int, rounds: int, time_limit: float, seed: int, threads: int | None = None
) -> list[Row]:
    """Return one row per peer, at one number of candidates.

    In each round ours solves the whole batch, whose time is divided by the number of problems, and each peer solves one
    problem of it, a different one in every round. Errors are medians over the problems that the peer solved; `worse`
    counts those where our error is larger than the peer's by any amount.

    Args:
        candidates: n, from 1 to 40.
        batch: problems per batch of ours; fewer for n > 20, but at least one per round.
        rounds: >= 1.
        time_limit: seconds after which a peer returns its best solution.
        seed: seed of the problems.
        threads: threads of ours. None: all cores.
    """
    batch = max(rounds, int(batch * 2.0 ** min(0.0, (FULL_BATCH - candidates) / 2)))
    values, targets = problems(candidates, batch, seed)
    threads = threads or cores()
    timed = _solved_by_turns(values, targets, rounds, time_limit, threads)
    ours = timed.pop("ours")
    conditions = {
        "candidates": candidates,
        "batch": batch,
        "rounds": rounds,
        "threads": threads,
        "time_limit_s": time_limit,
    }
    return [
        _row(ours, peer, theirs, errors_of(theirs.values, values, targets), conditions)
        for peer, theirs in timed.items()
    ]


def problems(candidates: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw candidates (count, n), products of two U(-1, 1), and targets (count,), U(-1, 1), float64."""

    def draw(shape: tuple[int, ...], name: str) -> np.ndarray:
        return inits.uniform(shape, 1.0, seed=seed, name=f"speed/{candidates}/{name}").numpy().astype(np.float64)

    return draw((count, candidates), "u") * draw((count, candidates), "v"), draw((count,), "target")


def errors_of(masks: list[np.ndarray], values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Compute |sum - target| of the first len(masks) problems, with sums in index order as in `solve`."""
    kept = np.where(masks, values[: len(masks)], 0.0)
    errors: np.ndarray = np.abs(kept.cumsum(axis=1)[:, -1] - targets[: len(masks)])
    return errors


def _solved_by_turns(
    values: np.ndarray, targets: np.ndarray, rounds: int, time_limit: float, threads: int
) -> dict[str, Timing]:
    with ExitStack() as stack:
        calls: dict[str, Callable[[int], Any]] = {"ours": lambda _: solve(values, targets, threads=threads)}
        solve(values[:1], targets[:1], threads=threads)
        for name in peers.installed():
            solver = stack.enter_context(peers.process(name, time_limit))
            solver(np.array([0.25, 0.5]), 0.3)  # loads its library
            calls[name] = partial(_solve_one, solver, values, targets)
        return interleave(calls, rounds, warmups=0)


def _solve_one(
    solver: Callable[[np.ndarray, float], np.ndarray], values: np.ndarray, targets: np.ndarray, turn: int
) -> np.ndarray:
    return solver(values[turn], targets[turn])


def _row(ours: Timing, peer: str, theirs: Timing, error_peer: np.ndarray, conditions: dict[str, Any]) -> Row:
    error_ours = ours.values[0].errors[: len(error_peer)]
    return compare(
        WHAT,
        f"n={conditions['candidates']}",
        ours.per(conditions["batch"]),
        peer,
        theirs,
        float(np.median(error_ours)),
        float(np.median(error_peer)),
    ) | {"worse": int((error_ours > error_peer).sum()), **conditions}
