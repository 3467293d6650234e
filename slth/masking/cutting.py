"""The cut of a group as one operation of torch's, for graphs and transforms that follow operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._compile import _disable_dynamo  # torch.compiler.disable that imports torch._dynamo at the first call

from slth.kernels import Cut, Selector
from slth.masking.masks import count_kept

_MOST = 4096
_idle: dict[int, Selector] = {}  # by where the first scores lie on the CPU: they begin where they have ended last


def traced_cut(scores: Sequence[torch.Tensor], keep: torch.Tensor) -> Cut:
    """The cut of a group's scores, as `slth.kernels.Selector` finds it, in an operation that becomes part of a graph.

    keep: float64 (1,), on the CPU, so that a graph outlives it. The graph raises ValueError for NaN on the CPU;
    on another device it may pass unnoticed.
    """
    return Cut(*_cut([s.detach() for s in scores], keep))


@torch.library.custom_op(
    "slth::cut",
    mutates_args=(),
    schema="(Tensor[] scores, Tensor keep) -> (Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),
)
@_disable_dynamo
def _cut(scores: list[torch.Tensor], keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Threshold, float32, and last tie, int64, both without axes, on the scores' device."""
    device, address = scores[0].device, scores[0].data_ptr()
    selector = (_idle.pop(address, None) if device.type == "cpu" else None) or Selector()
    cut = selector.cut(scores, count_kept(sum(s.numel() for s in scores), float(keep)))
    if isinstance(cut.value, torch.Tensor):
        value, last_tie = cut.tensors(device)
        return value.clone(), last_tie.clone()
    if device.type == "cpu":
        if len(_idle) >= _MOST:
            _idle.clear()
        _idle[address] = selector
    return cut.tensors(device)


@_cut.register_fake
def _(scores: list[torch.Tensor], keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return scores[0].new_empty((), dtype=torch.float32), scores[0].new_empty((), dtype=torch.int64)


@_cut.register_vmap
def _(info: Any, in_dims: Any, scores: list[torch.Tensor], keep: torch.Tensor) -> tuple[Any, Any]:
    """Several sets of scores, each cut by itself."""
    dims, of_keep = in_dims
    cuts = [
        _cut(
            [s if dim is None else s.select(dim, i) for s, dim in zip(scores, dims, strict=True)],
            keep if of_keep is None else keep.select(of_keep, i),
        )
        for i in range(info.batch_size)
    ]
    return tuple(torch.stack(column) for column in zip(*cuts, strict=True)), (0, 0)
