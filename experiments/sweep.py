"""Run one experiment many times, for a grid or a list of configs, on this machine or a cluster.

`with experiment=approx_error grid.hidden=[32,64,128] grid.seed=[0,1,2,3]` starts 12 runs. Each is a process and a
Sacred run. Their folders are in a folder of runs/sweeps whose name consists of the experiment and a hash of the grid.
The same command resumes an interrupted sweep: it skips finished runs and retries failed ones. The name of a run is a
hash of its config and the code, so changed code gives new runs.

base.KEY=value applies to all runs, and named=smoke selects a named config of the experiment. file=sweep.yaml reads the
same keys, and `runs`, a list of configs, from a file. engine=ray starts Ray on this machine; address=HOST:PORT joins a
Ray cluster, where every machine must have this checkout and the sweep's folder at the same paths. sql=URL also stores
every run in that database, under the same name; runs whose folder is missing are restored from it.
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

given_keys: set[str] = set()  # the keys that the command line sets


def key_by_key(help: str) -> Any:
    """Return a config key that holds values for keys of the experiment, set one by one as KEY.NAME=value."""

    def read(key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BadConfig(key, value, f"given key by key, as {key}.seed=...")
        return value

    return lab.key({}, Kind(read, lambda: "given key by key", with_options=True), help=help)


@dataclass(frozen=True)
class Config(lab.Options):
    """The experiment, its runs, their resources and the folder of the sweep."""

    experiment: str | None = lab.anything(
        None, allowed="an experiment, or a path", help="the name of a script in experiments/, or the path of a script"
    )
    grid: dict[str, Any] = key_by_key("grid.KEY=[...]: values of KEY; every combination is run")
    runs: list[dict[str, Any]] = lab.anything(
        [], allowed="a list of configs", help="configs, each combined with every point of the grid"
    )
    base: dict[str, Any] = key_by_key("base.KEY=value: a value of KEY for all runs")
    named: str | list[str] = lab.anything(
        [], allowed="a name or a list of names", help="named configs of the experiment, applied to all runs"
    )
    file: str | None = lab.anything(
        None, allowed="a YAML file, or None", help="a YAML file with these keys; the command line takes precedence"
    )
    folder: str | None = lab.text(
        None,
        "a folder",
        help="the sweep's folder; sweeps in one folder share runs; None: runs/sweeps/EXPERIMENT-XXXXXXXX, one per grid",
    )
    engine: str | None = lab.choice(
        None, ENGINES, help="starts the runs: processes, or ray; None: ray with address=, else processes"
    )
    address: str | None = lab.text(
        None, "host:port of a cluster, or None", help="host:port of a Ray cluster; None: only this machine"
    )
    cpus: int = lab.integer(1, least=1, help="processors per run")
    gpus: float = lab.number(0, least=0, help="GPUs per run; may be a fraction such as 0.5")
    retries: int = lab.integer(2, least=0, help="maximum retries of a failed run")
    workers: int | None = lab.integer(None, least=1, help="runs at once; None: as many as the processors allow")
    numbers: list[str] | None = lab.key(
        None,
        several(where(lambda value: isinstance(value, str) and value != "", "the name of a number")),
        help="numbers of the runs' summaries to draw, with intervals over seeds; None: the first four that vary",
    )
    sql: str | None = lab.key(
        None,
        where(stores.is_url, "a database's URL, or None"),
        help="URL of a database that every node can reach, such as postgresql+psycopg://user@host/study",
    )

    def check(self) -> None:
        """Raise BadConfig if `sweep` cannot be built."""
        _ = self.sweep

    @cached_property
    def sweep(self) -> conduct.Sweep:
        """The checked settings of the sweep, with those of `file` included."""
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
        """Return the config updates of each run."""
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
    """Return the config with the values of its YAML file; values on the command line take precedence."""
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
    """Return the path of an experiment's script, from its name or path."""
    allowed = [name for name in scripts.names() if f"experiments/{name}.py" not in code.IDLE]
    if isinstance(experiment, str) and experiment in allowed:
        return scripts.EXPERIMENTS / f"{experiment}.py"
    if isinstance(experiment, str) and experiment.endswith(".py") and os.path.isfile(experiment):
        return Path(experiment).resolve()
    raise BadConfig("experiment", experiment, f"one of {', '.join(allowed)}, or the path of a script")


def names_of(named: object) -> list[str]:
    """Return the names of named configs as a list."""
    names = as_list(unbracketed(named))
    if not all(isinstance(name, str) and name for name in names):
        raise BadConfig("named", named, "the name of a named config, or a list of them")
    return names


ex = lab.experiment("sweep", Config)


@ex.option_hook  # type: ignore[untyped-decorator]
def note_given(options: Mapping[str, Any]) -> None:
    """Record which keys the command line sets; in Sacred's config, a set value may equal the default."""
    updates, _ = command_line.updates_of(options["UPDATE"], ex.with_options())
    if "seed" in updates:
        raise BadConfig("seed", updates["seed"], SEED)
    given_keys.clear()
    given_keys.update(updates)


@ex.unstored
def sweep(config: Config, run: lab.Run) -> None:
    """Start the missing runs, and gather the results of all runs."""
    conduct.conduct(config.sweep)


if __name__ == "__main__":
    lab.launch(ex)
