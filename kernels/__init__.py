"""Kernels for attention under masks: one public function each, with several implementations.

    y = slth.kernels.masked_linear(x, weight, bits, impl="triton")

impl is "reference" (plain torch, any device, the oracle of the tests), "cpu" (numba's or torch's own fast operations,
where a kernel has any), "triton" (an error where Triton cannot do the call) or "auto", the default:
`slth.kernels.dispatch` chooses. :func:`use` says what "auto" stands for, for a while or from now on; :func:`counted`
counts what calls took. Triton is imported by the first call that needs it: without Triton or a GPU all else works.
"""

from .attention import attention, masked_mha, merged_attention
from .attention.masks import BlockMask
from .bits import pack_mask, unpack_mask
from .cut import Cut
from .dispatch import counted, use
from .factors import Factors
from .grouped import Cuts, Segment, Table
from .masked_linear import masked_linear
from .masked_weight import masked_weight, pruned_weight, score_gradient, straight_through
from .mhla import mhla
from .seeded import seeded_linear, seeded_weight
from .select import Selector, select_threshold

Threshold = Cut  # its former name

__all__ = [
    "BlockMask",
    "Cut",
    "Cuts",
    "Factors",
    "Segment",
    "Selector",
    "Table",
    "Threshold",
    "attention",
    "counted",
    "masked_linear",
    "masked_mha",
    "masked_weight",
    "merged_attention",
    "mhla",
    "pack_mask",
    "pruned_weight",
    "score_gradient",
    "seeded_linear",
    "seeded_weight",
    "select_threshold",
    "straight_through",
    "unpack_mask",
    "use",
]
