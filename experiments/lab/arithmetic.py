"""Config keys of every experiment that trains: precision, CUDA graphs and accumulation, passed on to `slth.fit`."""

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
    """Arguments of `slth.fit`: `slth.fit(..., **vars(arithmetic))`."""

    precision: Precision = "auto"
    graph: bool | Literal["auto"] = "auto"
    accumulate: int = 1

    def resolved(self, device: torch.device) -> Precision:
        """Return the precision that fit uses on a device."""
        from slth.search.precision import resolve

        return resolve(self.precision, device)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Run operations within the with block in the precision that fit uses on the device."""
        from slth.search.precision import arithmetic

        with arithmetic(self.resolved(device), device):
            yield


@dataclass(frozen=True)
class TrainingOptions(Options):
    """Base of the configs of experiments that train; their `check` may call :meth:`check_arithmetic`."""

    precision: Precision = choice(
        "auto",
        ("auto", "float32", "tf32", "bf16"),
        help="precision of products with weights in training, scores stay float32; auto: bf16 on a GPU, else float32",
    )
    graph: bool | Literal["auto"] = free(
        key(
            "auto",
            where(lambda value: value == "auto" or isinstance(value, bool), "auto, True or False"),
            help="training: capture a step in a CUDA graph and replay it; auto: if possible",
        )
    )
    accumulate: int = free(
        integer(1, least=1, help="training: gradient accumulation, the parts of a batch that run one after another")
    )

    @property
    def arithmetic(self) -> Arithmetic:
        """Return the arguments of `slth.fit`."""
        return Arithmetic(self.precision, self.graph, self.accumulate)

    def check_arithmetic(self, batch: int, device: str = "cpu") -> None:
        """Raise BadConfig for values that are not possible on this type of device, or with this batch size."""
        if device != "cuda" and self.precision == "tf32":
            raise BadConfig("precision", self.precision, "auto, float32 or bf16 where no CUDA device trains")
        if device != "cuda" and self.graph is True:
            raise BadConfig("graph", self.graph, "auto or False where no CUDA device trains")
        if self.accumulate > batch:
            raise BadConfig("accumulate", self.accumulate, f"at most batch={batch}, one row for each piece")
