"""Measure the constant C of Lemma 7: how many candidates does an entry need?

Lemma 7 of arXiv 2511.04217 requires n >= d1 C log(d1 d2 / epsilon) hidden units and does not determine C. Here the
number of candidates per entry, n' = n / d, is increased until, with probability at least 1 - epsilon, the error of
every entry of a d x d target is at most epsilon / d^2. Then C = n' / log(d^2 / epsilon), with the natural logarithm.
"""

import time
from dataclasses import dataclass
from typing import Any

from slth import plots
from slth.experiments import lab
from slth.experiments.studies.constant.measure import TARGETS, Cell, Study, measure, summarise


@dataclass(frozen=True)
class Config(lab.Options):
    """The cells to measure: all combinations of width, epsilon and kind of target."""

    d: list[int] = lab.integers([2, 4, 8, 16], least=1, most=64, help="width of the target's input and output")
    epsilon: list[float] = lab.numbers(
        [0.3, 0.1, 0.03], least=0.001, most=0.999, help="failure probability; an entry's error is at most epsilon / d^2"
    )
    target: list[str] = lab.choices(
        ["uniform", "unit"], TARGETS, help="the target's entries w; uniform: uniform in [-1, 1]; unit: |w| = 1"
    )
    effort: int = lab.integer(
        10_000,
        least=1,
        most=10**6,
        help="a cell (d, epsilon, target) has effort / (d epsilon) trials, fixed in advance",
    )
    seed: int = lab.seed()

    def study(self) -> Study:
        """Return the study, its cells in the order of the table."""
        cells = [Cell(d, epsilon, kind) for kind in self.target for d in sorted(self.d) for epsilon in self.epsilon]
        return Study(cells, self.effort, self.seed)


ex = lab.experiment("constant", Config)
ex.add_named_config("smoke", d=[2, 4], epsilon=[0.3, 0.1], effort=400)


@ex.main
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Measure all cells."""
    started = time.perf_counter()
    table = measure(config.study())
    summary = {**summarise(table), "seconds": time.perf_counter() - started}
    for target, least in summary["C"].items():
        decided = sum(cell["decided"] for cell in summary["cells"][target])
        cells = f"{len(summary['cells'][target])} cells, {decided} of them decided"
        print(f"target={target}: n' = {least:.3g} log(d^2/epsilon) candidates suffice ({cells})")
    lab.save(run, table, summary, plots.figures(table, summary))
    return summary


if __name__ == "__main__":
    lab.launch(ex)
