"""The settings of a comparison, and its measurements one by one."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from transformers import GPT2Config

from slth.experiments.studies.approximation.learning import Learning
from slth.experiments.studies.gpt2.data import Data
from slth.experiments.studies.gpt2.pruning import Pruning
from slth.experiments.studies.gpt2.training import Training
from slth.experiments.studies.mixing.variants import LINEAR, has_matrix

if TYPE_CHECKING:
    from slth.experiments.studies.mixing.config import Config


@dataclass(frozen=True)
class Job:
    """A measurement: its kind (error, ticket, dense, spikes or matrix), variant, seed, and further settings."""

    what: str
    variant: str
    seed: int
    keep: float | None = None
    hidden: int | None = None
    length: int | None = None
    lr: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(hidden, length) of an error or matrix measurement."""
        assert self.hidden is not None
        assert self.length is not None
        return self.hidden, self.length

    @property
    def label(self) -> str:
        """The name of the job and of its files; places of the user's own variants are quoted as in URLs."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return " ".join(quote(v, safe=":") if k in ("what", "variant") else f"{k}={v}" for k, v in given.items())


@dataclass(frozen=True)
class Study:
    """The settings of the comparison."""

    variants: tuple[str, ...]
    seeds: range
    keeps: list[float]
    hidden: list[int]
    lengths: list[int]
    d: int
    heads: int
    kv_heads: int
    learning: Learning
    model: GPT2Config
    search: Pruning
    how: Training
    data: Data
    lrs: dict[str, list[float]]  # of tickets and of dense training
    spike_lrs: list[float]
    config: "Config"

    @property
    def jobs(self) -> list[Job]:
        """Return all jobs, seed by seed, so that the first results are already paired."""
        return [job for seed in self.seeds for job in self._of_seed(seed)]

    def _of_seed(self, seed: int) -> Iterator[Job]:
        config = self.config
        trained = (*self.variants, LINEAR) if config.matrices and "mhla" in self.variants else self.variants
        if config.errors:
            for hidden, length, variant in itertools.product(self.hidden, self.lengths, self.variants):
                yield Job("error", variant, seed, hidden=hidden, length=length)
        if config.losses:
            yield from (Job("dense", variant, seed) for variant in trained)
            for keep, variant in itertools.product(self.keeps, self.variants):
                yield Job("ticket", variant, seed, keep=keep)
        if config.spikes:
            for lr, variant in itertools.product(self.spike_lrs, self.variants):
                yield Job("spikes", variant, seed, lr=lr)
        if config.matrices:
            for length, variant in itertools.product(self.lengths, filter(has_matrix, trained)):
                yield Job("matrix", variant, seed, hidden=self.hidden[0], length=length)
