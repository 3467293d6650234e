"""The weights of multi-head attention."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Factors(NamedTuple):
    """Query, key and value (heads, d_in, hidden), output (heads, hidden, d_out), of one dtype and device."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
