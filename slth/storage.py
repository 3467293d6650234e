"""Find parameters that share memory without being one parameter: writing to one changes the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from itertools import combinations

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def check(module: nn.Module, paths: Collection[str]) -> None:
    """Raise ValueError if a parameter named in `paths` shares memory with another parameter or buffer."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    by_storage = defaultdict(list)
    for path, tensor in tensors.items():
        if _has_memory(tensor):
            by_storage[tensor.device, tensor.untyped_storage().data_ptr()].append(path)
    for together in by_storage.values():
        for one, other in combinations(together, 2):
            if (one in paths or other in paths) and _overlap(tensors[one], tensors[other]):
                raise ValueError(
                    f"{other} and {one} share memory but are not one tensor: must be tied as one parameter "
                    f"(layer.weight = other.weight), or be two (layer.weight.data = layer.weight.data.clone())"
                )


def _has_memory(tensor: torch.Tensor) -> bool:
    odd = tensor.is_meta or tensor.layout != torch.strided or is_traceable_wrapper_subclass(tensor)
    return not odd and not nn.parameter.is_lazy(tensor) and tensor.numel() > 0


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors in the same storage overlap."""
    spans = [_span(tensor) for tensor in (one, other)]
    if spans[0][1] <= spans[1][0] or spans[1][1] <= spans[0][0]:
        return False
    if one.dtype != other.dtype:
        return True
    touched = torch.zeros(one.untyped_storage().nbytes() // one.itemsize, dtype=torch.bool)
    touched.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(touched.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The range [first, last + 1) of a tensor's bytes within its storage."""
    last = sum(int(stride) * (int(size) - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    first = int(tensor.storage_offset())
    return first * tensor.itemsize, (first + last + 1) * tensor.itemsize
