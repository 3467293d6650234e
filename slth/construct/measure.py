"""Measure the output error of a pruned attention on given inputs of any length, in bounded memory."""

from __future__ import annotations

import torch

from slth.construct.certificates import Merged

_BLOCK = 1 << 18  # attention weights in memory at a time: 2 MiB of float64, which fit a core's cache


@torch.no_grad()
def outputs(x: torch.Tensor, merged: Merged) -> torch.Tensor:
    """Compute unmasked attention from merged matrices, in blocks of queries: x (N, T, d_in) -> (N, T, d_out).

    merged: (qk (heads, d_in, d_in), vo (heads, d_in, d_out)). It computes the same function as
    `slth.attention.merged_attention`, and is several times faster than torch's fused kernel for long inputs of few
    coordinates in float64.
    """
    qk, vo = merged
    count, length, _ = x.shape
    out = x.new_zeros(count, length, vo.shape[-1])
    rows = max(1, _BLOCK // length)  # queries at a time
    samples = max(1, rows // length)
    for first in range(0, count, samples):
        xs = x[first : first + samples]
        for qk_h, vo_h in zip(qk, vo, strict=True):
            queries, keys, values = xs @ qk_h, xs.mT, xs @ vo_h
            for start in range(0, length, rows):
                block = slice(start, start + rows)
                weights = torch.softmax(queries[:, block] @ keys, dim=-1)  # (samples, rows, T)
                out[first : first + samples, block] += weights @ values
    return out


@torch.no_grad()
def output_errors(wanted: torch.Tensor, merged: Merged, x: torch.Tensor) -> torch.Tensor:
    """Compute max_i |Attn(x_i) - wanted_i|_2 for each sample: wanted (N, T, d_out), x (N, T, d_in) -> (N,)."""
    errors: torch.Tensor = torch.linalg.vector_norm(outputs(x, merged) - wanted, dim=-1).amax(-1)
    return errors
