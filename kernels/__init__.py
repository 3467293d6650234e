"""Kernels for masked attention, each a public function with several implementations.

    y = slth.kernels.masked_linear(x, weight, bits, impl="triton")

impl is "reference" (plain torch, any device, the oracle of the tests), "cpu" (fast operations of numba or torch, if a
kernel has any), "triton" (an error if Triton cannot do the call) or "auto", the default, for which
`slth.kernels.dispatch` chooses. :func:`use` sets what "auto" stands for, permanently or within a with block;
:func:`counted` counts the implementations that calls used. Triton is imported on its first use, so everything else
works without Triton or a GPU.
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
