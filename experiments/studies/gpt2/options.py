"""What the shared keys mean: the bases of the configs of experiments with GPT-2.

An experiment's config derives from GPT2Options, or from GPT2Training where its search has keys of its own, and declares
their keys by the functions of `keys`.
"""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from transformers import GPT2Config

from slth.experiments import lab
from slth.experiments.lab import BadConfig, methods
from slth.experiments.lab.options import as_list
from slth.experiments.studies.gpt2.data import Data, read
from slth.experiments.studies.gpt2.pruning import PLAIN, Masks, Pruning
from slth.experiments.studies.gpt2.training import Training
from slth.models import gpt2

#: Keys that former folders of checkpoints know nothing of.
LATER = ("precision", "accumulate", "controls", "kind", "scale", "embedding_kind", "embedding_keep", "beta1", "beta2")


class GPT2Training(lab.TrainingOptions):
    """Base of all configs: a text, and how models are trained on it. They declare these keys."""

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
    """Keys that may change from a run to one that goes on from its checkpoints."""

    def check(self) -> None:
        """See that the study can be made: what keys say, then the text, then what the folder of checkpoints is of."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadConfig("device", self.device, "auto or cpu: there is no CUDA device here")
        self.check_arithmetic(self.batch, self.where.type)
        self.check_search()
        self.check_keys()
        _ = self.study
        self.resumable.check(self.parts)

    def check_search(self) -> None:
        """Raise BadConfig for a search that cannot be made."""

    @abstractmethod
    def check_keys(self) -> None:
        """Raise BadConfig for values that do not fit together, as far as that is known before a text is read."""

    @property
    @abstractmethod
    def study(self) -> object:
        """What a run does, or BadConfig."""

    @property
    def parts(self) -> Sequence[str]:
        """Names of what a run stores for another to go on from, beside checkpoints of trainings."""
        return ()

    @cached_property
    def tokens(self) -> Data:
        """The text, read and split, or BadConfig."""
        return read(self.data, self.vocabulary, self.length, self.windows)

    def training(self, every: int) -> Training:
        """How models are trained, measured after every so many steps."""
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
        """Where models are trained."""
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    def models(self, size: object, vocabulary: int) -> dict[str, GPT2Config]:
        """The models by size, or BadConfig."""
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
        """The model of one size, or BadConfig."""
        if not isinstance(size, str):
            raise BadConfig("size", size, "one size")
        return self.models(size, vocabulary)[size]

    @property
    def folder(self) -> Path | None:
        """Of checkpoints."""
        return None if self.checkpoints is None else Path(self.checkpoints)

    @cached_property
    def resumable(self) -> lab.Resumable:
        """What a run that was cut goes on from: all keys but the folder's, and the text, must be as they were."""
        defaults, free = self.defaults(), ("checkpoints", "graph", "saves", *self.free)
        values = {
            key: value
            for key, value in self.values().items()
            if key not in free and not (key in LATER and value == defaults[key])
        }
        return lab.Resumable(self.folder, values | {"text": self.tokens.corpus.digest}, self.free)


class GPT2Options(GPT2Training):
    """Base of the configs of one search: they declare these keys too."""

    method: methods.Method
    keep: float | list[float]
    policy: str
    schedule: str
    masked: str
    scores: str
    lr: list[float]
    pilot_steps: int

    def check_search(self) -> None:
        """Raise BadConfig for a method that never acts in so many steps, or cannot end with such a keep."""
        if steps := self.searches:
            self.method.require(steps, as_list(self.keep), schedule=self.schedule)

    @property
    def searches(self) -> list[int]:
        """The steps of each kind of training in which scores are searched."""
        return [self.pilot_steps, self.steps] if len(self.lr) > 1 else [self.steps]

    def search(self, keep: float) -> Pruning:
        """How tickets are looked for."""
        method = self.method.search(schedule=self.schedule)
        return Pruning(method, keep, self.policy, self.masked, self.scores, self.seed, self.masks)

    @property
    def masks(self) -> Masks:
        """What masks make of weights."""
        return PLAIN

    def require_masks(self, *models: GPT2Config) -> None:
        """BadConfig for masks that the method cannot search for, or that do not fit the weights of the models."""
        for search in map(self.search, as_list(self.keep)):
            for model in models:
                try:
                    search.check(model)
                except ValueError as error:
                    raise BadConfig("kind", str(self.masks.kind), f"one that fits: {error}") from error

    def require_pilots(self, *rates: Sequence[float]) -> None:
        """BadConfig for pilot_steps where no learning rate is chosen of several."""
        if all(len(lrs) == 1 for lrs in rates):
            self.require_defaults(["pilot_steps"], "where there is one learning rate, which needs no pilot")
