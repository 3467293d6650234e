"""Many runs of one experiment, here or on a cluster: a grid or a list of configs, finished whatever happens.

with experiment=approx_error grid.hidden=[32,64,128] grid.seed=[0,1,2,3] makes 12 runs, each a process and a Sacred run
of its own, in a folder of runs/sweeps that is named by the experiment and the grid. The same command goes on where a
sweep was cut: a finished run is skipped, a failed one tried again. A run is named by its config and the code: other
code, other runs. base.KEY=value holds for all runs, named=smoke is a named config of the experiment, address=HOST:PORT
joins a Ray cluster whose machines all see this checkout and the folder. file=sweep.yaml reads the same keys, and
`runs`, a list of configs, from a file. sql=URL stores every run that is made in that database as well, under the same
name, and takes from there whose folder is gone.
"""

import json
import os
from pathlib import Path
from typing import Any

from slth.experiments import lab
from slth.experiments.lab import stores
from slth.experiments.sweeps import code, conduct, plan

ex = lab.experiment("sweep")
ex.add_config(
    experiment=None,  # a script of experiments/ without .py, or a path
    grid={},  # grid.KEY=[...]: every combination
    runs=[],  # configs, each at every point of the grid
    base={},  # base.KEY=value: for all
    named=[],  # named configs of the experiment, for all; one or a list
    file=None,  # YAML with these keys; the command line wins
    folder=None,  # None: runs/sweeps/EXPERIMENT-XXXXXXXX, one for each grid; in one folder grids share their runs
    address=None,  # of a Ray cluster, host:port; None: one is started on this machine
    cpus=1,  # per run
    gpus=0,  # per run; a share, as 0.5, is possible
    retries=2,  # of a run that failed
    workers=None,  # runs at once; None: as many as there are processors for
    sql=None,  # a database that every node reaches, as postgresql+psycopg://user@host/study, sqlite:///runs.db
)
SEED = "given for the runs, as base.seed=5 or grid.seed=[0,1]"
DEFAULTS = {"grid": {}, "runs": [], "base": {}, "named": [], "cpus": 1, "gpus": 0, "retries": 2}

given_keys: set[str] = set()  # on the command line


@ex.option_hook
def note_given(options: dict[str, Any]) -> None:
    """Sacred's config does not tell a value that was given from a default that it equals."""
    given_keys.clear()
    given_keys.update(lab.get_config_updates(options["UPDATE"])[0])


def check(config: dict[str, Any]) -> conduct.Sweep:
    if "seed" in given_keys:
        raise lab.BadConfig("seed", config["seed"], SEED)
    config = with_file(config)
    script = script_of(config["experiment"])
    named, points = names_of(config["named"]), points_of(config)
    folder = config["folder"] or lab.RUNS / "sweeps" / plan.name(script.stem, named, points)
    if not isinstance(folder, str | Path):
        raise lab.BadConfig("folder", folder, "a folder")
    if not isinstance(config["address"], str | None):
        raise lab.BadConfig("address", config["address"], "host:port of a cluster, or None")
    if config["sql"] is not None and not stores.is_url(config["sql"]):
        raise lab.BadConfig("sql", config["sql"], "a database's URL, or None")
    return conduct.Sweep(
        script=script,
        named=named,
        points=points,
        folder=Path(folder),
        address=config["address"],
        cpus=lab.as_int(config, "cpus", 1),
        gpus=gpus_of(config),
        retries=lab.as_int(config, "retries", 0),
        workers=None if config["workers"] is None else lab.as_int(config, "workers", 1),
        sql=config["sql"],
    )


def with_file(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what stands in its file, where the command line says nothing else."""
    if config["file"] is None:
        return config
    import yaml

    try:
        content = yaml.safe_load(Path(config["file"]).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise lab.BadConfig("file", config["file"], f"a YAML file ({error})") from error
    if isinstance(content, dict) and "seed" in content:
        raise lab.BadConfig("seed", content["seed"], SEED)
    allowed = {*config} - {"file", "seed", "__doc__"}
    if not isinstance(content, dict) or not {*content} <= allowed:
        raise lab.BadConfig("file", config["file"], f"a YAML file with the keys {', '.join(sorted(allowed))}")
    given = {key: value for key, value in config.items() if key in given_keys or value != DEFAULTS.get(key)}
    return {**config, **content, **given}


def script_of(experiment: object) -> Path:
    """The experiment's script."""
    names = sorted(
        path.stem for path in code.EXPERIMENTS.glob("*.py") if "\n    lab.launch(ex" in path.read_text("utf-8")
    )
    allowed = [name for name in names if f"{name}.py" not in code.IDLE]
    if isinstance(experiment, str) and experiment in allowed:
        return code.EXPERIMENTS / f"{experiment}.py"
    if isinstance(experiment, str) and experiment.endswith(".py") and os.path.isfile(experiment):
        return Path(experiment).resolve()
    raise lab.BadConfig("experiment", experiment, f"one of {', '.join(allowed)}, or the path of a script")


def names_of(named: object) -> list[str]:
    """One name or several."""
    named = lab.unbracketed(named)
    names = list(named) if isinstance(named, list | tuple) else [named]
    if not all(isinstance(name, str) and name for name in names):
        raise lab.BadConfig("named", named, "the name of a named config, or a list of them")
    return names


def points_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The updates of every run."""
    for key in ("grid", "base"):
        if not isinstance(config[key], dict):
            raise lab.BadConfig(key, config[key], f"given key by key, as {key}.seed=...")
    runs = config["runs"]
    if not isinstance(runs, list | tuple) or not all(isinstance(run, dict) for run in runs):
        raise lab.BadConfig("runs", runs, "a list of configs")
    grid = {key: lab.unbracketed(values) for key, values in config["grid"].items()}
    if empty := [key for key, values in grid.items() if isinstance(values, list | tuple) and not values]:
        raise lab.BadConfig(f"grid.{empty[0]}", [], "a value or a list of some")
    points = plan.unfold(config["base"], runs, grid)
    try:
        json.dumps(points, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise lab.BadConfig("runs", points, f"numbers, text, lists and None ({error})") from error
    return points


def gpus_of(config: dict[str, Any]) -> float:
    gpus = lab.as_float(config, "gpus", minimum=0)
    if gpus > 1 and not gpus.is_integer():
        raise lab.BadConfig("gpus", config["gpus"], "a share of one GPU or a whole number of them")
    return gpus


@ex.command(unobserved=True)
def sweep(_config: dict[str, Any]) -> None:
    """Make the runs that are missing, and gather all."""
    conduct.conduct(check(_config))


ex.default_command = "sweep"

if __name__ == "__main__":
    lab.launch(ex, check)
