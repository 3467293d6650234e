"""Torch's initial default dtype and device: float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def usual() -> Iterator[None]:
    """Run the block with torch's initial defaults, as if no default dtype or device had been set.

    For third-party code that creates tensors by these defaults (torch's optimisers, transformers' models), so that its
    result depends on its arguments alone. Costs nothing if the defaults have not been changed.
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
