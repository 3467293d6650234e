"""The border between the experiments and Sacred: how a run is configured, refused, stored and read again.

An experiment script says what it measures; everything about command lines, run folders and files is here:

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

options: what a config may say · values: as a command line writes it · experiment, command_line, sacred_options,
signals: how a run is made or refused · storage, figures, stores: what it leaves in a folder or a database · live,
metrics: its curves while they grow · bars, tables: what it prints · resuming: what a run that was cut goes on from ·
sharing: what the runs of a sweep take from each other · scripts: the experiments as modules, for those who run them ·
border: Sacred.
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
    number,
    numbers,
    seed,
    seeds,
    seeds_from,
    text,
)
from slth.experiments.lab.refusals import BadConfig, Refused, one_line
from slth.experiments.lab.resuming import Resumable
from slth.experiments.lab.sharing import shared
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
    "shared",
    "show",
    "text",
    "writable",
]
