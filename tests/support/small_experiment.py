"""A small experiment, as a script and in the process of its test."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from command_lines import launched

from slth.experiments import lab

SCRIPT = '''"""A small experiment."""
import signal
import sys

import time
from dataclasses import dataclass
from pathlib import Path

from slth.experiments import lab
import pandas
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(lab.Options):
    hidden: list[int] = lab.integers([4, 8], least=1, help="widths")
    target: str = lab.choice("random", ("random", "trained"), help="of the target")
    seed: int = lab.seed()
    end: str = lab.text("well", "an end", help="how it ends")
    checkpoints: str | None = lab.text(None, "a folder", help="to go on from")


ex = lab.experiment("small", Config)
ex.add_named_config("smoke", hidden=2)


@ex.main
def main(config, run):
    for _ in lab.progress(range(3), "count"):
        pass
    if config.end == "crash":
        raise ValueError("it broke")
    if config.end == "wait":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have been told to ignore it
        print("so far", flush=True)
        Path("waiting").touch()
        time.sleep(60)
    figure = Figure()
    figure.subplots().plot(config.hidden)
    results = pandas.DataFrame({"hidden": config.hidden, "error": [0.1 / n for n in config.hidden]})
    summary = {"gamma": float("nan"), "widths": config.hidden, "seconds": 0.5}
    lab.save(run, results, summary, {} if config.end == "no figure" else {"errors": figure})
    return summary


if __name__ == "__main__":
    lab.launch(ex)
'''


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "small.py").write_text(SCRIPT)
    return launched("small.py", folder, *arguments)


def read(path: Path):
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Config(lab.Options):
    """Of a small experiment."""

    hidden: list[int] = lab.integers([4, 8], least=1, help="widths of it")
    target: str = lab.choice("random", ("random", "trained"), help="of the target")
    seed: int = lab.seed()


def make_experiment(config=Config):
    ex = lab.experiment("small", config)
    ex.add_named_config("smoke", hidden=2)
    ex.main(lambda config, run: None)
    return ex
