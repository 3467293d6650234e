"""Masks as bits: eight entries of a row per byte, the lowest bit first, rows padded with zeros to whole bytes."""

from __future__ import annotations

import torch


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """Pack bool (..., columns) into uint8 (..., ceil(columns / 8)). Raises ValueError for another dtype."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask of dtype {mask.dtype}: must be torch.bool")
    missing = -mask.shape[-1] % 8
    whole = torch.nn.functional.pad(mask, (0, missing)) if missing else mask
    octets = whole.unflatten(-1, (whole.shape[-1] // 8, 8)).to(torch.uint8)
    packed: torch.Tensor = (octets << _shifts(mask.device)).sum(-1, dtype=torch.uint8)
    return packed


def unpack_mask(bits: torch.Tensor, columns: int) -> torch.Tensor:
    """Unpack uint8 (..., ceil(columns / 8)) to bool (..., columns). Raises ValueError for another length or dtype."""
    check_bits(bits, columns)
    mask = (bits.unsqueeze(-1) >> _shifts(bits.device)) & 1
    return mask.flatten(-2)[..., :columns].bool()


def check_bits(bits: torch.Tensor, columns: int, name: str = "bits") -> None:
    """Raise ValueError unless bits are packed rows of this many columns."""
    wanted = -(-columns // 8)
    if bits.dtype != torch.uint8 or bits.dim() < 1 or bits.shape[-1] != wanted:
        raise ValueError(
            f"{name}: {bits.dtype} {tuple(bits.shape)}, must be torch.uint8 (..., {wanted}) for {columns} columns"
        )


def in_words(bits: torch.Tensor) -> bool:
    """Tell whether all rows of bits begin and end at 32-bit words, so that they can be read as words."""
    starts = (bits.storage_offset(), bits.data_ptr(), *bits.stride()[:-1])
    return bits.shape[-1] % 4 == 0 and bits.stride(-1) == 1 and all(start % 4 == 0 for start in starts)


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
