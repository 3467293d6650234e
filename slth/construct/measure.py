"""How far a pruned attention is from its target on given inputs, at any length, in bounded memory."""

from __future__ import annotations

import torch

from slth.construct.certificates import Merged

_BLOCK = 1 << 18  # attention weights held at a time: 2 MiB of float64, which a core's cache can keep


@torch.no_grad()
def outputs(x: torch.Tensor, merged: Merged) -> torch.Tensor:
    """Unmasked attention by merged matrices, queries in blocks: x (N, T, d_in) -> (N, T, d_out).

    merged: (qk (heads, d_in, d_in), vo (heads, d_in, d_out)). Same function as `slth.attention.merged_attention`; made
    for long inputs of few coordinates in float64, where it is several times faster than the fused kernel of torch.
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
    """max over positions of |Attn(x_i) - wanted_i|_2 for each sample: wanted (N, T, d_out), x (N, T, d_in) -> (N,)."""
    errors: torch.Tensor = torch.linalg.vector_norm(outputs(x, merged) - wanted, dim=-1).amax(-1)
    return errors
