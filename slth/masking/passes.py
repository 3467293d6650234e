"""Caches of masks and masked weights, one per forward pass.

Nothing is cached from one pass to the next, so that a mask is never older than the pass that reads it, however the
scores were written. Within a pass, a mask is recomputed if its scores were written (as far as torch's version counter
shows it) or replaced, as by `torch.func.functional_call`. Overlapping passes share nothing: those of several threads,
of DataParallel's replicas, and of a module that is called within its own forward.
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


#: The hooks with which autograd packs and unpacks each saved tensor.
Hooks = tuple[Callable[..., Any], Callable[..., Any]]


class Stamp(NamedTuple):
    """A tensor and its version, torch's count of in-place writes."""

    tensor: torch.Tensor
    version: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Stamp:
        """Return the stamp of a tensor as it is now."""
        return cls(tensor, -1 if tensor.is_inference() else tensor._version)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether it is the same tensor, not written since."""
        return tensor is self.tensor and (tensor.is_inference() or tensor._version == self.version)


class _Held(NamedTuple):
    cut: Cut
    stamps: dict[str, Stamp]  # parameter name -> stamp of its scores at the cut


class _Cached(NamedTuple):
    value: torch.Tensor
    stamps: list[Stamp]  # of the tensors that it was computed from


#: (group, share of the number it keeps) -> cut; several passes may share these.
Cuts = dict[tuple["Group", float], _Held]


class Pass:
    """The cuts and masked weights of one forward pass; `weights` are its masks by parameter name."""

    def __init__(self, weights: Mapping[str, Masked], cuts: Cuts | None = None) -> None:
        self.weights = weights
        self.cuts: Cuts = {} if cuts is None else cuts
        self._cached: dict[tuple[Masked, bool, bool, Hooks | None], _Cached] = {}

    def cut(self, group: Group, reader: Masked | None = None, share: float = 1.0) -> Cut:
        """Return the cut of a group at a share of the number it keeps; recomputed if the reader's scores changed.

        Raises ValueError if scores hold NaN.
        """
        held = self.cuts.get((group, share))
        if held is None or (reader is not None and not held.stamps[reader.path].holds(reader.scores)):
            stamps = {path: Stamp.of(scores) for path, scores in group.held(self.weights)}
            held = self.cuts[group, share] = _Held(group.cut(self.weights, share), stamps)
        return held.cut

    def masked_weight(self, masked: Masked, weight: torch.Tensor) -> torch.Tensor:
        """Return the masked weight, cached until its inputs change. Raises ValueError if scores hold NaN."""
        key = masked, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), saving()
        cached, sources = self._cached.get(key), [weight, *masked.trained]
        if cached is None or not all(stamp.holds(source) for stamp, source in zip(cached.stamps, sources, strict=True)):
            stamps = [Stamp.of(source) for source in sources]
            with within(self):
                cached = self._cached[key] = _Cached(masked.gate(masked, weight), stamps)
        return cached.value

    def holds(self, masked: Masked) -> bool:
        """Return whether this mask itself, not a copy or replica, belongs to the pass."""
        return self.weights.get(masked.path) is masked


class _Entry(NamedTuple):
    span: Pass
    module: nn.Module | None  # the module that is called
    frame: FrameType | None  # the frame of that call


class _Backward:
    """The state shared by layers that a backward pass recomputes, by owner: cuts, and passes of one checkpoint."""

    def __init__(self) -> None:
        self.cuts: dict[int, Cuts] = {}
        self.passes: dict[int, Pass] = {}
        self.stretch: Hooks | None = None


class _Thread(threading.local):
    def __init__(self) -> None:
        self.open: list[_Entry] = []
        self.backward: dict[int, _Backward] = {}  # by torch's id of the backward pass


_thread = _Thread()


def enter(span: Pass, module: nn.Module, frame: FrameType) -> None:
    """Begin a pass that lasts while a module's call runs in this frame."""
    _prune()
    join(span, module, frame)


def join(span: Pass, module: nn.Module, frame: FrameType) -> None:
    """Enter a pass that :func:`running` returned. Closed passes are already removed."""
    _thread.open.append(_Entry(span, module, frame))


def leave(module: nn.Module) -> None:
    """End the pass that the last call of the module began or joined."""
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
    """Return the innermost open pass of this thread to which the mask belongs; None if there is none."""
    _prune()
    return next((entry.span for entry in reversed(_thread.open) if entry.span.holds(masked)), None)


def saving() -> Hooks | None:
    """Return the active hooks for saved tensors: activation checkpointing has its own for each stretch of layers.

    Masked weights are shared only within one stretch, as a recomputation must save the same tensors.
    """
    hooks: Hooks | None = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks


def recomputed(masked: Masked, begin: Callable[[], Pass]) -> Pass | None:
    """Return the pass of the layers that checkpointing now recomputes in a backward pass; None outside of one.

    It is created with `begin` at the first read, and dropped at the next stretch of layers or after the backward pass.
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
    """Return the cuts shared within the present backward pass, by id of the owner; new ones outside of one."""
    backward = _backward()
    return {} if backward is None else backward.cuts.setdefault(owner, {})


def _backward() -> _Backward | None:
    """The state shared within the present backward pass, and dropped after it; None outside of one."""
    task, held = torch._C._current_graph_task_id(), _thread.backward
    if task == -1:
        held.clear()  # of an interrupted backward pass
        return None
    if task not in held:
        held[task] = _Backward()
        torch.autograd.Variable._execution_engine.queue_callback(partial(_drop, held, task))
    return held[task]


def _drop(held: dict[int, _Backward], task: int) -> None:
    held.pop(task, None)


def _prune() -> None:
    """Drop passes that an interrupt left open; if the innermost call still runs, so do the outer ones."""
    while _thread.open and not _runs(_thread.open[-1].frame):
        del _thread.open[-1]


def _runs(call: FrameType | None) -> bool:
    """Whether a call still runs in this thread; torch calls no hook after an interrupt."""
    frame = sys._getframe(1) if call is not None else None
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is call


def _prune_at_collection(phase: str, info: Mapping[str, int]) -> None:
    """Let `gc.collect()` free passes that an interrupt left open in the calling thread."""
    if phase == "start" and info["generation"] == 2:
        _prune()


gc.callbacks.append(_prune_at_collection)
