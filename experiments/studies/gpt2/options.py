"""Base classes of the configs of experiments with GPT-2, which turn the shared keys into settings.

An experiment's config derives from GPT2Options, or from GPT2Training if its search has its own keys, and declares their
keys by the functions of `keys`.
"""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import GPT2Config

from slth.experiments import lab
from slth.experiments.lab import BadConfig, methods
from slth.experiments.lab.options import as_list
from slth.experiments.studies.gpt2.data import Data, read
from slth.experiments.studies.gpt2.pruning import PLAIN, Masks, Pruning
from slth.experiments.studies.gpt2.training import Training
from slth.models import gpt2

#: Keys whose defaults have changed, with their defaults in older versions.
FORMER: dict[str, Any] = {"embedding_kind": None, "embedding_keep": None, "beta1": 0.9, "beta2": 0.999}
#: Keys that are missing in folders of checkpoints of older versions.
LATER = ("precision", "accumulate", "controls", "kind", "scale", *FORMER)


class GPT2Training(lab.TrainingOptions):
    """Base of all configs: a text, and the training of models on it. Subclasses declare these keys."""

    data: str
    vocabulary: str
    length: int
    steps: int
    batch: int
    warmup: float
    clip: float
    windows: int
    checkpoints: str | None
    saves: int
    device: str
    seed: int
    free: ClassVar[Collection[str]] = ()
    """Keys that may change when a run is resumed from its checkpoints."""

    def check(self) -> None:
        """Raise BadConfig for bad keys, then for the text, then for a folder of checkpoints with other settings."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadConfig("device", self.device, "auto or cpu: there is no CUDA device here")
        self.check_arithmetic(self.batch, self.where.type)
        self.check_search()
        self.check_keys()
        _ = self.study
        self.resumable.check(self.parts)

    def check_search(self) -> None:
        """Raise BadConfig for a search that is not possible."""

    @abstractmethod
    def check_keys(self) -> None:
        """Raise BadConfig for values that do not fit together, as far as known before a text is read."""

    @property
    @abstractmethod
    def study(self) -> object:
        """Return the study. Raises BadConfig."""

    @property
    def parts(self) -> Sequence[str]:
        """Return the names of stored parts for resuming, in addition to checkpoints of trainings."""
        return ()

    @cached_property
    def tokens(self) -> Data:
        """Read and split the text. Raises BadConfig."""
        return read(self.data, self.vocabulary, self.length, self.windows)

    def training(self, every: int) -> Training:
        """Return the training settings, with an evaluation after every `every` steps."""
        return Training(
            steps=self.steps,
            batch=self.batch,
            length=self.length,
            warmup=self.warmup,
            clip=self.clip,
            every=every,
            seed=self.seed,
            device=self.where,
            folder=self.folder,
            saves=self.saves,
            arithmetic=self.arithmetic,
        )

    @property
    def where(self) -> torch.device:
        """Return the device of training."""
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    def models(self, size: object, vocabulary: int) -> dict[str, GPT2Config]:
        """Return the model configs by size. Raises BadConfig."""
        allowed = f"one or several of {', '.join(gpt2.SIZES)}, or one of these times a width (mini*0.5)"
        models = {}
        for name in as_list(size):
            base, times, width = str(name).partition("*")
            try:
                factor = float(width) if times else 1.0
                if base in gpt2.SIZES and self.length > gpt2.SIZES[base].length:
                    most = f"at most {gpt2.SIZES[base].length}, the positions of {base}"
                    raise BadConfig("length", self.length, most)
                models[str(name)] = gpt2.config(base, width=factor, vocabulary=vocabulary, length=self.length)
            except ValueError as error:
                raise BadConfig("size", size, f"{allowed} ({error})") from error
        if not models or len(models) < len(as_list(size)):
            raise BadConfig("size", size, f"{allowed}, none twice")
        return models

    def model(self, size: object, vocabulary: int) -> GPT2Config:
        """Return the model config of one size. Raises BadConfig."""
        if not isinstance(size, str):
            raise BadConfig("size", size, "one size")
        return self.models(size, vocabulary)[size]

    @property
    def folder(self) -> Path | None:
        """Return the folder of checkpoints."""
        return None if self.checkpoints is None else Path(self.checkpoints)

    @cached_property
    def resumable(self) -> lab.Resumable:
        """Return the state for resuming; all keys except the folder's, and the text, must be unchanged."""
        former, free = self.defaults() | FORMER, ("checkpoints", "graph", "saves", *self.free)
        values = {
            key: value
            for key, value in self.values().items()
            if key not in free and not (key in LATER and value == former[key])
        }
        return lab.Resumable(self.folder, values | {"text": self.tokens.corpus.digest}, self.free)


class GPT2Options(GPT2Training):
    """Base of the configs of one search. Subclasses declare these keys too."""

    method: methods.Method
    keep: float | list[float]
    policy: str
    schedule: str
    masked: str
    scores: str
    lr: list[float]
    pilot_steps: int

    def check_search(self) -> None:
        """Raise BadConfig for a method that never acts within the steps, or cannot end at this keep."""
        if steps := self.searches:
            self.method.require(steps, as_list(self.keep), schedule=self.schedule)

    @property
    def searches(self) -> list[int]:
        """Return the steps of each kind of training of scores."""
        return [self.pilot_steps, self.steps] if len(self.lr) > 1 else [self.steps]

    def search(self, keep: float) -> Pruning:
        """Return the search settings."""
        method = self.method.search(schedule=self.schedule)
        return Pruning(method, keep, self.policy, self.masked, self.scores, self.seed, self.masks)

    @property
    def masks(self) -> Masks:
        """Return the masks of blocks and embeddings."""
        return PLAIN

    def require_masks(self, *models: GPT2Config) -> None:
        """Raise BadConfig for masks that the method does not support, or that do not fit the models' weights."""
        for search in map(self.search, as_list(self.keep)):
            for model in models:
                try:
                    search.check(model)
                except ValueError as error:
                    if not search.method.any_form:
                        allowed = f"one that finds masks of every kind, or `with plain` ({error})"
                        raise BadConfig("method", str(self.method), allowed) from error
                    raise BadConfig("kind", str(self.masks.kind), f"one that fits: {error}") from error

    def require_pilots(self, *rates: Sequence[float]) -> None:
        """Raise BadConfig for pilot_steps with only one learning rate."""
        if all(len(lrs) == 1 for lrs in rates):
            self.require_defaults(["pilot_steps"], "where there is one learning rate, which needs no pilot")
