"""Where all groups of a table are cut."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Cuts(NamedTuple):
    """Where each group is cut, as :class:`slth.kernels.Cut` has it for one, on the scores' device.

    value: float32 (groups,). last_tie: int64 (groups,), counted through the group's segments in their order, each row
    by row. nan: int64 (), other than 0 where any score is NaN; then the rest means nothing.
    """

    value: torch.Tensor
    last_tie: torch.Tensor
    nan: torch.Tensor
