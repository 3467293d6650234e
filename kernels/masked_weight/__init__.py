"""The masked weight in one pass over memory, and its straight-through gradient."""

from __future__ import annotations

import torch

from slth.watched import followed

from ..arguments import check_device, check_floats
from ..bits import check_bits
from ..cut import Scored, as_cut
from ..dispatch import Kernel
from . import reference
from .gradient import refuse_scores, score_gradient, straight_through

__all__ = ["check_mask", "masked_weight", "pruned_weight", "score_gradient", "straight_through"]

_MASKED_WEIGHT = Kernel(reference.masked_weight)


def masked_weight(
    weight: torch.Tensor, mask: torch.Tensor | Scored, *, out: torch.Tensor | None = None, impl: str = "auto"
) -> torch.Tensor:
    """Compute the weight where its mask keeps it, else exactly 0, in one pass over memory.

    Args:
        weight: (..., rows, columns), with scores any shape, float; it gets no gradient.
        mask: bits, uint8 (..., rows, ceil(columns / 8)) of :func:`pack_mask`; or (scores, cut), scores float32 of the
            weight's shape and a :class:`Cut` or a number: kept are |score| > number, and ties as the cut says.
            Scores get the straight-through gradient of |score|: grad * weight * sign (Ramanujan et al. 2020).
        out: tensor of the weight's shape and dtype, with any strides, to write to and return. Nothing then gets a
            gradient.
        impl: "auto", "reference", "cpu" or "triton".

    Returns a tensor of the weight's shape and dtype. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    made = pruned_weight(weight, mask, out=out, impl=impl)
    if out is not None or isinstance(mask, torch.Tensor) or not followed(mask[0]):
        return made
    return straight_through(weight, mask[0], made, impl=impl)


def pruned_weight(
    weight: torch.Tensor, mask: torch.Tensor | Scored, *, out: torch.Tensor | None = None, impl: str = "auto"
) -> torch.Tensor:
    """Compute :func:`masked_weight` without gradients. Arguments and errors are the same."""
    mask = check_mask(weight, mask)
    if out is not None and (out.shape != weight.shape or out.dtype != weight.dtype or out.device != weight.device):
        _refuse_out(weight, out)
    return _MASKED_WEIGHT.choose(impl, weight)(weight, mask, out)


# ---------------------------------------------------------------- checks


def check_mask(weight: torch.Tensor, mask: torch.Tensor | Scored, name: str = "mask") -> torch.Tensor | Scored:
    """Return the mask, with its cut as a :class:`Cut`. Raises ValueError unless it fits the weight."""
    if not weight.is_floating_point():
        check_floats(weight=weight)
    if isinstance(mask, torch.Tensor):
        if weight.dim() < 2:
            raise ValueError(f"weight of shape {tuple(weight.shape)}: must be (rows, columns)")
        check_bits(mask, weight.shape[-1], name)
        if mask.shape[:-1] != weight.shape[:-1]:
            raise ValueError(f"{name}: bits of {tuple(mask.shape[:-1])} rows, must be of {tuple(weight.shape[:-1])}")
        check_device(weight=weight, **{name: mask})
        return mask
    scores, cut = mask
    if scores.dtype != torch.float32 or scores.shape != weight.shape:
        refuse_scores(weight, scores)
    if scores.device != weight.device:
        check_device(weight=weight, scores=scores)
    return scores, as_cut(cut)


def _refuse_out(weight: torch.Tensor, out: torch.Tensor) -> None:
    check_floats(weight=weight, out=out)
    raise ValueError(f"out {tuple(out.shape)}: must be {tuple(weight.shape)} as weight is")
