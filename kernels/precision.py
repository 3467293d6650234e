"""The precision that references work in.

Half precision is computed in float32 and rounded once at the end, so that a reference is nearer to the truth than any
form that is faster.
"""

from __future__ import annotations

import torch


def wide(x: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision that the reference works in: float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
