"""What the tests of sweeps share: a small experiment, the command line, and a Ray cluster beside the tests."""

import atexit
import contextlib
import csv
import functools
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from command_lines import launched
from helpers import EXPERIMENTS

from slth.experiments.sweeps import conduct, gather, plan
from slth.experiments.sweeps.client import Server

on_ray = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: slth[cluster]"),
    pytest.mark.xdist_group("ray"),  # in one process, which keeps the others' processors free
]


def needs_ray(test):
    for mark in on_ray:
        test = mark(test)
    return test


TOY = '''"""A small experiment that needs no torch."""

import os
import time
from pathlib import Path

from dataclasses import dataclass

from slth.experiments import lab
import pandas


@dataclass(frozen=True)
class Config(lab.Options):
    hidden: int = lab.integer(4, least=1, help="width")
    seed: int = lab.seed()
    wait: float = lab.number(0.05, least=0, help="seconds")
    end: str = lab.choice("well", ("well", "crash", "crash once", "die"), help="how it ends")
    notes: str | None = lab.text(None, "a folder", help="for a note of each run")
    block: int = lab.integer(0, help="bytes of a file")
    gates: str | None = lab.text(None, "a folder", help="a file named by the seed lets a run go on")


ex = lab.experiment("toy", Config)
ex.add_named_config("smoke", hidden=2)


@ex.main
def main(config, run):
    started = time.perf_counter()
    hidden = config.hidden
    if config.notes:
        note = Path(config.notes) / f"{hidden}-{config.seed}-{os.getpid()}"
        note.write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ['CUDA_VISIBLE_DEVICES']}")
    while config.gates and not (Path(config.gates) / str(config.seed)).exists():
        time.sleep(0.02)
    time.sleep(config.wait)
    if config.end == "die":
        os._exit(0)
    if config.end == "crash" or (config.end == "crash once" and len(os.listdir(config.notes)) < 2):
        raise ValueError(f"it broke at {hidden}")
    rows = [{"hidden": hidden, "draw": n, "error": 0.1 / hidden + n / 3} for n in range(3)]
    table = pandas.DataFrame(rows).assign(took_s=time.perf_counter() - started)
    lab.save(run, table, {"seconds": time.perf_counter() - started}, {}, {"block": bytes(config.block)})
    return {}


if __name__ == "__main__":
    lab.launch(ex)
'''

NODES = """
import sys
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
print("address", cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(second, allow_graceful=False)
        print("killed", flush=True)
    if line == "add\\n":
        second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        print("added", flush=True)
cluster.shutdown()
"""

# Lines of Ray's and gRPC's own logs, which speak of the machine: an address not found, a disk that is nearly full.
RAY_SAYS = re.compile(
    r"\[?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|[IWEF]\d{4} \d\d:\d\d:|WARNING: All log messages before absl"
    r"|(\x1b\[\d+m)?\((raylet|autoscaler|gcs_server)"
)

SETTINGS = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class Nodes:
    """Two nodes of one processor each, in a process of their own."""

    def __init__(self, process):
        self.process = process
        self.address = self.wait_for("address").split()[1]

    def wait_for(self, word):
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise AssertionError(f"the cluster ended before it said {word!r}")

    def kill_one(self):
        print("kill", file=self.process.stdin, flush=True)
        self.wait_for("killed")

    def add_one(self):
        print("add", file=self.process.stdin, flush=True)
        self.wait_for("added")


@contextlib.contextmanager
def two_nodes(log):
    with (
        open(log, "wb") as errors,
        subprocess.Popen(
            [sys.executable, "-c", NODES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | SETTINGS,
        ) as process,
    ):
        try:
            yield Nodes(process)
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def of_toy(folder, *arguments):
    """The arguments of a sweep over the small experiment, which lies in the folder."""
    script = folder / "toy.py"
    if not script.exists():
        script.write_text(TOY)
    return "with", f"experiment={script}", *arguments


@functools.cache
def _toy_server():
    """A folder with the small experiment, and a server of it that ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="toy"))
    atexit.register(shutil.rmtree, folder)
    script = folder / "toy.py"
    script.write_text(TOY)
    with patch.dict(os.environ, SETTINGS):
        server = Server(f"toy{os.getpid()}", str(script), 1)
        stay = server.connect()
    stay.sendall(b'{"do": "stay"}\n')
    atexit.register(stay.close)
    return folder, server


def sweep_here(folder, *arguments):
    """A sweep that has ended, made in this process, run after run, and by one server for all sweeps here."""
    toy, server = _toy_server()
    with (
        patch.object(conduct, "_server", lambda own: contextlib.nullcontext(server)),
        patch.dict(os.environ, SETTINGS),
    ):
        return launched("sweep", folder, *of_toy(toy, "workers=1", *arguments))


def start(folder, *arguments):
    """A sweep that goes on beside the test."""
    return subprocess.Popen(
        [sys.executable, str(EXPERIMENTS / "sweep.py"), *of_toy(folder, *arguments)],
        cwd=folder,
        env=os.environ | SETTINGS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )


def sweep(folder, *arguments):
    """A sweep that has ended."""
    with start(folder, *arguments) as process:
        return ended(process)


def ended(process):
    """The process at its end, and of its errors what it said itself."""
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()  # else the end of its block would wait for it
        raise
    print(err)  # shown where the test fails
    own = [line for line in err.splitlines(keepends=True) if not RAY_SAYS.match(line)]
    return subprocess.CompletedProcess(process.args, process.returncode, out, "".join(own))


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def timeless(table):
    """A gathered CSV without the columns that measure time."""
    rows = list(csv.reader(io.StringIO(Path(table).read_text(encoding="utf-8"))))
    kept = [i for i, column in enumerate(rows[0]) if not gather.is_time(column)]
    return [[row[i] for i in kept] for row in rows]


def run_folders(folder):
    """The folders of the finished runs."""
    return sorted(path for path in Path(folder).iterdir() if re.fullmatch(r"[0-9a-f]{16}", path.name))


def leftovers(folder):
    """What lies where runs are made."""
    return [path.name for path in (Path(folder) / ".work").iterdir()]


def runs_of(**axes):
    """Planned runs, by the keys of a grid."""
    configs = plan.unfold({"method": "construction"}, [], axes)
    return [plan.Run(f"{n:016x}", config, config, config) for n, config in enumerate(configs)]
