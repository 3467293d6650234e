"""Float32 CPU tensors as evenly spaced rows of one length, for numba loops."""

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
INFINITY = 0x7F800000  # larger bits are NaN
ALONE = 1 << 20  # most entries for which one thread is as fast as several
PART = 1 << 18  # least entries per thread

_PLAIN = (torch.Tensor, nn.Parameter)  # classes whose tensors have their own memory, unlike wrappers of others


class Rows(NamedTuple):
    """Tensors of one shape as (address, stride): entry (r, c) is at address + 4 * (r * stride + c)."""

    tensors: list[tuple[int, int]]
    columns: int
    size: int


def rows_of(*tensors: torch.Tensor) -> Rows | None:
    """View tensors of one shape as rows; None if numba cannot read their device, dtype, class or layout.

    The caller must keep the tensors alive while it uses the result.
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
    """Make rows of (address, stride) pairs; None for zero tensors without memory."""
    return Rows(places, columns, size) if size == 0 or all(address for address, _ in places) else None


def bits_of(magnitude: float) -> int:
    """Return the bits of a float32 magnitude as an integer; integers compare as the magnitudes do."""
    return int(np.float32(magnitude).view(np.int32)) & MAGNITUDE


def shared(work: Callable[[int, int], object], count: int) -> None:
    """Call work(start, stop) over range(count), with up to torch's number of threads if count is large enough."""
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
        """Convert an address to a pointer, for carray."""

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), code  # type: ignore[no-untyped-call]

    return pointer


int32_at, float32_at = _pointer_to(types.int32), _pointer_to(types.float32)
