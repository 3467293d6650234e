"""Measure the speed of the package against peers, with interleaved timing in one run.

The areas are: subset sums against the MILP solver of scipy (and CP-SAT of OR-Tools, if installed); attention from
merged matrices against the same attention head by head; selection of the kept scores against sorting; a training step
of GPT-2 blocks with learned masks against dense training and masks by sorting; and linear attention over blocks of
tokens (MHLA) against softmax attention.

On a machine that is busy with other work, torch's threads wait for each other, which distorts the ratios of short
calls. Set threads=1 there, or OMP_WAIT_POLICY=passive in the environment.

With device=cuda the kernels are measured instead. First each case is compared with its reference, in several processes;
then the areas that passed are timed against their peers, the worst first. only= selects areas, minutes= limits the
total time, and checkpoints=DIR resumes an interrupted measurement. Without Sacred, the same command writes to the
folder out=DIR and resumes from it by itself.
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

ON_GPU = ("only", "minutes", "processes", "checkpoints")  # keys for a GPU
AREAS = ("subset_sums", "attention_routes", "selection", "training_step", "linear_attention")


def shapes(default: list[list[int]], names: str, *, multiple: tuple[int, int] = (0, 1), help: str) -> Any:
    """Declare a key for a list of lists of ints >= 1 with these names; multiple: (index, divisor) of one of them."""
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
    """The areas to time, their sizes, and the device."""

    device: str = lab.anything(
        "cpu", allowed="cpu, or a CUDA device", help="cpu, or cuda to measure the kernels on a GPU"
    )
    what: Any = lab.anything(
        None,
        allowed=f"one or several of {', '.join(AREAS)}; on a GPU of {', '.join(report.AREAS)}",
        help="areas to measure; None: all areas of the device",
    )
    candidates: list[int] = lab.integers([10, 16, 20, 24], least=1, most=40, help="candidates per subset-sum problem")
    batch: int = lab.integer(20_000, least=1, most=10**6, help="subset-sum problems per batch of ours")
    time_limit: float = lab.number(20.0, above=0.0, help="seconds that a peer may spend on one subset-sum problem")
    routes: list[list[int]] = shapes(
        [[16, 256, 1024, 4], [32, 1024, 1024, 4], [64, 1024, 2048, 2], [64, 64, 1024, 4]],
        "d_in, hidden, length, heads",
        help="attentions to time, merged against head by head, as [d_in, hidden, length, heads]",
    )
    scores: list[int] = lab.integers(
        [589_824, 2_359_296, 7_077_888],
        least=2,
        most=2**30,
        help="numbers of scores to select half of; 7,077,888 is a block of GPT-2 small",
    )
    blocks: list[list[int]] = shapes(
        [[2, 768, 8, 128]],
        "blocks, d (a multiple of 64), batch, length",
        multiple=(1, 64),
        help="training steps to time, as [blocks, d, batch, length] of GPT-2 blocks",
    )
    lengths: list[int] = lab.integers([4096, 16384], least=1, most=2**20, help="linear attention: numbers of tokens")
    width: int = lab.integer(64, least=1, help="linear attention: width of tokens and head")
    block: int = lab.integer(512, least=1, help="linear attention: tokens per block")
    rounds: int = lab.integer(
        15,
        least=1,
        help="rounds per measurement, a third of them for blocks and lengths; subset-sum peers solve one problem each",
    )
    threads: int | None = lab.integer(None, least=1, help="threads of ours; None: all cores")
    only: Any = lab.anything(
        None, allowed="areas of a GPU", help="GPU: areas to measure; None: those of the key what, or all"
    )
    minutes: float | None = lab.number(None, above=0.0, help="GPU: time limit of the measurement; None: no limit")
    processes: int = lab.free(lab.integer(14, least=1, help="GPU: processes that check kernels in parallel"))
    checkpoints: str | None = lab.free(
        lab.text(None, "a folder, or None", help="GPU: a folder, from which an interrupted measurement is resumed")
    )
    seed: int = lab.seed()

    def check(self) -> None:
        """Raise Refused, if possible BadConfig, for what cannot be measured."""
        if self.device != "cpu":
            _ = self.on_gpu
            return
        self.require_defaults(ON_GPU, "on the CPU")
        _ = self.areas

    @property
    def on_gpu(self) -> dict[str, Any]:
        """Return device, areas, rounds and seed of a measurement on a GPU. Raises Refused."""
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
        """Return the areas to measure on the CPU. Raises BadConfig."""
        return list(AREAS) if self.what is None else some_of(AREAS).read("what", self.what)

    @property
    def cases(self) -> list[Callable[[], list[Row]]]:
        """Return the measurements on the CPU, in order."""
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
    """Check and time the kernels; checks.csv has every check. Raises RuntimeError, after storing, if one failed."""
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
    """Store a file of the run immediately."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, name)
        file.write_bytes(contents)
        run.add_artifact(file, name)


if __name__ == "__main__":
    lab.launch(ex)
