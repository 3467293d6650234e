"""Products with a masked weight whose masked copy is never written to memory."""

from __future__ import annotations

import torch

from ..arguments import check_floats, check_linear
from ..autocast import as_autocast
from ..cut import Scored
from ..dispatch import Kernel
from ..masked_weight import check_mask
from . import reference

_MASKED_LINEAR = Kernel(reference.masked_linear)


@as_autocast
def masked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | Scored,
    *,
    bias: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """X times the masked weight, transposed, whose masked copy is never written to memory.

    Differentiable in x, the bias and the scores (straight through, as :func:`masked_weight`); the weight gets no
    gradient.

    Args:
        x: (..., in), float.
        weight: (out, in), of x's dtype.
        mask: as in :func:`masked_weight`.
        bias: (out,), of x's dtype.
        impl: "auto", "reference" or "triton".

    Returns (..., out), of x's dtype. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    check_floats(x=x, weight=weight, bias=bias)
    check_linear(x, weight.shape, bias)
    return _MASKED_LINEAR.choose(impl, x)(x, weight, check_mask(weight, mask), bias)
