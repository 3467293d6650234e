"""Masked weights as leaves of a training step: all are written before it, and all their gradients are read after it.

Elsewhere each masked weight is the output of an operation, with a backward of its own (`slth.masking.masked`): on a GPU
Python's launching of these takes longer than their work. Here a forward pass sees plain tensors, as of a dense model,
and three operations of `slth.kernels.grouped` do the rest for the whole model.
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

#: Layers that torch's autocast runs in the lower precision, and what they hold is read by nothing else.
_PRODUCTS = nn.Linear, nn.modules.conv._ConvNd


class Leaves(passes.Pass):
    """The masked weights of a model in training, each a leaf with a gradient of its own.

    Within `standing_in` a forward pass reads these, as :meth:`write` has left them; :meth:`pull` makes the gradients of
    the scores of theirs.
    """

    def __init__(self, wrapped: Wrapped, found: Sequence[Place], dtype: torch.dtype) -> None:
        super().__init__(wrapped.weights)
        self.wrapped, self._places = wrapped, found
        held = {path: [p for p in found if p.masked is masked] for path, masked in wrapped.weights.items()}
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
        self.bypassed = False  # whether scores alone, and no leaf, had a gradient in the last step

    @classmethod
    def of(cls, model: nn.Module, wrapped: Wrapped, dtype: torch.dtype) -> Self | None:
        """The leaves of a model, products in this dtype. None where a search has its own way with a weight.

        That is a gate other than edge-popup's, a mask that does more than prune, a scale, scores at rest, a weight that
        is trained or on another device, one with a parametrization before the mask, and one whose rows are not
        contiguous (torch.channels_last).
        """
        found = list(places(model, wrapped))
        devices = {tensor.device for place in found for tensor in (place.original, place.masked.scores)}
        fit = len(devices) == 1 and all(_is_plain(place) and _has_rows(place) for place in found)
        return cls(wrapped, found, dtype) if fit else None

    @property
    def device(self) -> torch.device:
        """Of all of them."""
        return next(iter(self.weights.values())).scores.device

    @property
    def scores(self) -> list[nn.Parameter]:
        """What is trained."""
        return [scores for _, scores in self._scores()]

    def _scores(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((path, masked.scores) for path, masked in self.weights.items())

    def holds_still(self) -> bool:
        """Whether weights and scores lie where they did, under the same gates: else there must be other leaves."""
        return self._state == self._current() and all(map(_is_plain, self._places))

    def _current(self) -> list[tuple[int, ...]]:
        tensors = [(p.original, p.masked.scores, p.masked.free) for p in self._places]
        return [tuple(0 if t is None else t.data_ptr() for t in each) for each in tensors]

    # a step

    def follow_keep(self) -> None:
        """Take on what each group keeps now."""
        counts = [masks.count_kept(group.size, group.current) for group in self.wrapped.groups]
        if counts != self._counts:
            self._counts = counts
            fresh = torch.tensor(counts, dtype=torch.int64, device="cpu")
            self._kept.copy_(fresh.pin_memory() if self._kept.is_cuda else fresh, non_blocking=True)

    def write(self) -> torch.Tensor:
        """Cut the scores and write all masked weights. Returns whether there was NaN, on the device."""
        self.cuts.clear()  # made by what read a mask in an earlier step
        torch.clear_autocast_cache()  # an autocast around the training would go on with what the leaves were
        cuts = self._table.cut(self._kept)
        self._table.write(cuts)
        return cuts.nan != 0

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Within it the model reads these, wherever it reads a masked weight."""
        self.wrapped.leaves = self
        try:
            yield
        finally:
            del self.wrapped.leaves

    def made(self, masked: Masked, weight: torch.Tensor) -> torch.Tensor:
        """The leaf of a masked weight; other scores or weights (`torch.func.functional_call`) are masked as ever."""
        scores, original = self._sources[masked.path]
        if masked.scores is not scores or weight is not original:
            return super().made(masked, weight)
        return self._leaves[masked.path]

    def zero(self) -> None:
        """Forget all gradients, also of the scores."""
        for path, leaf in self._leaves.items():
            leaf.grad = self.weights[path].scores.grad = None

    @torch.no_grad()
    def pull(self) -> torch.Tensor | None:
        """Make the leaves' gradients those of the scores, beside what has reached the scores by itself.

        That is the gradient of a penalty on scores, say, or all of it where a compiled model reads no leaves. Returns
        the sum of the squares, on the device; None where there was such a gradient.
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
        """Tell the kernels where the gradients of a recorded step lie: a recording cannot do so itself."""
        self._table.point()

    def _grads(self) -> list[torch.Tensor]:
        return [part.of(_grad(self._leaves[masked.path])) for masked, part in self._parts]


def _leaf(held: Sequence[Place], dtype: torch.dtype) -> torch.Tensor:
    """What stands in for a weight: in the lower precision where products alone read it."""
    weight = held[0].original
    lower = weight.dtype == torch.float32 and all(map(_is_of_product, held))
    return torch.zeros_like(weight, dtype=dtype if lower else weight.dtype, requires_grad=True)


def _is_of_product(place: Place) -> bool:
    """Whether a product reads the masked weight, with no parametrization in between."""
    return not place.others and (isinstance(place.owner, _PRODUCTS) or is_conv1d(place.owner))


def _has_rows(place: Place) -> bool:
    """Whether a table can hold the parts of the weight."""
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
