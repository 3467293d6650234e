"""Float32 tensors on the CPU as numba's loops read them: rows of one length, evenly spaced in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import nn

from slth.threads import in_parallel

MAGNITUDE = 0x7FFFFFFF  # the bits of a float32 without its sign
INFINITY = 0x7F800000  # beyond it lies NaN
ALONE = 1 << 20  # entries up to which one thread is as good as several
PART = 1 << 18  # what each of several takes at least

_PLAIN = (torch.Tensor, nn.Parameter)  # whose memory is what they say: not so of tensors that only stand for others


class Rows(NamedTuple):
    """Tensors of one shape: entry (r, c) of one that is (address, stride) lies at address + 4 * (r * stride + c)."""

    tensors: list[tuple[int, int]]
    columns: int
    size: int


def rows_of(*tensors: torch.Tensor) -> Rows | None:
    """Tensors of one shape as rows, or None where their device, dtype, kind or spacing is not for numba.

    The caller keeps the tensors alive while it works on them.
    """
    for t in tensors:
        if not t.is_cpu or t.dtype != torch.float32 or type(t) not in _PLAIN or t.is_neg():
            return None
    size = tensors[0].numel()
    if all(t.is_contiguous() for t in tensors):
        return _at([(t.data_ptr(), size) for t in tensors], size, size)
    try:
        flat = [t.detach().view(-1, t.shape[-1]) for t in tensors]
    except RuntimeError:  # rows that are not evenly spaced
        return None
    if any(t.stride(1) != 1 for t in flat):
        return None
    return _at([(t.data_ptr(), t.stride(0)) for t in flat], flat[0].shape[1], size)


def _at(places: list[tuple[int, int]], columns: int, size: int) -> Rows | None:
    """None for tensors of zeros that have no memory."""
    return Rows(places, columns, size) if size == 0 or all(address for address, _ in places) else None


def bits_of(magnitude: float) -> int:
    """The bits of a float32 without its sign, read as an integer: they compare as magnitudes do."""
    return int(np.float32(magnitude).view(np.int32)) & MAGNITUDE


def shared(work: Callable[[int, int], object], count: int) -> None:
    """Call work(start, stop) over range(count), by as many threads as torch may use where that is worth their while."""
    if count <= ALONE:
        if count:
            work(0, count)
        return

    def several(parts: slice) -> None:
        work(parts.start * PART, min(parts.stop * PART, count))

    in_parallel(several, -(-count // PART), torch.get_num_threads())


def _pointer_to(kind: Any) -> Any:
    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        """The address as a pointer, for carray."""

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), code  # type: ignore[no-untyped-call]

    return pointer


int32_at, float32_at = _pointer_to(types.int32), _pointer_to(types.float32)
