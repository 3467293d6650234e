"""Spans for which masks are cut once: forward passes, each with masked weights of its own.

Nothing is kept from one pass to the next, so that a mask is never older than the pass that reads it, however the scores
were written. Within a pass a mask follows its scores where torch counts the writing, or where they are others, as those
that `torch.func.functional_call` puts in. Passes that overlap share nothing: those of several threads, of
DataParallel's replicas, and of a module that is called within its own forward.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from slth.kernels import Cut
    from slth.masking.groups import Group
    from slth.masking.masked import Masked


#: What autograd calls to pack and unpack each tensor that it saves.
Hooks = tuple[Callable[..., Any], Callable[..., Any]]


class Stamp(NamedTuple):
    """Which tensor one is, and how often it was written as far as torch counts."""

    tensor: torch.Tensor
    version: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Stamp:
        """The stamp of a tensor as it is now."""
        return cls(tensor, -1 if tensor.is_inference() else tensor._version)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether it is this tensor, not written since."""
        return tensor is self.tensor and (tensor.is_inference() or tensor._version == self.version)


class _Held(NamedTuple):
    cut: Cut
    stamps: dict[str, Stamp]  # of the scores that were cut, by parameter name


class _Made(NamedTuple):
    value: torch.Tensor
    stamps: list[Stamp]  # of what it is made of


#: Where groups are cut at shares of what they keep, as several passes may share it.
Cuts = dict[tuple["Group", float], _Held]


class Pass:
    """What one forward pass has cut, and the masked weights it has made; `weights` are its masks by parameter name."""

    def __init__(self, weights: Mapping[str, Masked], cuts: Cuts | None = None) -> None:
        self.weights = weights
        self.cuts: Cuts = {} if cuts is None else cuts
        self._made: dict[tuple[Masked, bool, bool, Hooks | None], _Made] = {}

    def cut(self, group: Group, reader: Masked | None = None, share: float = 1.0) -> Cut:
        """Where a group is cut in this pass at a share of what it keeps, anew where the reader's scores have changed.

        Raises ValueError for scores that hold NaN.
        """
        held = self.cuts.get((group, share))
        if held is None or (reader is not None and not held.stamps[reader.path].holds(reader.scores)):
            stamps = {path: Stamp.of(scores) for path, scores in group.held(self.weights)}
            held = self.cuts[group, share] = _Held(group.cut(self.weights, share), stamps)
        return held.cut

    def made(self, masked: Masked, weight: torch.Tensor) -> torch.Tensor:
        """The masked weight, made once for what it is made of. Raises ValueError for scores that hold NaN."""
        key = masked, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), saving()
        made, sources = self._made.get(key), [weight, *masked.trained]
        if made is None or not all(stamp.holds(source) for stamp, source in zip(made.stamps, sources, strict=True)):
            stamps = [Stamp.of(source) for source in sources]
            with within(self):
                made = self._made[key] = _Made(masked.gate(masked, weight), stamps)
        return made.value

    def holds(self, masked: Masked) -> bool:
        """Whether this mask, and no copy or replica of it, is one of the pass."""
        return self.weights.get(masked.path) is masked


class _Entry(NamedTuple):
    span: Pass
    module: nn.Module | None  # whose call it is
    frame: FrameType | None  # of that call


class _Backward:
    """What layers share that a backward pass computes again, by owner: cuts, and passes of one stretch of layers."""

    def __init__(self) -> None:
        self.cuts: dict[int, Cuts] = {}
        self.passes: dict[int, Pass] = {}
        self.stretch: Hooks | None = None


class _Thread(threading.local):
    def __init__(self) -> None:
        self.open: list[_Entry] = []
        self.backward: dict[int, _Backward] = {}  # by torch's number of the backward pass


_thread = _Thread()


def enter(span: Pass, module: nn.Module, frame: FrameType) -> None:
    """Begin a pass for as long as a module's call runs in this frame."""
    _prune()
    join(span, module, frame)


def join(span: Pass, module: nn.Module, frame: FrameType) -> None:
    """Enter a pass that :func:`running` returned. Closed passes are already removed."""
    _thread.open.append(_Entry(span, module, frame))


def leave(module: nn.Module) -> None:
    """End what the last call of the module has begun."""
    for i in reversed(range(len(_thread.open))):
        if _thread.open[i].module is module:
            del _thread.open[i:]
            return


@contextmanager
def within(span: Pass) -> Iterator[Pass]:
    """Make this the pass of the block."""
    _prune()
    depth = len(_thread.open)
    _thread.open.append(_Entry(span, None, None))
    try:
        yield span
    finally:
        del _thread.open[depth:]


def running(masked: Masked) -> Pass | None:
    """The innermost pass of this thread that the mask belongs to."""
    _prune()
    return next((entry.span for entry in reversed(_thread.open) if entry.span.holds(masked)), None)


def saving() -> Hooks | None:
    """The hooks for saved tensors that hold now: activation checkpointing has its own for each stretch of layers.

    Masked weights are shared within one such stretch alone, since what it saves must be the same when it is computed
    again.
    """
    hooks: Hooks | None = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks


def recomputed(masked: Masked, begin: Callable[[], Pass]) -> Pass | None:
    """The pass of the layers that checkpointing computes again in a backward pass of this moment, else None.

    It begins at their first read and is dropped at the next stretch of layers, or with the backward pass.
    """
    backward, hooks = _backward(), saving()
    if backward is None or hooks is None:
        return None
    if backward.stretch != hooks:
        backward.passes.clear()
        backward.stretch = hooks
    owner = id(masked.wrapped)
    if owner not in backward.passes:
        backward.passes[owner] = begin()
    return backward.passes[owner]


def cuts_of_backward(owner: int) -> Cuts:
    """Cuts that the backward pass of this moment shares, for the owner of that id; outside of one nobody's."""
    backward = _backward()
    return {} if backward is None else backward.cuts.setdefault(owner, {})


def _backward() -> _Backward | None:
    """What is shared within the backward pass of this moment, and dropped with it; None outside of one."""
    task, held = torch._C._current_graph_task_id(), _thread.backward
    if task == -1:
        held.clear()  # of a backward pass that was broken off
        return None
    if task not in held:
        held[task] = _Backward()
        torch.autograd.Variable._execution_engine.queue_callback(partial(_drop, held, task))
    return held[task]


def _drop(held: dict[int, _Backward], task: int) -> None:
    held.pop(task, None)


def _prune() -> None:
    """Drop what an interrupt has left open: where the innermost call runs, so do those around it."""
    while _thread.open and not _runs(_thread.open[-1].frame):
        del _thread.open[-1]


def _runs(wanted: FrameType | None) -> bool:
    """Whether a call is still under way in this thread: no hook of torch's hears of an interrupt."""
    frame = sys._getframe(1) if wanted is not None else None
    while frame is not None and frame is not wanted:
        frame = frame.f_back
    return frame is wanted


def _prune_at_collection(phase: str, info: Mapping[str, int]) -> None:
    """Let `gc.collect()` free what an interrupt has left open in the thread that calls it."""
    if phase == "start" and info["generation"] == 2:
        _prune()


gc.callbacks.append(_prune_at_collection)
