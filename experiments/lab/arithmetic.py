"""How trainings are computed: the keys of every experiment that trains, which `slth.fit` takes as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slth.experiments.lab.options import Options, choice, free, integer, key, where
from slth.experiments.lab.refusals import BadConfig

if TYPE_CHECKING:
    import torch

    from slth.search.precision import Precision


@dataclass(frozen=True)
class Arithmetic:
    """What `slth.fit` is told of it: `slth.fit(..., **vars(arithmetic))`."""

    precision: Precision = "auto"
    graph: bool | Literal["auto"] = "auto"
    accumulate: int = 1

    def resolved(self, device: torch.device) -> Precision:
        """The precision that fit trains in on a device."""
        from slth.search.precision import resolve

        return resolve(self.precision, device)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Within it operations on the device run in the precision that fit trains in there."""
        from slth.search.precision import arithmetic

        with arithmetic(self.resolved(device), device):
            yield


@dataclass(frozen=True)
class TrainingOptions(Options):
    """Base of the configs of experiments that train: they have these keys, and may call what is below in `check`."""

    precision: Precision = choice(
        "auto",
        ("auto", "float32", "tf32", "bf16"),
        help="of trainings: of products of weights, scores stay float32; auto: bf16 on a GPU, float32 elsewhere",
    )
    graph: bool | Literal["auto"] = free(
        key(
            "auto",
            where(lambda value: value == "auto" or isinstance(value, bool), "auto, True or False"),
            help="of trainings: whether a GPU's steps are recorded once and replayed; auto: where they can be",
        )
    )
    accumulate: int = free(
        integer(1, least=1, help="of trainings: pieces of a batch that go through the model one after another")
    )

    @property
    def arithmetic(self) -> Arithmetic:
        """The keys, for `slth.fit`."""
        return Arithmetic(self.precision, self.graph, self.accumulate)

    def check_arithmetic(self, batch: int, device: str = "cpu") -> None:
        """Raise BadConfig for keys that no training on this type of device, of such batches, can follow."""
        if device != "cuda" and self.precision == "tf32":
            raise BadConfig("precision", self.precision, "auto, float32 or bf16 where no CUDA device trains")
        if device != "cuda" and self.graph is True:
            raise BadConfig("graph", self.graph, "auto or False where no CUDA device trains")
        if self.accumulate > batch:
            raise BadConfig("accumulate", self.accumulate, f"at most batch={batch}, one row for each piece")
