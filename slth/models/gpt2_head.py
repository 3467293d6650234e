"""GPT-2's output layer, padded for GPUs, whose fast matrix products need sizes that are multiples of 64."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear, pad

MULTIPLE = 64
FIELD = "vocabulary_multiple"  # field of a GPT2Config; without it, the vocabulary is padded on GPUs only


class PaddedHead(nn.Linear):
    """A linear layer without bias that pads its weight with rows of zeros and drops the additional outputs.

    The padding is added in forward and is no part of the parameter, so masks, tickets and counts do not contain it.
    multiple: the number of rows is padded to a multiple of this. None: 64 on a GPU, and no padding elsewhere.
    """

    multiple: int | None

    @classmethod
    def of(cls, layer: nn.Linear, multiple: int | None) -> PaddedHead:
        """Make a padded head that shares the weight of a linear layer."""
        with torch.device("meta"):
            head = cls(layer.in_features, layer.out_features, bias=False)
        head.weight, head.multiple = layer.weight, multiple
        return head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., in_features) -> (..., out_features), a view of the padded product."""
        multiple = self.multiple or (MULTIPLE if x.is_cuda else 1)
        missing = -self.out_features % multiple
        if missing == 0:
            return super().forward(x)
        return linear(x, pad(self.weight, (0, 0, 0, missing)))[..., : self.out_features]
