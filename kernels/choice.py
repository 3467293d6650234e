"""Which form of a kernel a call takes: the reference or Triton's."""

from __future__ import annotations

import importlib.util
import logging
import os
from types import TracebackType

import torch

IMPLS = ("auto", "reference", "triton")
TRITON_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_log = logging.getLogger("slth.kernels")
_told: set[tuple[str, str]] = set()
_auto = "auto"  # what "auto" stands for


class use:
    """Say what impl="auto" stands for, from now on, or within a with block: "auto", "reference" or "triton".

    Raises ValueError for another name.
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


def check_impl(impl: str) -> None:
    """Raise ValueError unless impl is one of IMPLS."""
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r}: must be one of {', '.join(IMPLS)}")


def interpreting() -> bool:
    """Whether Triton runs in its interpreter, on CPU tensors: as TRITON_INTERPRET=1 says before it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def takes_triton(kernel: str, *tensors: torch.Tensor, impl: str = "auto", unfit: str = "") -> bool:
    """Whether a call goes to Triton; the tensors are on one device. unfit says why Triton cannot do it, if so.

    A caller that has a plain way of its own, faster than the reference, asks this first.

    Raises ValueError for an unknown impl, and for impl="triton" where Triton cannot do the call; RuntimeError for
    impl="triton" where Triton is not installed.
    """
    check_impl(impl)
    wanted = _auto if impl == "auto" else impl
    if wanted == "reference":
        return False
    obstacle = unfit or _obstacle(tensors)
    if wanted == "triton" and obstacle:
        kind = RuntimeError if obstacle.startswith("triton") else ValueError
        raise kind(f'{kernel} with impl="triton": {obstacle}')
    taken = not obstacle and (wanted == "triton" or tensors[0].is_cuda)
    if wanted == "auto":
        _tell(kernel, "triton" if taken else "the reference: " + (obstacle or "tensors on the CPU"))
    return taken


def _obstacle(tensors: tuple[torch.Tensor, ...]) -> str:
    device = tensors[0].device
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed, must be >= 3.6"
    floats = {t.dtype for t in tensors if t.is_floating_point()}
    for dtype in floats - set(TRITON_FLOATS):
        return f"tensors of dtype {dtype}, must be one of {', '.join(str(d) for d in TRITON_FLOATS)}"
    if device.type == "cuda" or (device.type == "cpu" and interpreting()):
        return ""
    return f"tensors on {device}, must be on a CUDA device (or in Triton's interpreter, TRITON_INTERPRET=1)"


def _tell(kernel: str, choice: str) -> None:
    """Log a choice once, and again where it becomes another."""
    if (kernel, choice) not in _told:
        _told.add((kernel, choice))
        _log.info('%s with impl="auto" takes %s', kernel, choice)
