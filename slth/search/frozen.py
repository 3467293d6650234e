"""Search in a partially frozen source (Otsuka et al. 2025, arXiv 2402.14029)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from slth.masking import Group, masks
from slth.search import options
from slth.search.base import Search
from slth.search.freezing import LOCKED, Freezing
from slth.wrapping import handle


@dataclass(frozen=True, kw_only=True)
class Frozen(Search):
    """Edge-popup with frozen random weights: a share `pruned` is never kept, a share `locked` always.

    Only the other weights have trained scores and take bits in a ticket. A group's keep must lie between locked and
    1 - pruned, else ValueError is raised.
    """

    pruned: float = options.number(0.25, "[0, 1)", help="the share of weights that is never kept")
    locked: float = options.number(0.25, "[0, 1)", help="the share of weights that is always kept")
    seed: int = options.integer(0, help="seed of the frozen places")
    any_form: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.freezing  # checks the shares

    @property
    def freezing(self) -> Freezing:
        """The shares to freeze. Raises ValueError if they sum to 0 or leave no weight free."""
        return Freezing(self.pruned, self.locked, self.seed)

    def require_keep(self, keep: float) -> None:
        """Raise ValueError for a keep outside [locked, 1 - pruned]."""
        if not self.locked <= keep <= self.freezing.open:
            raise ValueError(f"keep={keep}: {_between(self.locked, self.freezing.open)}")

    def prepare(self, model: nn.Module) -> None:
        """Freeze random weights of each part. Raises ValueError for a keep outside [locked, 1 - pruned]."""
        wrapped, freezing = handle(model), self.freezing
        places = {path: freezing.places(m.scores.shape, m.parts, path) for path, m in wrapped.weights.items()}
        for group in wrapped.groups:
            self._check(group, places)
        super().prepare(model)
        for path, (pruned, locked) in places.items():
            masked = wrapped.weights[path]
            device = masked.scores.device
            with torch.no_grad():
                masked.scores.masked_fill_(pruned.to(device), 0.0).masked_fill_(locked.to(device), LOCKED)
            masked.free = ~(pruned | locked).to(device)
            masked.add(freezing)

    def move_keep(self, model: nn.Module, progress: float) -> None:
        """Move keep along the schedule, from 1 - pruned down."""
        super().move_keep(model, progress)
        for group in handle(model).groups:
            group.current = min(group.current, max(group.keep, self.freezing.open))

    @staticmethod
    def _check(group: Group, places: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        both = [[m.parts[i].of(mask) for m, i in group.members for mask in (places[m.path][w],)] for w in (0, 1)]
        pruned, locked = (sum(int(part.sum()) for part in parts) for parts in both)
        kept, total = masks.count_kept(group.size, group.keep), group.size
        if not locked <= kept <= total - pruned:
            raise ValueError(f"keep={group.keep} in {group.name}: {_between(locked / total, 1 - pruned / total)}")


def _between(locked: float, open: float) -> str:
    return f"must be between {locked:.4g}, the share locked, and {open:.4g}, what is not pruned for good"
