"""MHLA in linear time with torch's operations, on any device: compute summaries of blocks, and mix them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

PIECE = 1024  # tokens processed at a time, so that intermediate results fit the caches and memory is reused

Pieces = Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def mhla(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mixing: torch.Tensor, block: int, causal: bool, normalise: bool
) -> torch.Tensor:
    """Compute linear attention whose blocks of tokens are mixed by a matrix, with the reference's result."""
    length = q.shape[-2]
    blocks = -(-length // block)
    mixing = mixing[:blocks, :blocks].to(q.dtype)
    if normalise:
        v = pad(v, (0, 1), value=1.0)  # a column of ones, whose result is the sum of a token's weights
    size = max(1, PIECE // block) * block
    pieces = [
        (_in_blocks(a, block), _in_blocks(b, block), _in_blocks(c, block))
        for a, b, c in zip(q.split(size, -2), k.split(size, -2), v.split(size, -2), strict=True)
    ]
    sums = torch.cat(_causal(pieces, mixing) if causal else _bidirectional(pieces, mixing), dim=-3)
    sums = sums.flatten(-3, -2)[..., :length, :]  # (..., heads, T, width)
    if not normalise:
        return sums
    weights = sums[..., -1:]
    return sums[..., :-1] / torch.where(weights == 0, 1.0, weights)


def _bidirectional(pieces: Pieces, mixing: torch.Tensor) -> list[torch.Tensor]:
    """Return the sums of each piece, (..., heads, blocks, block, width)."""
    seen = _mixed(mixing, torch.cat([k.mT @ v for _, k, v in pieces], dim=-3))
    parts = seen.split([q.shape[-3] for q, _, _ in pieces], dim=-3)
    return [q @ part for (q, _, _), part in zip(pieces, parts, strict=True)]


def _causal(pieces: Pieces, mixing: torch.Tensor) -> list[torch.Tensor]:
    """Return the same with each token attending to tokens up to itself."""
    out: list[torch.Tensor] = []
    summaries: list[torch.Tensor] = []
    earlier, own, first = mixing.tril(-1), mixing.diagonal()[:, None, None], 0
    for q, k, v in pieces:
        summaries.append(k.mT @ v)
        last = first + q.shape[-3]
        seen = _mixed(earlier[first:last, :last], torch.cat(summaries, dim=-3))
        out.append(q @ seen + ((q @ k.mT).tril() * own[first:last]) @ v)
        first = last
    return out


def _mixed(mixing: torch.Tensor, summaries: torch.Tensor) -> torch.Tensor:
    """Mix summaries (..., blocks, n, width): one result for each row of the matrix."""
    mixed: torch.Tensor = (mixing @ summaries.flatten(-2)).unflatten(-1, summaries.shape[-2:])
    return mixed


def _in_blocks(tokens: torch.Tensor, block: int) -> torch.Tensor:
    """Reshape (..., T, width) to (..., blocks, block, width), with zeros after the last token."""
    missing = -tokens.shape[-2] % block
    whole = pad(tokens, (0, 0, 0, missing)) if missing else tokens
    blocks: torch.Tensor = whole.unflatten(-2, (whole.shape[-2] // block, block))
    return blocks
