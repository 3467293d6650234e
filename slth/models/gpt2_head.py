"""GPT-2's product with the vocabulary, padded for GPUs, whose fast products want sizes that are multiples of 64."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear, pad

MULTIPLE = 64
FIELD = "vocabulary_multiple"  # of a GPT2Config; where it is missing, the vocabulary is padded on GPUs alone


class PaddedHead(nn.Linear):
    """A linear layer without bias whose product is that of a weight with rows of zeros below it; gives as many outputs.

    The weight has no such rows: they are no parameters, so that no mask, ticket or count knows of them. multiple: what
    the rows of the product are a multiple of; None: of 64 on a GPU, and no padding elsewhere.
    """

    multiple: int | None

    @classmethod
    def of(cls, layer: nn.Linear, multiple: int | None) -> PaddedHead:
        """The same layer, with the very weight, padded."""
        with torch.device("meta"):
            head = cls(layer.in_features, layer.out_features, bias=False)
        head.weight, head.multiple = layer.weight, multiple
        return head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X (..., in_features) -> (..., out_features), a view of the padded product."""
        multiple = self.multiple or (MULTIPLE if x.is_cuda else 1)
        missing = -self.out_features % multiple
        if missing == 0:
            return super().forward(x)
        return linear(x, pad(self.weight, (0, 0, 0, missing)))[..., : self.out_features]
