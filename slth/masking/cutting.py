"""The cut of a group as one custom torch operation, for compiled graphs and transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._compile import _disable_dynamo  # torch.compiler.disable that imports torch._dynamo at the first call

from slth.kernels import Cut, Selector
from slth.masking.masks import count_kept

_MOST = 4096
_idle: dict[int, Selector] = {}  # by address of the first scores on the CPU: a selector starts from its last result


def traced_cut(scores: Sequence[torch.Tensor], keep: torch.Tensor) -> Cut:
    """Cut a group's scores as `slth.kernels.Selector` does, by an operation that can be part of a compiled graph.

    keep: float64 (1,) on the CPU, a tensor so that a graph remains valid when it changes. The graph raises ValueError
    for NaN scores on the CPU; on other devices NaN may go unnoticed.
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
    """The threshold (float32) and the last tie (int64), scalar tensors on the scores' device."""
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
    """Cut several sets of scores, each by itself."""
    dims, of_keep = in_dims
    cuts = [
        _cut(
            [s if dim is None else s.select(dim, i) for s, dim in zip(scores, dims, strict=True)],
            keep if of_keep is None else keep.select(of_keep, i),
        )
        for i in range(info.batch_size)
    ]
    return tuple(torch.stack(column) for column in zip(*cuts, strict=True)), (0, 0)
