"""How fast the package is beside others, measured by turns in one run.

Subset sums against the MILP solver of scipy (and CP-SAT of OR-Tools, where that is installed), attention by its
merged matrices against the same attention head by head, the selection of the scores that a mask keeps against sorting
them, a training step of GPT-2 blocks under learned masks against dense training and masks made by sorting, and linear
attention over blocks of tokens (MHLA) against softmax attention.

On a machine that is busy with other work torch's threads wait for each other, which spoils the ratios of short calls:
there, set threads=1, or OMP_WAIT_POLICY=passive in the environment.

With device=cuda the kernels are measured instead: first each case is held against its reference, in several processes,
then what passed is timed beside its peers, the worst first. only= names areas, minutes= is the time for all of it, and
from checkpoints=DIR a measurement that was cut goes on. That also runs where Sacred is not installed, into the folder
out=DIR, where it goes on by itself.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slth.experiments.studies.speed.gpu import command, report
from slth.experiments.studies.speed.gpu.hour import Hour

try:
    from slth.experiments import lab
except ModuleNotFoundError as missing:  # Sacred, on a GPU's machine
    if missing.name != "sacred":
        raise
    raise SystemExit(command.main(sys.argv[1:])) from None

from slth import plots
from slth.experiments.lab import BadConfig, Refused
from slth.experiments.lab.options import Kind, an_integer, some_of
from slth.experiments.studies.speed import (
    attention_routes,
    linear_attention,
    selection,
    subset_sums,
    training_step,
)
from slth.experiments.studies.speed.tables import summarise, table_of
from slth.kernels.timing import Row
from slth.threads import cores

ON_GPU = ("only", "minutes", "processes", "checkpoints")  # keys of a GPU
AREAS = ("subset_sums", "attention_routes", "selection", "training_step", "linear_attention")


def shapes(default: list[list[int]], names: str, *, multiple: tuple[int, int] = (0, 1), help: str) -> Any:
    """A key that takes a list of lists of ints >= 1, each with these names; multiple: (an index, what it is one of)."""
    index, factor = multiple

    def read(key: str, value: Any) -> list[list[int]]:
        try:
            found = [[an_integer(1).read(key, size) for size in shape] for shape in value]
        except (BadConfig, TypeError) as error:
            raise BadConfig(key, value, allowed()) from error
        count = len(names.split(", "))
        if not found or any(len(shape) != count or shape[index] % factor for shape in found):
            raise BadConfig(key, value, allowed())
        return found

    def allowed() -> str:
        return f"a list of [{names}], each an int >= 1"

    return lab.key(default, Kind(read, allowed), help=help)


@dataclass(frozen=True)
class Config(lab.Options):
    """What is timed, on what, and how often."""

    device: str = lab.anything("cpu", allowed="cpu, or a CUDA device", help="cpu, or cuda: the kernels on a GPU")
    what: Any = lab.anything(
        None,
        allowed=f"one or several of {', '.join(AREAS)}; on a GPU of {', '.join(report.AREAS)}",
        help="areas; None: all of the device",
    )
    candidates: list[int] = lab.integers([10, 16, 20, 24], least=1, most=40, help="of a subset-sum problem")
    batch: int = lab.integer(20_000, least=1, most=10**6, help="subset-sum problems that we solve at once")
    time_limit: float = lab.number(20.0, above=0.0, help="seconds that a peer may spend on one of them")
    routes: list[list[int]] = shapes(
        [[16, 256, 1024, 4], [32, 1024, 1024, 4], [64, 1024, 2048, 2], [64, 64, 1024, 4]],
        "d_in, hidden, length, heads",
        help="attentions whose routes are compared",
    )
    scores: list[int] = lab.integers(
        [589_824, 2_359_296, 7_077_888],
        least=2,
        most=2**30,
        help="of which half are kept; 7.1M: a block of GPT-2 small",
    )
    blocks: list[list[int]] = shapes(
        [[2, 768, 8, 128]],
        "blocks, d (a multiple of 64), batch, length",
        multiple=(1, 64),
        help="of a training step",
    )
    lengths: list[int] = lab.integers([4096, 16384], least=1, most=2**20, help="tokens of linear attention")
    width: int = lab.integer(64, least=1, help="of its tokens and its head")
    block: int = lab.integer(512, least=1, help="tokens of its blocks")
    rounds: int = lab.integer(
        15,
        least=1,
        help="of every measurement, a third for steps and lengths; in each a peer solves another subset-sum problem",
    )
    threads: int | None = lab.integer(None, least=1, help="that we use; None: all cores")
    only: Any = lab.anything(None, allowed="areas of a GPU", help="on a GPU: areas; None: what, or all")
    minutes: float | None = lab.number(None, above=0.0, help="on a GPU: of the whole measurement; None: no limit")
    processes: int = lab.free(lab.integer(14, least=1, help="on a GPU: that check kernels side by side"))
    checkpoints: str | None = lab.free(
        lab.text(None, "a folder, or None", help="on a GPU: a folder, from which a measurement that was cut goes on")
    )
    seed: int = lab.seed()

    def check(self) -> None:
        """Refused, where it can be BadConfig, for what cannot be measured."""
        if self.device != "cpu":
            _ = self.on_gpu
            return
        self.require_defaults(ON_GPU, "on the CPU")
        _ = self.areas

    @property
    def on_gpu(self) -> dict[str, Any]:
        """Device, areas, rounds and seed of a measurement on a GPU, or Refused."""
        for key in ("what", "only"):
            value = getattr(self, key)
            if not all(isinstance(area, str) for area in (value if isinstance(value, list) else [value or ""])):
                raise BadConfig(key, value, "None, or one or several areas")
        given = {key: getattr(self, key) for key in ("device", "rounds", "minutes", "processes", "seed")}
        given["only"] = self.what if self.only is None else self.only
        try:
            return command.checked(command.DEFAULTS | {k: v for k, v in given.items() if v is not None})
        except ValueError as error:
            raise Refused(str(error)) from error

    @property
    def areas(self) -> list[str]:
        """What is measured on the CPU, or BadConfig."""
        return list(AREAS) if self.what is None else some_of(AREAS).read("what", self.what)

    @property
    def cases(self) -> list[Callable[[], list[Row]]]:
        """What is to be measured on the CPU, in its order."""
        rounds, seed = self.rounds, self.seed
        fewer = -(-rounds // 3)
        sums = partial(
            subset_sums.rows,
            batch=self.batch,
            rounds=rounds,
            time_limit=self.time_limit,
            seed=seed,
            threads=self.threads or cores(),
        )
        routes = partial(attention_routes.rows, rounds=rounds, seed=seed)
        steps = partial(training_step.rows, rounds=fewer, seed=seed)
        linear = partial(linear_attention.rows, d=self.width, block=self.block, rounds=fewer, seed=seed)
        cases: dict[str, list[Callable[[], list[Row]]]] = {
            "subset_sums": [partial(sums, n) for n in sorted(self.candidates)],
            "attention_routes": [partial(routes, attention_routes.Shape(*shape)) for shape in self.routes],
            "selection": [partial(selection.rows, n, rounds=rounds, seed=seed) for n in sorted(self.scores)],
            "training_step": [partial(steps, training_step.Shape(*shape)) for shape in self.blocks],
            "linear_attention": [partial(linear, sorted(self.lengths))],
        }
        return [case for area in self.areas for case in cases[area]]


ex = lab.experiment("speed", Config)
ex.add_named_config(
    "smoke",
    candidates=10,
    routes=[[8, 64, 128, 2]],
    scores=100_000,
    blocks=[[1, 64, 2, 16]],
    lengths=[64, 256],
    width=16,
    block=32,
    rounds=3,
)


@ex.main
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Measure the areas."""
    started = time.perf_counter()
    if config.device != "cpu":
        return on_gpu(config, run)
    torch.set_num_threads(config.threads or cores())
    table = table_of([row for case in lab.progress(config.cases, "speed") for row in case()])
    summary = summarise(table) | {"seconds": time.perf_counter() - started}
    print(table[["what", "size", "ours_s", "peer", "peer_s", "ratio"]].to_string(index=False))
    lab.save(run, table, summary, plots.figures(table, summary))
    return summary


def on_gpu(config: Config, run: lab.Run) -> dict[str, Any]:
    """The same for the kernels; checks.csv has every check. RuntimeError, when all is stored, where one failed."""
    with tempfile.TemporaryDirectory() as place:
        try:
            hour = Hour.of(config.on_gpu, Path(config.checkpoints or place))
            timed, summary = hour.measure(partial(store, run))
        except ValueError as error:
            raise Refused(str(error)) from error
    lab.save(run, timed.table, summary, report.figures(timed))
    if failed := command.failures(summary):
        raise RuntimeError(f"{failed} checks or measurements failed: summary.json names them")
    return summary


def store(run: lab.Run, name: str, contents: bytes) -> None:
    """A file of the run, at once."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, name)
        file.write_bytes(contents)
        run.add_artifact(file, name)


if __name__ == "__main__":
    lab.launch(ex)
