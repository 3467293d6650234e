"""The mask of one weight: a parametrization from scores to the masked weight, and the gates that say how they meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from slth import masks
from slth.freezing import Freezing
from slth.targets import Part

if TYPE_CHECKING:
    from slth.masking.groups import Wrapped

# ---------------------------------------------------------------- gates


class _StraightThrough(Function):
    """The masked weight; backward as if the mask were |score|, to the scores alone (Ramanujan et al. 2020)."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, scores: torch.Tensor, pruned: torch.Tensor, free: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scores, free)
        return pruned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None, None]:
        weight, scores, free = ctx.saved_tensors
        slope = masks.score_gradient(grad, weight, scores)
        return None, slope if free is None else slope * free, None, None


def straight_through(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """The gate of edge-popup: weight where the mask keeps it, else 0; the score's gradient is g * weight * sign."""
    pruned = masked.pruned(weight.detach())
    out: torch.Tensor = _StraightThrough.apply(weight, masked.scores, pruned, masked.free)  # type: ignore[no-untyped-call]
    return out


def fixed(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """The gate of a mask that stays: gradients reach the kept weights, where these are trained, and no score."""
    return torch.where(masked.mask(), weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


#: What a weight is multiplied with: (masked, weight) -> effective weight, differentiable in the scores.
Gate = Callable[["Masked", torch.Tensor], torch.Tensor]


class Masked(nn.Module):
    """The mask of one weight, as a parametrization: scores in, masked weight out.

    `scores` float32 of the weight's shape. `gate` says how mask and weight meet; searches put in their own. `free`, if
    any, is bool of the weight's shape: scores elsewhere have no gradient; `freezing` says how it was drawn.
    `generation`, if any, is uint8 of the weight's shape: how often each weight was drawn anew. `keep` is float64: that
    of each part's group, so that a state_dict holds all that its masks follow from.
    """

    scores: nn.Parameter
    keep: torch.Tensor
    free: torch.Tensor | None
    generation: torch.Tensor | None
    threshold: torch.Tensor
    last_tie: torch.Tensor

    def __init__(self, scores: torch.Tensor, parts: Sequence[Part], path: str) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.parts, self.path = tuple(parts), path
        self.cuts: list[masks.Cut | masks.DeviceCut] = [masks.Cut(-1.0, -1)] * len(
            parts
        )  # of the groups that the parts belong to
        self.offsets = [0] * len(parts)  # of the parts within these
        self.gate: Gate = straight_through
        self.freezing: Freezing | None = None
        self.wrapped: Wrapped | None = None
        self._seen: dict[tuple[bool, bool], torch.Tensor] = {}  # what this forward pass has made
        self.register_buffer("free", None)
        self.register_buffer("generation", None)
        self.register_buffer("keep", torch.ones(len(parts), dtype=torch.float64, device=scores.device))
        # the cuts once more, as tensors, for graphs that must not be built anew when they move
        device = scores.device
        self.register_buffer("threshold", torch.full((len(parts),), -1.0, device=device), persistent=False)
        self.register_buffer("last_tie", torch.full((len(parts),), -1, device=device), persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Weight -> effective weight, of the same shape and dtype; made once where a forward pass is open."""
        if torch.compiler.is_compiling():
            return self.gate(self, weight)
        assert self.wrapped is not None
        if not self.wrapped.inside:
            self.wrapped.refresh()
            return self.gate(self, weight)
        key = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        made = self._seen.get(key)
        if made is None:
            made = self._seen[key] = self.gate(self, weight)
        return made

    def forget(self) -> None:
        """Drop what the last forward pass has made."""
        self._seen.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """What a search has added comes with a state_dict, and its keep holds from then on."""
        for name in ("free", "generation"):
            if getattr(self, name) is None and prefix + name in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[prefix + name], device=self.scores.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        for group in self.wrapped.groups if self.wrapped else ():
            for masked, i in group.members:
                if masked is self:
                    group.keep = group.current = float(self.keep[i])

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Masked:
        """Scores go with the module to another device, yet are float32 whatever the weights become."""

        def of_one_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(of_one_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    def set_cut(self, index: int, cut: masks.Cut | masks.DeviceCut, offset: int) -> None:
        """Where the group of a part is cut now, and the part's first index there."""
        self.cuts[index], self.offsets[index] = cut, offset
        self.threshold[index] = cut.threshold
        self.last_tie[index] = cut.last_tie - offset

    def mask(self) -> torch.Tensor:
        """The mask: bool, the weight's shape."""
        if torch.compiler.is_compiling():
            ones = torch.ones((), device=self.scores.device).expand(self.scores.shape)
            return self.pruned(ones) > 0
        kept = torch.empty(self.scores.shape, dtype=torch.bool, device=self.scores.device)
        for part, cut, offset in zip(self.parts, self.cuts, self.offsets, strict=True):
            part.of(kept).copy_(cut.mask(part.of(self.scores), offset))
        return kept

    def pruned(self, weight: torch.Tensor) -> torch.Tensor:
        """Weight where the mask keeps it, else exactly 0; without gradient."""
        if torch.compiler.is_compiling():
            return self._traced(weight)
        if len(self.parts) == 1:
            return masks.masked_weight(weight, self.scores, self.cuts[0], self.offsets[0])
        out = torch.empty_like(weight)
        for part, cut, offset in zip(self.parts, self.cuts, self.offsets, strict=True):
            masks.write_masked(part.of(weight), part.of(self.scores), cut, offset, part.of(out))
        return out

    def _traced(self, weight: torch.Tensor) -> torch.Tensor:
        made = [
            masks.traced_masked(part.of(weight), part.of(self.scores), self.threshold[i], self.last_tie[i])
            for i, part in enumerate(self.parts)
        ]
        return made[0] if len(made) == 1 else torch.cat(made, dim=self.parts[0].dim)
