"""Send measurements of a running search to an experiment tracker: `slth.fit(..., log=)`.

slth.fit(..., log=wandb.log)              # Weights & Biases, within wandb.init()
slth.fit(..., log=mlflow.log_metrics)     # MLflow, within mlflow.start_run()
slth.fit(..., log=lambda numbers, step: [writer.add_scalar(*one, step) for one in numbers.items()])  # TensorBoard
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

#: (numbers by name, steps done) -> anything.
Log = Callable[[dict[str, float], int], object]


class Tracker:
    """Calls `log`, unless it is None, for the run `name` that begins at `step`."""

    def __init__(self, log: Log | None, name: str, step: int) -> None:
        self._log, self._name = log, name
        self._last = step, time.perf_counter()

    def send(self, numbers: Mapping[str, float], step: int) -> None:
        """Send the numbers measured after a step, if any; with train_loss, also the steps per second since the last.

        Raises RuntimeError if `log` raises an error.
        """
        if self._log is None or not numbers:
            return
        (before, then), now = self._last, time.perf_counter()
        rate = {"steps_per_s": (step - before) / (now - then)} if "train_loss" in numbers else {}
        try:
            self._log(rate | dict(numbers), step)
        except Exception as error:
            raise RuntimeError(f"{self._name}: log raised {type(error).__name__} at step {step}: {error}") from error
        if rate:
            self._last = step, time.perf_counter()
