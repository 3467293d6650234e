"""The masks of a whole module: groups within which scores compete, cut anew when scores have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._compile import _disable_dynamo  # torch.compiler.disable that imports torch._dynamo at the first call
from torch.optim.optimizer import register_optimizer_step_post_hook

from slth import masks
from slth.masking.masked import Masked
from slth.targets import Target

# ---------------------------------------------------------------- when scores change

_steps = 0  # that any optimiser has taken


@_disable_dynamo
def _count_step(optimiser: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Notice a step: torch's fused optimisers change parameters without counting up their versions."""
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)

# ---------------------------------------------------------------- the whole


@dataclass
class Group:
    """Parts of weights whose scores compete: `keep` of them stay in the end, `current` of them now."""

    name: str
    keep: float
    members: list[tuple[Masked, int]] = field(default_factory=list)
    current: float = 0.0
    selector: masks.Selector = field(default_factory=masks.Selector)
    seen: tuple[object, ...] = ()
    held: list[nn.Parameter] = field(default_factory=list)  # the scores of `seen`: no others can have their ids

    def set_keep(self, keep: float) -> None:
        """Keep this share from now on."""
        self.keep = self.current = keep
        for masked, i in self.members:
            masked.keep[i] = keep

    def refresh(self) -> None:
        """Cut anew where scores or keep have changed. Raises ValueError for scores that hold NaN."""
        state = (self.current, _steps, *((id(m.scores), m.scores._version) for m, _ in self.members))
        if state == self.seen:
            return
        parts = [masked.parts[i].of(masked.scores.detach()) for masked, i in self.members]
        with self._naming():
            cut = self.selector.cut(parts, self.current)
        offset = 0
        for (masked, i), part in zip(self.members, parts, strict=True):
            masked.set_cut(i, cut, offset)
            offset += part.numel()
        self.seen, self.held = state, [masked.scores for masked, _ in self.members]

    def settle(self) -> None:
        """Wait until it is known whether the scores hold NaN. Raises ValueError where they do, as refresh does."""
        with self._naming():
            self.selector.settle()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors name the group, which is then cut anew the next time."""
        try:
            yield
        except ValueError as error:
            self.seen = ()
            raise ValueError(f"{self.name}: {error}") from error


class Wrapped:
    """The masks of one wrapped module: `weights` by parameter name (a tied one by its first), and their groups."""

    def __init__(self, found: Sequence[Target], weights: dict[str, Masked], groups: list[Group]):
        self.weights, self.groups = weights, groups
        self.paths = {target.path: target.paths for target in found}
        self.inside = False  # a forward pass of the whole
        self.hooks: list[Any] = []

    # a forward pass of the whole: cuts are looked at before it, masked weights dropped after it

    @_disable_dynamo
    def _open(self, module: nn.Module, args: object) -> None:
        self._forget()  # what a pass that was interrupted may have left
        self.refresh()
        self.inside = True

    @_disable_dynamo
    def _close(self, module: nn.Module, args: object, output: object) -> None:
        self.inside = False
        self._forget()

    def _forget(self) -> None:
        for masked in self.weights.values():
            masked.forget()

    @_disable_dynamo
    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the masks up to date with the scores; cheap where nothing has changed."""
        for group in self.groups:
            group.refresh()

    def changed(self) -> None:
        """Say that scores were changed in a way that torch does not notice (through `.data`)."""
        for group in self.groups:
            group.seen = ()

    def set_progress(self, schedule: str, progress: float) -> None:
        """Move every group's keep along a schedule of `slth.masks.SCHEDULES`, from 1 at progress 0 to its own at 1."""
        for group in self.groups:
            group.current = masks.scheduled_keep(group.keep, schedule, progress)

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks by parameter name, bool. Raises ValueError for scores that hold NaN."""
        self.refresh()
        for group in self.groups:
            group.settle()
        return {path: masked.mask() for path, masked in self.weights.items()}

    @torch.no_grad()
    def set_masks(self, given: Mapping[str, torch.Tensor]) -> None:
        """Make these the masks, bool by parameter name: scores become 1 and 0, each group's keep what the masks keep.

        Raises ValueError for other names or shapes, and for a group in which nothing would be kept.
        """
        if given.keys() != self.weights.keys():
            odd = sorted(given.keys() ^ self.weights.keys())
            raise ValueError(f"masks: must be given for exactly the wrapped weights, differ in {', '.join(odd[:8])}")
        for path, mask in given.items():
            if mask.dtype != torch.bool or mask.shape != self.weights[path].scores.shape:
                shape = tuple(self.weights[path].scores.shape)
                raise ValueError(f"mask of {path}: {mask.dtype} {tuple(mask.shape)}, must be torch.bool {shape}")
        counts = [self._count(group, given) for group in self.groups]
        for group, (kept, _) in zip(self.groups, counts, strict=True):
            if kept == 0:
                raise ValueError(f"masks keep nothing in {group.name}: must keep at least one weight")
        for path, mask in given.items():
            self.weights[path].scores.copy_(mask)
        for group, (kept, total) in zip(self.groups, counts, strict=True):
            group.set_keep(kept / total)
        self.refresh()

    @staticmethod
    def _count(group: Group, given: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        parts = [masked.parts[i].of(given[masked.path]) for masked, i in group.members]
        return sum(int(part.sum()) for part in parts), sum(part.numel() for part in parts)

    def kept(self) -> int:
        """Weights that the masks keep now, over all groups."""
        return sum(masks.count_kept(self.size(group), group.current) for group in self.groups)

    @staticmethod
    def size(group: Group) -> int:
        """Weights of a group, kept or not."""
        return sum(masked.parts[i].of(masked.scores).numel() for masked, i in group.members)

    def standing(self, masked: Masked) -> list[tuple[Group, int]]:
        """The group of each part of a weight, and the part's first index there."""
        found: dict[int, tuple[Group, int]] = {}
        for group in self.groups:
            offset = 0
            for member, i in group.members:
                if member is masked:
                    found[i] = group, offset
                offset += member.parts[i].of(member.scores).numel()
        return [found[i] for i in range(len(masked.parts))]

    def scores(self) -> list[nn.Parameter]:
        """What a search trains, in the order of the weights."""
        return [masked.scores for masked in self.weights.values()]
