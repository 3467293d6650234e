"""Worst cases by gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

FEW = 12  # cases, where the worst is to be found at once: in controls


def ascend(
    value: Callable[..., torch.Tensor], start: Mapping[str, torch.Tensor], *, steps: int = 50, rate: float = 0.3
) -> float:
    """The largest value seen while climbing from start in all cases at once.

    value takes the tensors of start by name, the first axis that of the cases, to (cases,); cases do not see each
    other. What bounds the tensors is value's business. Adam with a shrinking step, indifferent to the gradient's scale.
    """
    raw = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    climber = torch.optim.Adam(raw.values(), lr=rate, eps=1e-300, maximize=True)
    best = torch.tensor(-torch.inf, dtype=torch.float64)
    for step in range(steps):
        now = value(**raw)
        best = torch.maximum(best, now.detach())
        climber.zero_grad()
        now.sum().backward()
        climber.param_groups[0]["lr"] = rate * (1.0 - step / steps)
        climber.step()
    with torch.no_grad():
        return torch.maximum(best, value(**raw)).max().item()


def distance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """max_i |left_i - right_i|_2: (..., T, d) -> (...,)."""
    found: torch.Tensor = torch.linalg.vector_norm(left - right, dim=-1).amax(-1)
    return found
