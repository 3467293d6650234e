"""Products with a masked weight in plain torch, the reference for Triton's."""

from __future__ import annotations

import torch

from ..cut import Scored
from ..masked_weight import masked_weight
from ..precision import wide


def masked_linear(
    x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor | Scored, bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply x (..., in) by the transposed masked weight (out, in), and add a bias."""
    y = wide(x) @ masked_weight(wide(weight), mask, impl="reference").mT
    return (y if bias is None else y + wide(bias)).to(x.dtype)
