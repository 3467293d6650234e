"""The form of one weight's mask: its kind, its scale, and the weight's axes of outputs and inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from slth.masking.kinds import PRUNE, Kind, Prune
from slth.masking.kinds.base import Cuts
from slth.masking.layouts import MATRIX, Axes
from slth.masking.scales import Scale


@dataclass(frozen=True)
class Form:
    """The kind and the scale of the mask of a weight with this shape."""

    shape: tuple[int, ...]
    kind: Kind = PRUNE
    axes: Axes = MATRIX
    scale: Scale | None = None

    @property
    def prunes(self) -> bool:
        """Whether entries are either pruned or kept, without signs or multiples (there may be a scale)."""
        return isinstance(self.kind, Prune)

    @property
    def is_plain(self) -> bool:
        """Whether the mask only prunes, without a scale."""
        return self.prunes and self.scale is None

    def factors(self, device: torch.device) -> nn.Parameter | None:
        """Create the initial factors of the scale, float32 (count,), all 1; None without a scale."""
        return None if self.scale is None else nn.Parameter(torch.ones(self.scale.count, device=device))

    def multiplier(self, scores: torch.Tensor, cuts: Cuts, offset: int) -> torch.Tensor:
        """Compute the multipliers of a part from its scores, as :meth:`Kind.multiplier` does."""
        return self.kind.multiplier(scores, cuts, offset, self.axes)

    def scores(self, multiplier: torch.Tensor) -> torch.Tensor:
        """Return scores (float32) that give these multipliers if the group keeps exactly the nonzero ones."""
        return self.kind.pooled(multiplier.float(), self.axes)

    def scaled(self, value: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        """Multiply a masked weight by the factors of the scale, if there is one."""
        if self.scale is None or factors is None:
            return value
        return value * self.scale.spread(factors, self.shape).to(value.dtype)

    def entry(self) -> dict[str, Any]:
        """Return the kind and the scale as JSON, for state_dicts and tickets; {} for a plain mask."""
        entry: dict[str, Any] = {} if self.prunes else {"mask": self.kind.to_json()}
        return entry if self.scale is None else entry | {"scale": self.scale.to_json()}

    def check_entry(self, entry: Mapping[str, Any]) -> None:
        """Raise ValueError if a state_dict's entry has another kind or scale."""
        for name in ("mask", "scale"):
            there, here = (json.dumps(each.get(name)) for each in (entry, self.entry()))
            if there != here:
                raise ValueError(f"was wrapped with {name} {there}, here {here}: wrap this model as the saved one")


def kept(multiplier: torch.Tensor) -> torch.Tensor:
    """Return the mask (bool) of a multiplier (bool or int8): True where it is not 0."""
    return multiplier if multiplier.dtype == torch.bool else multiplier != 0


def times(weight: torch.Tensor, multiplier: torch.Tensor) -> torch.Tensor:
    """Multiply a weight by a multiplier (bool or int8); the result is +0 where that is 0."""
    zero = torch.zeros((), dtype=weight.dtype, device=weight.device)
    value = weight if multiplier.dtype == torch.bool else weight * multiplier.to(weight.dtype)
    return torch.where(kept(multiplier), value, zero)


def through(form: Form, weight: torch.Tensor, scores: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Return the masked weight `masked` with a straight-through gradient (`Kind.slope`), for the scores only."""
    out: torch.Tensor = _Through.apply(weight, scores, masked, form)  # type: ignore[no-untyped-call]
    return out


class _Through(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: torch.Tensor, scores: torch.Tensor, masked: torch.Tensor, form: Form) -> torch.Tensor:
        return masked

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        weight, scores, _, ctx.form = inputs
        ctx.save_for_backward(weight, scores)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None, None]:
        weight, scores = ctx.saved_tensors
        product = grad.float() * weight.float()
        return None, ctx.form.kind.slope(product, scores, ctx.form.axes), None, None
