"""Caches of past tokens for decoding."""

from __future__ import annotations

from typing import Protocol

import torch


class Cache(Protocol):
    """The cache of any mechanism."""

    def bytes(self) -> int:
        """Return the memory of the cache in bytes."""
        ...


class KVCache:
    """A cache of past tokens: tensors (..., T, width) that grow along T."""

    def __init__(self) -> None:
        self.tensors: tuple[torch.Tensor, ...] = ()

    @property
    def length(self) -> int:
        """The number of tokens so far."""
        return self.tensors[0].shape[-2] if self.tensors else 0

    def append(self, new: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Append new tokens, (..., t, width) each, and return all tokens. Raises ValueError for another batch shape."""
        if not self.tensors:
            self.tensors = new
            return new
        for old, more in zip(self.tensors, new, strict=True):
            if old.shape[:-2] != more.shape[:-2]:
                raise ValueError(f"tokens of batch {tuple(more.shape[:-3])}: must be {tuple(old.shape[:-3])} as before")
        self.tensors = tuple(torch.cat(both, dim=-2) for both in zip(self.tensors, new, strict=True))
        return self.tensors

    def bytes(self) -> int:
        """Return the memory of all tensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)
