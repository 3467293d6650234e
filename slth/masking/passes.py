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
    scores: Stamp
    weight: Stamp


#: Where groups are cut, as several passes may share it.
Cuts = dict["Group", _Held]


class Pass:
    """What one forward pass has cut, and the masked weights it has made; `weights` are its masks by parameter name."""

    def __init__(self, weights: Mapping[str, Masked], cuts: Cuts | None = None) -> None:
        self.weights = weights
        self.cuts: Cuts = {} if cuts is None else cuts
        self._made: dict[tuple[Masked, bool, bool, Hooks | None], _Made] = {}

    def cut(self, group: Group, reader: Masked | None = None) -> Cut:
        """Where a group is cut in this pass, anew where the reader's scores have changed.

        Raises ValueError for scores that hold NaN.
        """
        held = self.cuts.get(group)
        if held is None or (reader is not None and not held.stamps[reader.path].holds(reader.scores)):
            stamps = {path: Stamp.of(scores) for path, scores in group.held(self.weights)}
            held = self.cuts[group] = _Held(group.cut(self.weights), stamps)
        return held.cut

    def made(self, masked: Masked, weight: torch.Tensor) -> torch.Tensor:
        """The masked weight, made once for what it is made of. Raises ValueError for scores that hold NaN."""
        key = masked, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), saving()
        made = self._made.get(key)
        if made is None or not (made.scores.holds(masked.scores) and made.weight.holds(weight)):
            stamps = Stamp.of(masked.scores), Stamp.of(weight)
            with within(self):
                made = self._made[key] = _Made(masked.gate(masked, weight), *stamps)
        return made.value

    def holds(self, masked: Masked) -> bool:
        """Whether this mask, and no copy or replica of it, is one of the pass."""
        return self.weights.get(masked.path) is masked


class _Entry(NamedTuple):
    span: Pass
    module: nn.Module | None  # whose call it is
    frame: FrameType | None  # of that call


class _Thread(threading.local):
    def __init__(self) -> None:
        self.open: list[_Entry] = []
        self.again: dict[tuple[int, Hooks, int], Pass] = {}  # of layers that a backward pass computes again
        self.cuts: dict[tuple[int, int], Cuts] = {}  # that a backward pass shares


_thread = _Thread()


def enter(span: Pass, module: nn.Module, frame: FrameType) -> None:
    """Begin a pass, or a part of one, for as long as a module's call runs in this frame."""
    _prune()
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
    task, hooks = torch._C._current_graph_task_id(), saving()
    if task == -1 or hooks is None:
        return None
    again, key = _thread.again, (task, hooks, id(masked.wrapped))
    if key not in again:
        if any(others[:2] != key[:2] for others in again):
            again.clear()
        again[key] = begin()
        torch.autograd.Variable._execution_engine.queue_callback(again.clear)
    return again[key]


def cuts_of_backward(owner: int) -> Cuts:
    """Cuts that the backward pass of this moment shares, for the owner of that id; outside of one nobody's."""
    task = torch._C._current_graph_task_id()
    if task == -1:
        _thread.cuts.clear()  # of a backward pass that was broken off
        return {}
    cuts, key = _thread.cuts, (task, owner)
    if key not in cuts:
        cuts[key] = {}
        torch.autograd.Variable._execution_engine.queue_callback(lambda: cuts.__delitem__(key))
    return cuts[key]


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
