"""Numbers of a run while it goes on, for a tracker of experiments: what `slth.fit(..., log=)` calls.

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
    """What calls `log`, or None, for a run of this name that begins at a step."""

    def __init__(self, log: Log | None, name: str, step: int) -> None:
        self._log, self._name = log, name
        self._last = step, time.perf_counter()

    def send(self, numbers: Mapping[str, float], step: int) -> None:
        """Hand over what was measured after a step, if anything was, with the steps a second since the last time.

        Raises RuntimeError where `log` raises an error.
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
