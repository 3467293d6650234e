"""The cuts of all groups of a table."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Cuts(NamedTuple):
    """The cut of each group, as in :class:`slth.kernels.Cut`, on the scores' device.

    value: float32 (groups,). last_tie: int64 (groups,), counted through the group's segments in their order, each in
    row-major order. nan: int64 (), nonzero if any score is NaN; value and last_tie are then undefined.
    """

    value: torch.Tensor
    last_tie: torch.Tensor
    nan: torch.Tensor
