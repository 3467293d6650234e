"""Torch's defaults as they are before anybody sets them: float32, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def usual() -> Iterator[None]:
    """Within it `torch.set_default_dtype` and `torch.set_default_device` have not been called.

    For code of others that makes tensors by these defaults (torch's optimisers, transformers' models): what comes out
    must follow from the arguments alone. Costs nothing where both are as usual.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if (dtype, device.type) == (torch.float32, "cpu"):
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
