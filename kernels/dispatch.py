"""Dispatch: choose the implementation of a kernel for a call.

    "reference"  plain torch, any device: the definition of the kernel and the oracle of the tests
    "cpu"        numba loops or torch's fused operations, if a kernel has any that are faster
    "triton"     Triton, on GPUs that the kernels support
    "auto"       the default: Triton if it can do the call, else "cpu" if the kernel has it, else the reference

A call selects one by `impl=`; :func:`use` sets what "auto" stands for. Naming an implementation that cannot do the call
is an error. The choice of "auto", and a choice other than the one set by :func:`use`, are logged under "slth.kernels",
once and whenever they change.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from slth.watched import watched

IMPLS = ("auto", "reference", "cpu", "triton")
TRITON_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_TRITON = (3, 6)
OLDEST_GPU = (8, 0)  # compute capability
SHARED = 160 * 1024  # shared memory per block, in bytes, that the tile sizes need: an A100 has 163 KiB

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("slth.kernels")
_auto = "auto"  # what "auto" stands for
_counts: Counter[tuple[str, str]] | None = None


class use:
    """Set what impl="auto" stands for, permanently or within a with block: "auto", "reference", "cpu" or "triton".

    With "cpu", a kernel without a "cpu" implementation uses the reference; `impl="cpu"` in a call would be an error.
    With "triton", calls traced by torch.compile, a transform of `torch.func` or a dispatch mode use torch's operations;
    `impl="triton"` in a call would not. Raises ValueError for another name.
    """

    def __init__(self, impl: str) -> None:
        global _auto
        check_impl(impl)
        self.before, _auto = _auto, impl

    def __enter__(self) -> use:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _auto
        _auto = self.before


@contextmanager
def counted() -> Iterator[Counter[tuple[str, str]]]:
    """Count the calls within a with block by (kernel, implementation used), in all threads."""
    global _counts
    before, _counts = _counts, Counter()
    try:
        yield _counts
    finally:
        _counts = before


def check_impl(impl: str) -> None:
    """Raise ValueError unless impl is one of IMPLS."""
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r}: must be one of {', '.join(IMPLS)}")


class Kernel(Generic[P, R]):
    """The implementations of one kernel: a function of reference.py, and those of that name in cpu.py and triton.py.

    All have the same arguments and results as the reference. triton.py is imported when a call first uses it.
    """

    def __init__(self, reference: Callable[P, R], name: str = "") -> None:
        """Find the implementations; name is the kernel's name in errors and the log, by default the function's."""
        self.name = name or reference.__name__
        self._function, self._package = reference.__name__, reference.__module__.rpartition(".")[0]
        self._known: dict[str, Callable[P, R]] = {"reference": reference}
        self._torch = "reference"  # the implementation without Triton
        if importlib.util.find_spec(f"{self._package}.cpu") is not None:
            self._torch = "cpu"
            self._loaded("cpu")
        self._logged: set[str] = set()

    def choose(self, impl: str, at: torch.Tensor, unfit: str = "", followed: bool = False) -> Callable[P, R]:
        """Choose the implementation for a call.

        Args:
            impl: the implementation that the call names.
            at: a tensor with the call's device and dtype.
            unfit: why Triton cannot do this call; "" if it can.
            followed: whether "auto" must choose an implementation that autograd can differentiate.

        Raises ValueError for an unknown impl, and for a named one that cannot do the call; RuntimeError for "triton" if
        Triton is not installed.
        """
        asked = _auto if impl == "auto" else impl
        if asked == "auto":
            taken = self._torch if at.is_cpu or followed else self._automatic(at, unfit)
        elif impl == "auto" and (asked == "cpu" or (asked == "triton" and (followed or watched()))):
            taken = self._torch
        else:
            taken = self._named(asked, at, unfit)
        if not torch.compiler.is_compiling():
            if _counts is not None:
                _counts[self.name, taken] += 1
            if impl == "auto" and taken != asked and taken not in self._logged:
                self._log_choice(taken, self._reason(asked, at, unfit))
        return self._known.get(taken) or self._loaded(taken)

    def _automatic(self, at: torch.Tensor, unfit: str) -> str:
        return self._torch if watched() or unfit or _misfit(at.device) or _obstacle(at) else "triton"

    def _named(self, asked: str, at: torch.Tensor, unfit: str) -> str:
        check_impl(asked)
        if asked == "cpu" and self._torch != "cpu":
            raise ValueError(f'{self.name} with impl="cpu": it has none, must be auto, reference or triton')
        if asked != "triton":
            return asked
        if obstacle := unfit or _obstacle(at):
            kind = RuntimeError if obstacle.startswith("triton") else ValueError
            raise kind(f'{self.name} with impl="triton": {obstacle}')
        return asked

    def _loaded(self, taken: str) -> Callable[P, R]:
        function: Callable[P, R] = getattr(importlib.import_module(f"{self._package}.{taken}"), self._function)
        return self._known.setdefault(taken, function)

    def _reason(self, asked: str, at: torch.Tensor, unfit: str) -> str:
        """Return why a call with impl="auto" does not use what :func:`use` asks for, or Triton for "auto" itself."""
        if asked == "cpu":
            return "it has no cpu form"
        obstacle = (unfit or _misfit(at.device) or _obstacle(at)) if asked == "auto" else ""
        return obstacle or "torch follows the call"

    def _log_choice(self, taken: str, reason: str) -> None:
        """Log the choice of "auto", and why it is not Triton."""
        self._logged = {taken}
        reason = "" if taken == "triton" else reason
        _log.info('%s with impl="auto" takes %s%s', self.name, taken, reason and f": {reason}")


# ---------------------------------------------------------------- support by Triton


def interpreting() -> bool:
    """Tell whether Triton runs in its interpreter, on CPU tensors: TRITON_INTERPRET=1 was set before its import."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _obstacle(at: Any) -> str:
    """Return why Triton cannot handle tensors like this one; "" if it can."""
    if importlib.util.find_spec("triton") is None:
        return f"triton is not installed, must be >= {_dotted(OLDEST_TRITON)}"
    if at.is_floating_point() and at.dtype not in TRITON_FLOATS:
        return f"tensors of dtype {at.dtype}, must be one of {', '.join(str(d) for d in TRITON_FLOATS)}"
    if not (at.device.type == "cuda" or (at.device.type == "cpu" and interpreting())):
        return f"tensors on {at.device}, must be on a CUDA device (or in Triton's interpreter, TRITON_INTERPRET=1)"
    if _triton() < OLDEST_TRITON:
        return f"triton is of version {_dotted(_triton())}, must be >= {_dotted(OLDEST_TRITON)}"
    return ""


@functools.cache
def _triton() -> tuple[int, ...]:
    """Return the first two numbers of the installed Triton's version."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # installed under another name
        version = importlib.import_module("triton").__version__
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)


def _misfit(device: torch.device) -> str:
    """Return why "auto" does not use Triton on a device, although Triton may work there; "" if it does."""
    if device.type != "cuda":
        return "tensors on the CPU" if device.type == "cpu" else f"tensors on {device}"
    return _lacking(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _lacking(index: int) -> str:
    """Return which requirement of the kernels a GPU does not meet; "" if it meets all."""
    gpu = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return f"{gpu.name} is not of NVIDIA's"
    capability = gpu.major, gpu.minor
    if capability < OLDEST_GPU:
        return f"{gpu.name} has compute capability {_dotted(capability)}, must be >= {_dotted(OLDEST_GPU)}"
    shared = getattr(gpu, "shared_memory_per_block_optin", SHARED)
    return f"{gpu.name} has {shared} bytes of shared memory a block, must be >= {SHARED}" if shared < SHARED else ""
