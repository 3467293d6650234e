"""Which form of a kernel a call takes: the reference or Triton's."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import os
import re
from types import TracebackType

import torch

IMPLS = ("auto", "reference", "triton")
TRITON_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_TRITON = (3, 6)
OLDEST_GPU = (8, 0)  # compute capability
SHARED = 160 * 1024  # bytes of shared memory that a block may have, for which tiles were chosen: an A100 has 163 KiB

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

    A caller that has a plain way of its own, faster than the reference, asks this first. "auto" takes Triton on a GPU
    that the kernels are made for, and never while torch.compile looks on, which makes kernels of its own from plain
    torch; "triton" tries.

    Raises ValueError for an unknown impl, and for impl="triton" where Triton cannot do the call; RuntimeError for
    impl="triton" where Triton is not installed.
    """
    check_impl(impl)
    if impl == "auto" and torch.compiler.is_compiling():
        return False
    wanted = _auto if impl == "auto" else impl
    if wanted == "reference":
        return False
    obstacle = unfit or (_misfit(tensors[0].device) if wanted == "auto" else "") or _obstacle(tensors)
    if wanted == "triton" and obstacle:
        kind = RuntimeError if obstacle.startswith("triton") else ValueError
        raise kind(f'{kernel} with impl="triton": {obstacle}')
    if wanted == "auto":
        _tell(kernel, f"the reference: {obstacle}" if obstacle else "triton")
    return not obstacle


def _obstacle(tensors: tuple[torch.Tensor, ...]) -> str:
    device = tensors[0].device
    if importlib.util.find_spec("triton") is None:
        return f"triton is not installed, must be >= {_dotted(OLDEST_TRITON)}"
    floats = {t.dtype for t in tensors if t.is_floating_point()}
    for dtype in floats - set(TRITON_FLOATS):
        return f"tensors of dtype {dtype}, must be one of {', '.join(str(d) for d in TRITON_FLOATS)}"
    if not (device.type == "cuda" or (device.type == "cpu" and interpreting())):
        return f"tensors on {device}, must be on a CUDA device (or in Triton's interpreter, TRITON_INTERPRET=1)"
    if _triton() < OLDEST_TRITON:
        return f"triton is of version {_dotted(_triton())}, must be >= {_dotted(OLDEST_TRITON)}"
    return ""


@functools.cache
def _triton() -> tuple[int, ...]:
    """The version of Triton that is installed: its first two numbers."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # installed under another name
        version = importlib.import_module("triton").__version__
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)


def _misfit(device: torch.device) -> str:
    """What makes "auto" leave a device to the reference though Triton may work there, empty where nothing does."""
    if device.type != "cuda":
        return "tensors on the CPU" if device.type == "cpu" else f"tensors on {device}"
    return _lacking(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _lacking(index: int) -> str:
    """What a GPU lacks of what the kernels are made for, empty where it is nothing."""
    gpu = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return f"{gpu.name} is not of NVIDIA's"
    capability = gpu.major, gpu.minor
    if capability < OLDEST_GPU:
        return f"{gpu.name} has compute capability {_dotted(capability)}, must be >= {_dotted(OLDEST_GPU)}"
    shared = getattr(gpu, "shared_memory_per_block_optin", SHARED)
    return f"{gpu.name} has {shared} bytes of shared memory a block, must be >= {SHARED}" if shared < SHARED else ""


def _tell(kernel: str, choice: str) -> None:
    """Log a choice once, and again where it becomes another."""
    if (kernel, choice) not in _told:
        _told.add((kernel, choice))
        _log.info('%s with impl="auto" takes %s', kernel, choice)
