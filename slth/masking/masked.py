"""The mask of one weight: a parametrization from scores to the masked weight, and the gates that say how they meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from slth import masks
from slth.freezing import Freezing
from slth.masking import state
from slth.recipes import Recipe
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


@state.named(state.PLAIN)
def straight_through(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """The gate of edge-popup: weight where the mask keeps it, else 0; the score's gradient is g * weight * sign."""
    pruned = masked.pruned(weight.detach())
    out: torch.Tensor = _StraightThrough.apply(weight, masked.scores, pruned, masked.free)  # type: ignore[no-untyped-call]
    return out


@state.named(state.PLAIN)
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
        self.recipe: Recipe | None = None  # of the weight, as it was last saved or loaded
        self.wrapped: Wrapped | None = None
        self._seen: dict[tuple[bool, bool], torch.Tensor] = {}  # what this forward pass has made
        self.register_buffer("free", None)
        self.register_buffer("generation", None)
        self.register_buffer("keep", torch.ones(len(parts), dtype=torch.float64, device=scores.device))
        # the cuts once more, as tensors, for graphs that must not be built anew when they move
        device = scores.device
        threshold = torch.full((len(parts),), -1.0, dtype=torch.float32, device=device)
        self.register_buffer("threshold", threshold, persistent=False)
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

    @torch.no_grad()
    def evaluated(self, weight: torch.Tensor) -> torch.Tensor:
        """The effective weight that evaluation sees, whatever mode this is in."""
        training = self.training
        try:
            self.eval()
            if self.wrapped:
                self.wrapped.refresh()
            return self.gate(self, weight)
        finally:
            self.train(training)

    # what a state_dict says beside the tensors

    @property
    def kind(self) -> str:
        """What a search has made of the mask: "edge-popup", also where none has been, "biprop", "frozen" and so on."""
        gate = state.describe(self.gate)
        kinds = [str(gate.get("name", gate.get("own")))]
        kinds += [name for name, buffer in (("frozen", self.free), ("iterand", self.generation)) if buffer is not None]
        return " and ".join(kinds[1:] if kinds[0] == state.PLAIN and kinds[1:] else kinds)

    def get_extra_state(self) -> torch.Tensor:
        """Gate, freezing, recipe, parts, groups and what these keep now, as `slth.masking.state` encodes them."""
        return state.encode(self._told())

    def _told(self) -> dict[str, Any]:
        standing = self.wrapped.standing(self) if self.wrapped else []
        return {
            "gate": state.describe(self.gate),
            "kind": self.kind,
            "freezing": self.freezing and asdict(self.freezing),
            "recipe": self.recipe and asdict(self.recipe),
            "parts": [list(astuple(part)) for part in self.parts],
            "groups": [[group.name if len(group.members) > 1 else "", offset] for group, offset in standing],
            "current": [group.current for group, _ in standing],
        }

    def set_extra_state(self, told: torch.Tensor) -> None:
        """Take on what :meth:`get_extra_state` told. Raises ValueError where it cannot be read."""
        entry = state.decode(told)
        self.gate = state.revive(entry["gate"], self.gate)
        self.freezing = entry["freezing"] and Freezing(**entry["freezing"])
        self.recipe = entry["recipe"] and Recipe.of(entry["recipe"])
        self._keep(entry["current"])

    def check(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Raise ValueError, with the weight's name, for a state_dict that this mask cannot take on."""
        with state.refusing(self.path):
            scores = state_dict.get(prefix + "scores")
            if isinstance(scores, torch.Tensor) and scores.shape != self.scores.shape:
                raise ValueError(f"has shape {tuple(scores.shape)}, must be {tuple(self.scores.shape)}")
            if prefix + state.KEY not in state_dict:
                return  # saved before there were entries
            entry, own = state.decode(state_dict[prefix + state.KEY]), self._told()
            if entry["parts"] != own["parts"]:
                raise ValueError(f"has parts {state.roles(entry['parts'])}, must have {state.roles(own['parts'])}")
            if entry["groups"] != own["groups"]:
                there, here = state.policies(entry["groups"]), state.policies(own["groups"])
                raise ValueError(f"competes {there}, here {here}: wrap this model with the policy of the saved one")
            if self.kind not in (state.PLAIN, entry["kind"]):
                raise ValueError(f"is of {entry['kind']}, the model of {self.kind}: load it into a freshly wrapped one")
            state.revive(entry["gate"], self.gate)
            _ = entry["freezing"] and Freezing(**entry["freezing"])
            _ = entry["recipe"] and Recipe.of(entry["recipe"])
            for current in entry["current"]:
                masks.as_keep(current)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """What a search has added comes with a state_dict, and its keep holds from then on."""
        for name in ("free", "generation"):
            if getattr(self, name) is None and prefix + name in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[prefix + name], device=self.scores.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if (key := prefix + state.KEY) not in state_dict:  # saved before there were entries
            missing: list[str] = rest[2]
            missing.remove(key)
            self._keep(self.keep.tolist())

    def _keep(self, current: Sequence[float]) -> None:
        """The groups' keep is that of the buffer, and now so much."""
        standing = self.wrapped.standing(self) if self.wrapped else []
        for (group, _), keep, now in zip(standing, self.keep.tolist(), current, strict=True):
            group.keep, group.current = keep, now

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
