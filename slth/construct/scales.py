"""Recorded scales, for targets whose entries are not of the size that the theory assumes (at most 1).

A trained layer may have merged matrices with entries far above or far below 1. A construction then approximates
W / scale, and the source multiplies its product by the scale: one float per source matrix, which the ticket stores.
"""

from __future__ import annotations

import numpy as np
import torch

from slth.attention import MultiHeadAttention
from slth.construct.checks import check_attention, check_kind
from slth.construct.factors import Side, reach
from slth.construct.multi_head import check_pair
from slth.construct.relu import check as check_feed_forward
from slth.construct.relu import relu_reach
from slth.construct.subset_sum import FloatArray
from slth.models.transformer import FeedForward, Product

MARGIN = 0.75  # share of its reach that an entry should use: near the edge there are few subsets
GAIN = 0.7  # a doubling, which doubles the errors of sums, must reduce the excess beyond MARGIN to this share
DOUBLINGS = 2


def scale_for(target: FloatArray, low: FloatArray, high: FloatArray) -> float:
    """Choose a power of two, which divides without rounding, so that target / scale lies well within [low, high].

    target, low and high have the same shape, with low <= 0 <= high the reach of each entry. The scale starts at the
    least for which every |target| / scale is at most 1/2. It is doubled, at most twice, while this reduces the excess
    beyond 3/4 of the reach, summed over all entries, by about a third. So a few entries with hardly any candidates of
    their sign may stay unreachable, rather than increase the errors of all others. The scale is 1 for a target of
    zeros. Raises ValueError for a target that is not finite.
    """
    if not np.isfinite(target).all():
        raise ValueError("target holds NaN or infinite values: all must be finite")
    size = np.abs(target)
    if not size.any():
        return 1.0
    fraction, exponent = np.frexp(size.max())
    base = np.ldexp(1.0, int(exponent) + int(fraction > 0.5))  # >= 2 max |target|
    room = MARGIN * np.where(target > 0, high, -low)
    size, room = size[room > 0] / base, room[room > 0]
    beyond = [np.maximum(size - 2.0**k * room, 0.0).sum() for k in range(DOUBLINGS + 1)]
    doublings = 0
    while doublings < DOUBLINGS and beyond[doublings + 1] < GAIN * beyond[doublings]:
        doublings += 1
    return float(base * 2.0**doublings)


def _double(tensor: torch.Tensor) -> FloatArray:
    return np.asarray(tensor.detach().to("cpu", torch.float64).numpy())


def _recorded(name: str, scales: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Convert scales to the source's dtype. Raises ValueError for scales that the dtype cannot hold."""
    stored = scales.to(buffer)
    if not (stored.isfinite() & (stored != 0)).all():
        held = f"{buffer.dtype} cannot hold it; source.double() can"
        raise ValueError(f"{name}={scales.tolist()}: {held if scales.isfinite().all() else 'the target is too large'}")
    return stored


@torch.no_grad()
def record_attention_scales(target: MultiHeadAttention, source: MultiHeadAttention, side: Side = "input") -> None:
    """Fit source.scale_qk and source.scale_vo (heads,) to the target's merged matrices, in place.

    side: the side of W_V W_O that the construction will use. Raises before any change: as `slth.construct.attention`
    does, and ValueError for scales that the source's dtype cannot hold.
    """
    check_attention("target", target)
    check_kind("source", source, MultiHeadAttention, "a slth.attention.MultiHeadAttention")
    qk, vo = check_pair(target, source)
    unit = source.hidden_qk**-0.5  # turns the theory init's products, of up to sqrt(n_K), into products of U[-1, 1]
    low, high = reach(_double(source.query), _double(source.key.mT))
    by_head = _per_head(_double(qk), low * unit, high * unit)
    scale_qk = _recorded("scale_qk", by_head, source.scale_qk)
    by_head = _per_head(_double(vo), *reach(_double(source.value), _double(source.output), side=side))
    source.scale_vo.copy_(_recorded("scale_vo", by_head, source.scale_vo))
    source.scale_qk.copy_(scale_qk)


def _per_head(target: FloatArray, low: FloatArray, high: FloatArray) -> torch.Tensor:
    return torch.tensor([scale_for(*head) for head in zip(target, low, high, strict=True)], dtype=torch.float64)


@torch.no_grad()
def record_feed_forward_scales(target: FeedForward, source: FeedForward) -> None:
    """Fit the scale of the second layer of each pair of source layers to the target's layer, in place.

    Raises before any change: as :func:`slth.construct.feed_forward` does, and ValueError for scales that the source's
    dtype cannot hold.
    """
    check_feed_forward(target, source)
    found = []
    for i, layer in enumerate(target.layers):
        low, high = relu_reach(_double(source.layers[2 * i]), _double(source.layers[2 * i + 1]))
        wanted = _double(layer) * float(target.scales[i]) / float(source.scales[2 * i])
        scale = torch.tensor(scale_for(wanted, low, high), dtype=torch.float64)
        found.append(_recorded("scales", scale, source.scales))
    source.scales[1::2] = torch.stack(found)


@torch.no_grad()
def record_product_scale(target: torch.Tensor, source: Product, side: Side = "input") -> None:
    """Fit source.scale to a target matrix, in place; side: the side that the construction will use."""
    low, high = reach(_double(source.first), _double(source.second), side=side)
    scale = torch.tensor(scale_for(_double(target), low, high), dtype=torch.float64)
    source.scale.copy_(_recorded("scale", scale, source.scale))
