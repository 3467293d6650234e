"""The constant of Lemma 7, measured: with how many candidates are all entries of a target met?

Lemma 7 of arXiv 2511.04217 asks for n >= d1 C log(d1 d2 / epsilon) hidden units and leaves C open. Here n' = n / d
candidates an entry are counted up until, with probability at least 1 - epsilon, every entry of a d x d target is met
within epsilon / d^2; C = n' / log(d^2 / epsilon), the logarithm being natural.
"""

import time
from dataclasses import dataclass
from typing import Any

from slth import plots
from slth.experiments import lab
from slth.experiments.studies.constant.measure import TARGETS, Cell, Study, measure, summarise


@dataclass(frozen=True)
class Config(lab.Options):
    """What is measured: every width, epsilon and kind of target with each other."""

    d: list[int] = lab.integers([2, 4, 8, 16], least=1, most=64, help="width of the target, in and out")
    epsilon: list[float] = lab.numbers(
        [0.3, 0.1, 0.03], least=0.001, most=0.999, help="probability of failure, and the target's accuracy"
    )
    target: list[str] = lab.choices(
        ["uniform", "unit"], TARGETS, help="uniform: entries uniform in [-1, 1]; unit: all |w| = 1"
    )
    effort: int = lab.integer(
        10_000,
        least=1,
        most=10**6,
        help="trials of a cell (d, epsilon, target): effort / (d epsilon), fixed before the first is drawn",
    )
    seed: int = lab.seed()

    def study(self) -> Study:
        """The cells in the order of the table."""
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
