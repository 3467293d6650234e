"""What the kernels are given beside tensors: masks by threshold and by blocks, and the checks that all share."""

from __future__ import annotations

from typing import NamedTuple

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Threshold(NamedTuple):
    """Where scores are cut: kept are |score| > value, and |score| == value at a row-major index <= last_tie.

    value: float32 without axes, last_tie: int64 without axes (-1: no ties are kept), on the scores' device.
    """

    value: torch.Tensor
    last_tie: torch.Tensor


class BlockMask(NamedTuple):
    """An attention mask in square blocks: query i attends to key j where blocks[..., i // size, j // size].

    blocks: bool (..., ceil(T / size), ceil(S / size)), broadcastable over batch and heads; size: a power of two >= 16.
    """

    blocks: torch.Tensor
    size: int

    def dense(self, queries: int, keys: int) -> torch.Tensor:
        """The mask entry by entry: bool (..., queries, keys)."""
        rows = self.blocks.repeat_interleave(self.size, dim=-2)[..., :queries, :]
        return rows.repeat_interleave(self.size, dim=-1)[..., :keys]


def is_of_pairs(mask: torch.Tensor) -> bool:
    """Whether a mask has a row for each of several queries. With one for all it is a mask of keys."""
    return mask.dim() > 1 and mask.shape[-2] > 1


def check_attending(mask: torch.Tensor, queries: int, keys: int) -> None:
    """Raise ValueError where a query attends to nothing, unless its token is padding: to which no query attends.

    mask: bool, of pairs, (..., queries, keys or 1), the causal mask in it where there is one; the queries are the last
    of the keys.
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


#: (scores float32 of the weight's shape, the threshold: a Threshold, a number or a float32 tensor without axes)
Scored = tuple[torch.Tensor, Threshold | torch.Tensor | float]


def as_threshold(given: Threshold | torch.Tensor | float, device: torch.device) -> Threshold:
    """A threshold as two tensors on a device; without ties where none are given."""
    if isinstance(given, Threshold):
        return given
    if isinstance(given, torch.Tensor):
        value = given.to(device, torch.float32)
        if value.dim():
            raise ValueError(f"threshold of shape {tuple(value.shape)}: must have no axes")
    else:  # filled there, for a copy from the host would be waited for
        value = torch.full((), given, dtype=torch.float32, device=device)
    return Threshold(value, torch.full((), -1, dtype=torch.int64, device=device))


def check_floats(**tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless all are of one dtype, float32, float16 or bfloat16 (float64 too), and on one device."""
    given = {name: t for name, t in tensors.items() if t is not None}
    (first, base), *rest = given.items()
    if base.dtype not in (*FLOATS, torch.float64):
        allowed = ", ".join(str(d) for d in FLOATS)
        raise ValueError(f"{first} of dtype {base.dtype}: must be one of {allowed} (float64: the reference alone)")
    for name, t in rest:
        if t.dtype != base.dtype:
            raise ValueError(f"{name} of dtype {t.dtype}: must be {base.dtype} as {first} is")
        check_device(**{first: base, name: t})


def placed(device: torch.device | str) -> torch.device:
    """The device as its tensors name it, so that devices can be compared: "cuda" with the index of the current one."""
    return torch.empty(0, device=device).device


def check_device(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all are on one device."""
    (first, base), *rest = tensors.items()
    for name, t in rest:
        if t.device != base.device:
            raise ValueError(f"{name} on {t.device}: must be on {base.device} as {first} is")
