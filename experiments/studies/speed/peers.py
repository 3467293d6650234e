"""Solvers of other libraries for one subset-sum problem, each in its own process.

Their libraries cannot all be loaded into one process, and HiGHS prints to standard output. A problem and its answer are
sent as one line of JSON each, which takes about 0.1 ms.

    with peers.process("scipy.milp", time_limit=20) as solve:
        mask = solve(candidates, target)
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

Solver = Callable[[np.ndarray, float], np.ndarray]
"""Candidates (n,) float64 and a target -> a mask (n,) bool."""

INTEGERS_PER_UNIT = 10**12  # CP-SAT supports only integers; int64 holds the sums of any 40 candidates of size 1


def milp(candidates: np.ndarray, target: float, time_limit: float) -> np.ndarray:
    """Solve with HiGHS in `scipy.optimize.milp`: binary x and the least e with -e <= candidates x - target <= e.

    The gap is 0, for the optimum, which takes as long as with a gap of 1 %. Constraints may be violated by 1e-6, which
    limits the accuracy. The mask is empty if there is no solution within `time_limit` seconds.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    n = len(candidates)
    rows = np.column_stack([np.stack([candidates, candidates]), [-1.0, 1.0]])  # (2, n + 1), e comes last
    found = milp(
        np.append(np.zeros(n), 1.0),
        constraints=LinearConstraint(rows, [-np.inf, target], [target, np.inf]),
        integrality=np.append(np.ones(n), 0.0),
        bounds=Bounds(0.0, np.append(np.ones(n), np.inf)),
        options={"mip_rel_gap": 0.0, "time_limit": time_limit},
    )
    return np.zeros(n, bool) if found.x is None else found.x[:n] > 0.5


def cp_sat(candidates: np.ndarray, target: float, time_limit: float) -> np.ndarray:
    """Solve with OR-Tools CP-SAT on one thread, which is its fastest here, and on integers, in units of 1e-12.

    The mask is empty if there is no solution within `time_limit` seconds.
    """
    from ortools.sat.python import cp_model

    weights = np.rint(candidates * INTEGERS_PER_UNIT).astype(np.int64)
    wanted = round(target * INTEGERS_PER_UNIT)
    model = cp_model.CpModel()
    chosen = [model.new_bool_var("") for _ in weights]
    error = model.new_int_var(0, int(np.abs(weights).sum()) + abs(wanted), "")
    missed = cp_model.LinearExpr.weighted_sum(chosen, weights.tolist()) - wanted
    model.add(missed <= error)
    model.add(missed >= -error)
    model.minimize(error)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = time_limit
    found = solver.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return np.array([found and solver.boolean_value(x) for x in chosen])


SOLVERS = {"scipy.milp": milp, "ortools.cp_sat": cp_sat}


def installed() -> list[str]:
    """Return the names of the installed SOLVERS; OR-Tools is optional."""
    return [name for name in SOLVERS if importlib.util.find_spec(name.split(".")[0])]


@contextmanager
def process(name: str, time_limit: float) -> Iterator[Solver]:
    """Yield a solver that runs in another process until the with block ends, with `time_limit` seconds per problem.

    The solver raises RuntimeError if that process ends early; its messages are on stderr.
    """
    command = [sys.executable, "-P", __file__, name, str(time_limit)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:

        def solve(candidates: np.ndarray, target: float) -> np.ndarray:
            try:
                print(json.dumps([candidates.tolist(), float(target)]), file=worker.stdin, flush=True)
                answer = worker.stdout.readline() if worker.stdout else ""
            except BrokenPipeError:
                answer = ""
            if not answer:
                raise RuntimeError(f"the process of {name} ended early")
            return np.array(json.loads(answer), dtype=bool)

        try:
            yield solve
        finally:
            worker.kill()


def _serve(name: str, time_limit: float) -> None:
    """Answer the problems on standard input, one per line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts, and ends this process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discard what the library prints
    for line in sys.stdin:
        candidates, target = json.loads(line)
        mask = SOLVERS[name](np.array(candidates), target, time_limit)
        print(json.dumps(mask.tolist()), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]))
