"""Masked weights as leaf tensors of a training step: written before it, their gradients read after it.

Normally each masked weight is the output of an operation with its own backward (`slth.masking.masked`). On a GPU,
launching these from Python takes longer than running them. Here the forward pass reads plain tensors, as in a dense
model, and three operations of `slth.kernels.grouped` compute masks and gradients of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import nn

from slth.kernels import grouped
from slth.masking import masks, passes
from slth.masking.groups import Wrapped
from slth.masking.layouts import is_conv1d
from slth.masking.masked import Masked, straight_through
from slth.masking.places import Place, places

#: Layers that torch's autocast runs in the lower precision, and whose weights nothing else reads.
_PRODUCTS = nn.Linear, nn.modules.conv._ConvNd


class Leaves(passes.Pass):
    """The masked weights of a model in training, each a leaf tensor with its own gradient.

    In a block of `standing_in`, forward passes read these leaves with the values that :meth:`write` has written.
    :meth:`pull` then computes the gradients of the scores from theirs.
    """

    def __init__(self, wrapped: Wrapped, masked_places: Sequence[Place], dtype: torch.dtype) -> None:
        super().__init__(wrapped.weights)
        self.wrapped, self._places = wrapped, masked_places
        held = {path: [p for p in masked_places if p.masked is masked] for path, masked in wrapped.weights.items()}
        self._sources = {path: (there[0].masked.scores, there[0].original) for path, there in held.items()}
        originals = {path: weight.detach() for path, (_, weight) in self._sources.items()}
        self._leaves = {path: _leaf(there, dtype) for path, there in held.items()}
        self._slopes = {path: torch.zeros_like(masked.scores) for path, masked in wrapped.weights.items()}
        self._state = self._current()
        members = [(masked, i, g) for g, group in enumerate(wrapped.groups) for masked, i in group.members]
        self._parts = [(masked, masked.parts[i]) for masked, i, _ in members]
        segments = [
            grouped.Segment(
                part.of(originals[masked.path]),
                part.of(masked.scores.detach()),
                part.of(self._leaves[masked.path].detach()),
                g,
                None if masked.free is None else part.of(masked.free),
            )
            for (masked, part), (_, _, g) in zip(self._parts, members, strict=True)
        ]
        self._table = grouped.Table(segments, len(wrapped.groups))
        self._kept = torch.zeros(len(wrapped.groups), dtype=torch.int64, device=self.device)
        self._counts: list[int] = []
        self.bypassed = False  # whether, in the last step, scores had a gradient but their leaf had none

    @classmethod
    def of(cls, model: nn.Module, wrapped: Wrapped, dtype: torch.dtype) -> Self | None:
        """Make the leaves of a model; those that only matrix products read have this dtype.

        Returns None if some weight needs its own operation: a gate other than edge-popup's, a mask that does more than
        prune, a scale, scores that are not trained, a weight that is trained or on another device, a parametrization
        before the mask, or rows that are not contiguous (torch.channels_last).
        """
        held = list(places(model, wrapped))
        devices = {tensor.device for place in held for tensor in (place.original, place.masked.scores)}
        fit = len(devices) == 1 and all(_is_plain(place) and _has_rows(place) for place in held)
        return cls(wrapped, held, dtype) if fit else None

    @property
    def device(self) -> torch.device:
        """The device of all weights and scores."""
        return next(iter(self.weights.values())).scores.device

    @property
    def scores(self) -> list[nn.Parameter]:
        """The scores of all weights."""
        return [scores for _, scores in self._scores()]

    def _scores(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((path, masked.scores) for path, masked in self.weights.items())

    def holds_still(self) -> bool:
        """Return whether addresses and gates of all weights are unchanged; if not, new leaves must be made."""
        return self._state == self._current() and all(map(_is_plain, self._places))

    def _current(self) -> list[tuple[int, ...]]:
        tensors = [(p.original, p.masked.scores, p.masked.free) for p in self._places]
        return [tuple(0 if t is None else t.data_ptr() for t in each) for each in tensors]

    # a step

    def follow_keep(self) -> None:
        """Update the number of weights that each group keeps now."""
        counts = [masks.count_kept(group.size, group.current) for group in self.wrapped.groups]
        if counts != self._counts:
            self._counts = counts
            fresh = torch.tensor(counts, dtype=torch.int64, device="cpu")
            self._kept.copy_(fresh.pin_memory() if self._kept.is_cuda else fresh, non_blocking=True)

    def write(self) -> torch.Tensor:
        """Cut the scores and write all masked weights. Returns whether scores held NaN, a bool tensor on the device."""
        self.cuts.clear()  # of masks that were read in an earlier step
        torch.clear_autocast_cache()  # an autocast around the training would otherwise use old values of the leaves
        cuts = self._table.cut(self._kept)
        self._table.write(cuts)
        return cuts.nan != 0

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Make the model read the leaves instead of masked weights in the block."""
        self.wrapped.leaves = self
        try:
            yield
        finally:
            del self.wrapped.leaves

    def masked_weight(self, masked: Masked, weight: torch.Tensor) -> torch.Tensor:
        """Return the leaf of a masked weight; other tensors (`torch.func.functional_call`) are masked as usual."""
        scores, original = self._sources[masked.path]
        if masked.scores is not scores or weight is not original:
            return super().masked_weight(masked, weight)
        return self._leaves[masked.path]

    def zero(self) -> None:
        """Reset all gradients to None, also those of the scores."""
        for path, leaf in self._leaves.items():
            leaf.grad = self.weights[path].scores.grad = None

    @torch.no_grad()
    def pull(self) -> torch.Tensor | None:
        """Compute the gradients of the scores from those of the leaves, and add gradients that scores already have.

        Scores have gradients of their own from a penalty on scores, say, or if a compiled model reads no leaves.
        Returns the sum of squares of all gradients, on the device; None if scores had gradients of their own.
        """
        own = {path: scores.grad for path, scores in self._scores() if scores.grad is not None}
        self.bypassed = any(leaf.grad is None and path in own for path, leaf in self._leaves.items())
        for path, leaf in self._leaves.items():
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
            self.weights[path].scores.grad = self._slopes[path]
        slopes = [part.of(self._slopes[masked.path]) for masked, part in self._parts]
        squares = self._table.slope(self._grads(), slopes)
        for path, grad in own.items():
            self._slopes[path].add_(grad)
        return None if own else squares

    def point(self) -> None:
        """Pass the addresses of the gradients of a recorded step to the kernels, which a recording cannot do itself."""
        self._table.point()

    def _grads(self) -> list[torch.Tensor]:
        return [part.of(_grad(self._leaves[masked.path])) for masked, part in self._parts]


def _leaf(held: Sequence[Place], dtype: torch.dtype) -> torch.Tensor:
    """The leaf of a weight; in the lower precision if only matrix products read it."""
    weight = held[0].original
    lower = weight.dtype == torch.float32 and all(map(_is_of_product, held))
    return torch.zeros_like(weight, dtype=dtype if lower else weight.dtype, requires_grad=True)


def _is_of_product(place: Place) -> bool:
    """Whether only a matrix product reads the masked weight, with no other parametrization."""
    return not place.others and (isinstance(place.owner, _PRODUCTS) or is_conv1d(place.owner))


def _has_rows(place: Place) -> bool:
    """Whether `grouped.Table` supports the memory layout of the weight's parts."""
    masked = place.masked
    tensors = [t.detach() for t in (place.original, masked.scores, masked.free) if t is not None]
    return all(grouped.have_rows(*map(part.of, tensors)) for part in masked.parts)


def _grad(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _is_plain(place: Place) -> bool:
    masked = place.masked
    return (
        masked.gate is straight_through
        and masked.form.is_plain
        and masked.scores.requires_grad
        and not place.original.requires_grad
        and place.stack[0] is masked
    )
