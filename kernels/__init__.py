"""Kernels for attention under masks: one public function each, a plain-torch reference and a Triton form of it.

    y = slth.kernels.masked_linear(x, weight, bits, impl="triton")

impl is "reference" (plain torch, any device, the oracle of the tests), "triton" (an error where Triton cannot do the
call) or "auto", the default: Triton on a GPU where it can, else the reference; which it took is logged under
"slth.kernels". :func:`use` says what "auto" stands for, for a while or from now on. Triton is imported by the first
call that needs it: without Triton or a GPU all else works.
"""

from .bits import pack_mask, unpack_mask
from .calls import (
    attention,
    masked_linear,
    masked_mha,
    masked_weight,
    merged_attention,
    mhla,
    mhla_unfit,
    score_gradient,
    seeded_linear,
    seeded_weight,
    select_threshold,
    too_wide,
)
from .choice import takes_triton, use
from .shapes import BlockMask, Threshold

__all__ = [
    "BlockMask",
    "Threshold",
    "attention",
    "masked_linear",
    "masked_mha",
    "masked_weight",
    "merged_attention",
    "mhla",
    "mhla_unfit",
    "pack_mask",
    "score_gradient",
    "seeded_linear",
    "seeded_weight",
    "select_threshold",
    "takes_triton",
    "too_wide",
    "unpack_mask",
    "use",
]
