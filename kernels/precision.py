"""The precision of reference implementations.

Half precision is computed in float32 and rounded once at the end, so that a reference is more accurate than any faster
implementation.
"""

from __future__ import annotations

import torch


def wide(x: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to the precision of the reference: at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
