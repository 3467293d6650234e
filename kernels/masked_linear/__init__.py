"""Products with a masked weight, which is not written to memory for few tokens."""

from __future__ import annotations

import torch

from ..arguments import check_floats, check_linear
from ..autocast import as_autocast
from ..cut import Scored
from ..dispatch import Kernel
from ..masked_weight import check_mask
from . import product, reference

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
    """Multiply x by the transposed masked weight, and add a bias.

    Triton never writes the masked weight to memory. For 1024 tokens and more (`product.MANY`), "auto" uses
    :func:`masked_weight` and torch's product instead of Triton, which is faster. Differentiable in x, the bias and the
    scores (straight through, as in :func:`masked_weight`); the weight gets no gradient.

    Args:
        x: (..., in), float.
        weight: (out, in), of x's dtype.
        mask: as in :func:`masked_weight`.
        bias: (out,), of x's dtype.
        impl: "auto", "reference" or "triton".

    Returns (..., out) in x's dtype. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    check_floats(x=x, weight=weight, bias=bias)
    check_linear(x, weight.shape, bias)
    form = _MASKED_LINEAR.choose(impl, x)
    if impl == "auto" and form is not reference.masked_linear and x.shape[:-1].numel() >= product.MANY:
        form = product.masked_linear
    return form(x, weight, check_mask(weight, mask), bias)
