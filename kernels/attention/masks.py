"""Attention masks, bool by entry or in blocks, and the padding that they define."""

from __future__ import annotations

from typing import NamedTuple

import torch


class BlockMask(NamedTuple):
    """An attention mask in square blocks: query i attends to key j where blocks[..., i // size, j // size].

    blocks: bool (..., ceil(T / size), ceil(S / size)), broadcastable over batch and heads; size: a power of two >= 16.
    """

    blocks: torch.Tensor
    size: int

    def dense(self, queries: int, keys: int) -> torch.Tensor:
        """Expand the mask to entries: bool (..., queries, keys)."""
        rows = self.blocks.repeat_interleave(self.size, dim=-2)[..., :queries, :]
        return rows.repeat_interleave(self.size, dim=-1)[..., :keys]


def is_of_pairs(mask: torch.Tensor) -> bool:
    """Tell whether a mask has one row per query. With one row for all queries it is a mask of keys."""
    return mask.dim() > 1 and mask.shape[-2] > 1


def check_attending(mask: torch.Tensor, queries: int, keys: int) -> None:
    """Raise ValueError if a query has no key, unless its token is padding, that is no query attends to it.

    mask: bool (..., queries, keys or 1), already combined with the causal mask if there is one. The queries are the
    last of the keys.
    """
    blind = ~mask.any(-1)
    if not blind.any():
        return
    if queries <= keys:
        attended = mask.any(-2)
        blind = blind & attended.expand(*attended.shape[:-1], keys)[..., keys - queries :]
    if blind.any():
        row = tuple(int(i) for i in blind.nonzero()[0])
        raise ValueError(
            f"mask row {row} has no True: each query must attend to at least one key; "
            "padding is said by a mask of keys, (..., 1, keys), or by a row and a column without a True"
        )


def attended(
    mask: torch.Tensor | BlockMask | None, causal: bool, queries: int, keys: int, device: torch.device
) -> torch.Tensor | None:
    """Combine a mask with the causal one, by entry; queries are the last of the keys.

    Returns None if every query attends to every key.
    """
    mask = mask.dense(queries, keys) if isinstance(mask, BlockMask) else mask
    if not causal:
        return mask
    lower = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return lower if mask is None else mask & lower


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    missing = len(to) - len(shape)
    return missing >= 0 and all(size in (1, most) for size, most in zip(shape, to[missing:], strict=True))


def check_attended(
    mask: torch.Tensor | BlockMask | None,
    causal: bool,
    shape: tuple[int, ...],
    device: torch.device,
    padded: bool = False,
) -> None:
    """Raise ValueError unless the mask fits (..., heads, T, S) and each query has a key or is padding."""
    queries, keys = shape[-2:]
    if causal and queries > keys:
        raise ValueError(
            f"causal, {queries} queries of {keys} keys: the first attend to nothing, must be at most {keys}"
        )
    if mask is None:
        return
    if isinstance(mask, BlockMask):
        size = mask.size
        if size < 16 or size & (size - 1):
            raise ValueError(f"mask: blocks of size {size}, must be a power of two >= 16")
        shape = (*shape[:-2], -(-queries // size), -(-keys // size))
    given = mask.blocks if isinstance(mask, BlockMask) else mask
    if given.dtype != torch.bool:
        raise ValueError(f"mask of dtype {given.dtype}: must be torch.bool, True = attend")
    if given.device != device:
        raise ValueError(f"mask on {given.device}: must be on {device}")
    if not _broadcasts(given.shape, shape):
        raise ValueError(f"mask of shape {tuple(given.shape)}: must broadcast to {tuple(shape)}")
    if padded:
        return
    if isinstance(mask, BlockMask):
        _check_blocks(mask, causal, queries, keys)
    elif is_of_pairs(mask):
        joint = attended(mask, causal, queries, keys, device)
        check_attending(mask if joint is None else joint, queries, keys)


def _check_blocks(mask: BlockMask, causal: bool, queries: int, keys: int) -> None:
    """Raise ValueError if a query has no key; a mask in blocks does not define padding."""
    blocks, size = mask
    empty = ~(_first_query_blocks(blocks, size, queries, keys) if causal else blocks).any(-1)
    if empty.any():
        *row, last = (int(i) for i in empty.nonzero()[0])
        where = (*row, last * size if causal else last)
        raise ValueError(f"mask row {where} has no True: each query must attend to at least one key")


def _first_query_blocks(blocks: torch.Tensor, size: int, queries: int, keys: int) -> torch.Tensor:
    """Tell which blocks contain a key for the first query of each row of blocks, which has the fewest causal keys."""
    rows, columns = -(-queries // size), -(-keys // size)
    last = torch.arange(rows, device=blocks.device)[:, None] * size + (keys - queries)  # key of the first query
    return blocks & (torch.arange(columns, device=blocks.device) * size <= last)
