"""Recorded scales: the way out for targets beyond the reach that the theory grants to entries of at most 1.

A trained layer may have merged matrices with entries far above 1, or far below. A construction then approximates
W / scale and the source multiplies its product by the scale: one float for each source matrix, part of the ticket.
"""

from __future__ import annotations

import numpy as np
import torch

from slth.attention import MultiHeadAttention
from slth.construct.feed_forward import relu_reach
from slth.construct.linear import Side, reach
from slth.construct.subset_sum import FloatArray
from slth.models.transformer import FeedForward, Product

LARGEST = 0.5  # of a target entry after scaling: well inside of what two dozen candidates can reach
MARGIN = 0.75  # share of its reach that an entry may take: towards the edge there are few subsets to choose from


def scale_for(target: FloatArray, low: FloatArray, high: FloatArray) -> float:
    """The least power of two for which every |target| / scale <= 1/2 and lies within 3/4 of its reach [low, high].

    target, low and high have one shape, low <= 0 <= high. 1 for a target of zeros. Where no scale brings an entry into
    reach (it has no candidate of its sign), that entry is left out of account. A power of two scales without rounding.
    """
    room = np.where(target > 0, high, -low)
    size = np.abs(target)
    matters = (size > 0) & (room > 0)
    if not matters.any():
        return 1.0
    needed = max(size.max() / LARGEST, (size[matters] / (MARGIN * room[matters])).max())
    return float(2.0 ** np.ceil(np.log2(needed)))


def _double(tensor: torch.Tensor) -> FloatArray:
    return np.asarray(tensor.detach().double().numpy())


@torch.no_grad()
def record_attention_scales(target: MultiHeadAttention, source: MultiHeadAttention, side: Side = "input") -> None:
    """Set source.scale_qk and source.scale_vo (heads,) in place to fit the target's merged matrices.

    side: that of the construction of W_V W_O that will follow.
    """
    qk, vo = target.merged()
    norm = source.hidden_qk**-0.5
    lows, highs = reach(_double(source.query), _double(source.key.mT))
    source.scale_qk.copy_(_per_head(_double(qk), lows * norm, highs * norm))
    source.scale_vo.copy_(_per_head(_double(vo), *reach(_double(source.value), _double(source.output), side=side)))


def _per_head(target: FloatArray, low: FloatArray, high: FloatArray) -> torch.Tensor:
    return torch.tensor([scale_for(*head) for head in zip(target, low, high, strict=True)], dtype=torch.float64)


@torch.no_grad()
def record_feed_forward_scales(target: FeedForward, source: FeedForward) -> None:
    """Set the scales of the second of each pair of source layers in place to fit the target's layers."""
    for i, layer in enumerate(target.layers):
        low, high = relu_reach(_double(source.layers[2 * i]), _double(source.layers[2 * i + 1]))
        source.scales[2 * i + 1] = scale_for(_double(layer * target.scales[i]), low, high)


@torch.no_grad()
def record_product_scale(target: torch.Tensor, source: Product, side: Side = "input") -> None:
    """Set source.scale in place to fit a target matrix; side: that of the construction that will follow."""
    low, high = reach(_double(source.first), _double(source.second), side=side)
    source.scale.fill_(scale_for(_double(target), low, high))
