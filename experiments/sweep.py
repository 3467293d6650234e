"""Many runs of one experiment, here or on a cluster: a grid or a list of configs, finished whatever happens.

with experiment=approx_error grid.hidden=[32,64,128] grid.seed=[0,1,2,3] makes 12 runs, each a process and a Sacred run
of its own, in a folder of runs/sweeps that is named by the experiment and the grid. The same command goes on where a
sweep was cut: a finished run is skipped, a failed one tried again. A run is named by its config and the code: other
code, other runs. base.KEY=value holds for all runs, named=smoke is a named config of the experiment, address=HOST:PORT
joins a Ray cluster whose machines all see this checkout and the folder, engine=ray starts Ray on this machine.
file=sweep.yaml reads the same keys, and `runs`, a list of configs, from a file. sql=URL stores every run that is made
in that database as well, under the same name, and takes from there whose folder is gone.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slth.experiments import lab
from slth.experiments.lab import BadConfig, command_line, scripts, stores
from slth.experiments.lab.options import Kind, as_list, several, where
from slth.experiments.lab.storage import RUNS
from slth.experiments.lab.values import unbracketed
from slth.experiments.sweeps import code, conduct, plan
from slth.experiments.sweeps.engine import ENGINES, PROCESSES, RAY

SEED = "given for the runs, as base.seed=5 or grid.seed=[0,1]"

given_keys: set[str] = set()  # on the command line


def key_by_key(help: str) -> Any:
    """A key that takes values of an experiment's keys, each as KEY.NAME=value."""

    def read(key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BadConfig(key, value, f"given key by key, as {key}.seed=...")
        return value

    return lab.key({}, Kind(read, lambda: "given key by key", with_options=True), help=help)


@dataclass(frozen=True)
class Config(lab.Options):
    """Which runs are made, where, and of what."""

    experiment: str | None = lab.anything(
        None, allowed="an experiment, or a path", help="a script of experiments/ without .py, or a path"
    )
    grid: dict[str, Any] = key_by_key("grid.KEY=[...]: every combination")
    runs: list[dict[str, Any]] = lab.anything(
        [], allowed="a list of configs", help="configs, each at every point of the grid"
    )
    base: dict[str, Any] = key_by_key("base.KEY=value: for all")
    named: str | list[str] = lab.anything(
        [], allowed="a name or a list of names", help="named configs of the experiment, for all"
    )
    file: str | None = lab.anything(
        None, allowed="a YAML file, or None", help="YAML with these keys; the command line wins"
    )
    folder: str | None = lab.text(
        None,
        "a folder",
        help="None: runs/sweeps/EXPERIMENT-XXXXXXXX, one for each grid; in one folder grids share their runs",
    )
    engine: str | None = lab.choice(
        None, ENGINES, help="what makes the runs, here; None: ray with address=, processes without"
    )
    address: str | None = lab.text(
        None, "host:port of a cluster, or None", help="of a Ray cluster, host:port; None: this machine alone"
    )
    cpus: int = lab.integer(1, least=1, help="per run")
    gpus: float = lab.number(0, least=0, help="per run; a share, as 0.5, is possible")
    retries: int = lab.integer(2, least=0, help="of a run that failed")
    workers: int | None = lab.integer(None, least=1, help="runs at once; None: as many as there are processors for")
    numbers: list[str] | None = lab.key(
        None,
        several(where(lambda value: isinstance(value, str) and value != "", "the name of a number")),
        help="of the runs' summaries, drawn over the seeds; None: the first few that vary",
    )
    sql: str | None = lab.key(
        None,
        where(stores.is_url, "a database's URL, or None"),
        help="a database that every node reaches, as postgresql+psycopg://user@host/study, sqlite:///runs.db",
    )

    def check(self) -> None:
        """See that it can be planned."""
        _ = self.sweep

    @cached_property
    def sweep(self) -> conduct.Sweep:
        """What is asked for, with what the file says."""
        if self.file is not None:
            return Config.of(with_file(self.values())).sweep
        script = script_of(self.experiment)
        named, points = names_of(self.named), self._points()
        return conduct.Sweep(
            script=script,
            named=named,
            points=points,
            folder=Path(self.folder or RUNS / "sweeps" / plan.name(script.stem, named, points)),
            engine=self._engine(),
            address=self.address,
            cpus=self.cpus,
            gpus=self._gpus(),
            retries=self.retries,
            workers=self.workers,
            numbers=self.numbers,
            sql=self.sql,
        )

    def _points(self) -> list[dict[str, Any]]:
        """The updates of every run."""
        if not isinstance(self.runs, list | tuple) or not all(isinstance(run, dict) for run in self.runs):
            raise BadConfig("runs", self.runs, "a list of configs")
        grid = {key: unbracketed(values) for key, values in plan.flat(self.grid).items()}
        if empty := [key for key, values in grid.items() if isinstance(values, list | tuple) and not values]:
            raise BadConfig(f"grid.{empty[0]}", [], "a value or a list of some")
        points = plan.unfold(plan.flat(self.base), [plan.flat(run) for run in self.runs], grid)
        try:
            json.dumps(points, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadConfig("runs", points, f"numbers, text, lists and None ({error})") from error
        return points

    def _engine(self) -> str:
        if self.address is not None and self.engine == PROCESSES:
            raise BadConfig("engine", self.engine, "ray, or left out, with address")
        return self.engine or (PROCESSES if self.address is None else RAY)

    def _gpus(self) -> float:
        if self.gpus > 1 and not self.gpus.is_integer():
            raise BadConfig("gpus", self.gpus, "a share of one GPU or a whole number of them")
        return self.gpus


def with_file(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what stands in its file, where the command line says nothing else."""
    import yaml

    try:
        content = yaml.safe_load(Path(config["file"]).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise BadConfig("file", config["file"], f"a YAML file ({error})") from error
    if isinstance(content, dict) and "seed" in content:
        raise BadConfig("seed", content["seed"], SEED)
    allowed = {*config} - {"file"}
    if not isinstance(content, dict) or not {*content} <= allowed:
        raise BadConfig("file", config["file"], f"a YAML file with the keys {', '.join(sorted(allowed))}")
    defaults = Config.defaults()
    given = {key: value for key, value in config.items() if key in given_keys or value != defaults[key]}
    return {**config, **content, **given, "file": None}


def script_of(experiment: object) -> Path:
    """The experiment's script."""
    allowed = [name for name in scripts.names() if f"experiments/{name}.py" not in code.IDLE]
    if isinstance(experiment, str) and experiment in allowed:
        return scripts.EXPERIMENTS / f"{experiment}.py"
    if isinstance(experiment, str) and experiment.endswith(".py") and os.path.isfile(experiment):
        return Path(experiment).resolve()
    raise BadConfig("experiment", experiment, f"one of {', '.join(allowed)}, or the path of a script")


def names_of(named: object) -> list[str]:
    """One name or several."""
    names = as_list(unbracketed(named))
    if not all(isinstance(name, str) and name for name in names):
        raise BadConfig("named", named, "the name of a named config, or a list of them")
    return names


ex = lab.experiment("sweep", Config)


@ex.option_hook  # type: ignore[untyped-decorator]
def note_given(options: Mapping[str, Any]) -> None:
    """Sacred's config does not tell a value that was given from a default that it equals."""
    updates, _ = command_line.updates_of(options["UPDATE"], ex.with_options())
    if "seed" in updates:
        raise BadConfig("seed", updates["seed"], SEED)
    given_keys.clear()
    given_keys.update(updates)


@ex.unstored
def sweep(config: Config, run: lab.Run) -> None:
    """Make the runs that are missing, and gather all."""
    conduct.conduct(config.sweep)


if __name__ == "__main__":
    lab.launch(ex)
