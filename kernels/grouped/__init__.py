"""Cuts, masked weights and score gradients of a whole model, each in a few launches for any number of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import increment_version

from ..arguments import FLOATS, check_device, check_floats
from ..dispatch import Kernel
from . import reference
from .cuts import Cuts
from .layout import Layout, layout_of

__all__ = ["Cuts", "Segment", "Table", "have_rows"]

_OPERATIONS = Kernel(reference.Operations, "grouped")

_Stamp = tuple[Any, ...]


class Segment(NamedTuple):
    """One part of a masked weight, whose scores compete in one group; all tensors have one shape and device.

    In memory, all of them must consist of the same number of evenly spaced rows of contiguous columns. Contiguous
    tensors do, and blocks of their rows or columns.

    Attributes:
        weight: float, before masking.
        scores: float32.
        pruned: float; receives the masked weight.
        group: index of the group.
        free: bool; where it is False, scores get gradient 0.
    """

    weight: torch.Tensor
    scores: torch.Tensor
    pruned: torch.Tensor
    group: int
    free: torch.Tensor | None = None


def have_rows(*tensors: torch.Tensor) -> bool:
    """Tell whether tensors of one shape have the memory layout that a :class:`Segment` needs."""
    return layout_of(*tensors) is not None


class Table:
    """The addresses of a model's scores, weights and masked weights, for operations on all of them at once.

    The table refers to the model's own tensors. On a GPU no operation synchronises, and after the first call of its
    kind none allocates memory, so that all three can be captured in a CUDA graph; only gradients may change their
    address. A deep copy of a table refers to the copied tensors.

    Args:
        segments: all segments; those of one group in the order in which ties are resolved.
        groups: number of groups, at least 1; each must have scores.

    Raises ValueError for shapes, dtypes, devices or layouts that do not fit, and for a group without scores.
    """

    def __init__(self, segments: Sequence[Segment], groups: int) -> None:
        self._groups = groups
        self._segments = [
            Segment(s.weight.detach(), s.scores.detach(), s.pruned.detach(), s.group, s.free) for s in segments
        ]
        _check_groups(self._segments, groups)
        self._device = self._segments[0].scores.device
        self._layouts = [_checked(i, segment, self._device) for i, segment in enumerate(self._segments)]
        self._stamps = [_stamp(segment) for segment in segments]
        self._gradients: list[_Stamp] = []  # of the last call that fitted
        self._forms: dict[Any, reference.Operations] = {}  # by implementation
        self._form("auto")  # allocates what a graph cannot capture

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self._segments, self._groups)

    def holds(self, segments: Sequence[Segment]) -> bool:
        """Tell whether the table was made of tensors with the same addresses and groups as these."""
        return [_stamp(segment) for segment in segments] == self._stamps

    def cut(self, kept: torch.Tensor, *, impl: str = "auto") -> Cuts:
        """Find the cut of each group: kept are the scores of largest magnitude, with ties to the lowest index.

        Args:
            kept: number of scores to keep in each group, int64 (groups,) on the scores' device, from 1 to the group's
                number of scores, which is not checked.
            impl: "auto", "reference" or "triton".

        Returns :class:`Cuts`, which the next call may overwrite. Raises ValueError for another shape, dtype or device.
        """
        if kept.shape != (self._groups,) or kept.dtype != torch.int64:
            raise ValueError(f"kept: {kept.dtype} {tuple(kept.shape)}, must be torch.int64 ({self._groups},)")
        check_device(scores=self._segments[0].scores, kept=kept)
        return self._form(impl).cut(kept)

    def write(self, cuts: Cuts, *, impl: str = "auto") -> None:
        """Write every masked weight into `pruned`, in its dtype: the weight where it is kept, else +0."""
        self._form(impl).write(cuts)
        increment_version([segment.pruned for segment in self._segments])  # autograd does not notice that Triton writes

    def slope(self, grads: Sequence[torch.Tensor], out: Sequence[torch.Tensor], *, impl: str = "auto") -> torch.Tensor:
        """Write the straight-through gradients of all scores, those of :func:`slth.kernels.score_gradient`.

        Args:
            grads: gradients to the masked weights, one tensor per segment, with the shape and dtype of its `pruned`.
            out: float32 tensors with the shapes of the scores. Both have the memory layout of the segment.
            impl: "auto", "reference" or "triton".

        Returns the sum of the squared gradients, float32 (), which the next call may overwrite; it is not finite if a
        gradient is not. Raises ValueError for shapes, dtypes, devices or layouts that do not fit.
        """
        grads, out = [grad.detach() for grad in grads], [slope.detach() for slope in out]
        self._check_gradients(grads, out)
        squares = self._form(impl).slope(grads, out)
        increment_version(out)
        return squares

    def point(self) -> None:
        """Copy the addresses of captured gradients to the device, for CUDA graphs that contain :meth:`slope`.

        Call it after a capture has ended and before its graph is replayed, since nothing can be copied to the device
        during the capture. The gradients must keep their addresses as long as the graph is replayed.
        """
        self._form("auto").point()

    def _form(self, impl: str) -> reference.Operations:
        """Return the operations of an implementation, created on first use."""
        kind = _OPERATIONS.choose(impl, self._segments[0].scores, _unfit(self._segments))
        if kind not in self._forms:
            self._forms[kind] = kind(self._segments, self._groups)
        return self._forms[kind]

    def _check_gradients(self, grads: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> None:
        """Raise ValueError unless these fit; tensors that fitted in the last call are not checked again."""
        for name, given in (("grads", grads), ("out", out)):
            if len(given) != len(self._segments):
                raise ValueError(f"{name}: there are {len(given)}, must be {len(self._segments)}, one for each segment")
        stamps = [_where(t) for t in (*grads, *out)]
        if stamps == self._gradients:
            return
        for i, (segment, layout) in enumerate(zip(self._segments, self._layouts, strict=True)):
            _check_like(f"grads[{i}]", grads[i], segment.pruned, layout)
            _check_like(f"out[{i}]", out[i], segment.scores, layout)
        self._gradients = stamps


def _where(tensor: torch.Tensor) -> _Stamp:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _stamp(segment: Segment) -> _Stamp:
    """Return the addresses and options that a table takes from a segment."""
    weight, scores, pruned, group, free = segment
    return group, *(None if t is None else _where(t) for t in (weight, scores, pruned, free))


def _unfit(segments: Sequence[Segment]) -> str:
    wide = any(torch.float64 in (s.weight.dtype, s.pruned.dtype) for s in segments)
    return f"weights of dtype torch.float64, must be one of {', '.join(map(str, FLOATS))}" if wide else ""


# ---------------------------------------------------------------- checks


def _check_groups(segments: Sequence[Segment], groups: int) -> None:
    if groups < 1:
        raise ValueError(f"groups={groups}: must be at least 1")
    for i, segment in enumerate(segments):
        if not 0 <= segment.group < groups:
            raise ValueError(f"segment {i}: group={segment.group}, must be from 0 to {groups - 1}")
    if missing := set(range(groups)) - {s.group for s in segments if s.scores.numel()}:
        raise ValueError(f"group {min(missing)} has no scores: must have some")


def _checked(i: int, segment: Segment, device: torch.device) -> Layout:
    """Return the layout of a segment. Raises ValueError unless its tensors fit together and are on the device."""
    weight, scores, pruned, _, free = segment
    for tensor in (weight, pruned):
        if not tensor.is_floating_point():
            check_floats(**{f"segment {i}": tensor})
    tensors = [t for t in (weight, scores, pruned, free) if t is not None]
    if scores.dtype != torch.float32 or (free is not None and free.dtype != torch.bool):
        dtypes = ", ".join(str(t.dtype) for t in tensors[1::2])
        raise ValueError(f"segment {i}: scores and free of {dtypes}, must be of torch.float32 and torch.bool")
    if any(t.shape != scores.shape for t in tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(f"segment {i}: tensors of shapes {shapes}, must be of one")
    if any(t.device != device for t in tensors):
        devices = ", ".join(str(t.device) for t in tensors)
        raise ValueError(f"segment {i}: on {devices}, must be on {device} as the first is")
    layout = layout_of(*tensors)
    if layout is None:
        strides = ", ".join(str(t.stride()) for t in tensors)
        raise ValueError(
            f"segment {i}: {tuple(scores.shape)} with strides {strides}, must have contiguous rows, evenly spaced"
        )
    return layout


def _check_like(name: str, tensor: torch.Tensor, like: torch.Tensor, layout: Layout) -> None:
    """Raise ValueError unless a tensor has the shape, dtype and device of another, and this layout."""
    if tensor.shape != like.shape or tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name}: {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, must be {like.dtype} "
            f"{tuple(like.shape)} on {like.device}"
        )
    if layout.row_stride(tensor) is None:
        raise ValueError(
            f"{name}: strides {tensor.stride()}, must have contiguous rows of {layout.columns} entries, evenly spaced"
        )
