"""The layer between the experiments and Sacred: configs, command lines, refusals, and the storage of runs.

An experiment script defines its measurements; command lines, run folders and files are handled here:

    @dataclass(frozen=True)
    class Config(lab.Options):
        hidden: list[int] = lab.integers([4, 8], least=1, help="the source's widths")
        seed: int = lab.seed()

    ex = lab.experiment("name", Config)
    ex.add_named_config("smoke", hidden=4)

    @ex.main
    def main(config: Config, run: lab.Run) -> dict[str, Any]:
        ...
        lab.save(run, results, summary, figures)
        return summary

    if __name__ == "__main__":
        lab.launch(ex)

options: declaration and checks of configs · values: values as written on a command line · experiment, command_line,
sacred_options, signals: starting or refusing a run · storage, figures, stores: results in a folder or a database ·
live, metrics: curves during a run · bars, tables: output on the terminal · resuming: checkpoints of an interrupted
run · sharing: results that the runs of a sweep share · scripts: the experiments as modules, for programs that run
them · border: imports of Sacred.
"""

from slth.experiments.lab.arithmetic import Arithmetic, TrainingOptions
from slth.experiments.lab.bars import progress
from slth.experiments.lab.border import Run
from slth.experiments.lab.command_line import launch
from slth.experiments.lab.experiment import Experiment, experiment
from slth.experiments.lab.figures import render
from slth.experiments.lab.live import curves
from slth.experiments.lab.options import (
    Options,
    anything,
    choice,
    choices,
    flag,
    free,
    integer,
    integers,
    key,
    nullable,
    number,
    numbers,
    seed,
    seeds,
    seeds_from,
    text,
)
from slth.experiments.lab.refusals import BadConfig, Refused, one_line
from slth.experiments.lab.resuming import Resumable
from slth.experiments.lab.storage import load_run, require_writable, save, writable
from slth.experiments.lab.tables import show

__all__ = [
    "Arithmetic",
    "BadConfig",
    "Experiment",
    "Options",
    "Refused",
    "Resumable",
    "Run",
    "TrainingOptions",
    "anything",
    "choice",
    "choices",
    "curves",
    "experiment",
    "flag",
    "free",
    "integer",
    "integers",
    "key",
    "launch",
    "load_run",
    "nullable",
    "number",
    "numbers",
    "one_line",
    "progress",
    "render",
    "require_writable",
    "save",
    "seed",
    "seeds",
    "seeds_from",
    "show",
    "text",
    "writable",
]
