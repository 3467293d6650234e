"""Worst cases by gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

FEW = 12  # number of cases in controls, whose worst case is easy to find


def ascend(
    value: Callable[..., torch.Tensor], start: Mapping[str, torch.Tensor], *, steps: int = 50, rate: float = 0.3
) -> float:
    """Maximise value by gradient ascent from start in all cases at once; return the largest value reached.

    value maps the tensors of start, by name and with the cases as first axis, to (cases,); cases must be independent.
    value itself must enforce bounds on the tensors. The optimiser is Adam with a shrinking step, which does not depend
    on the gradient's scale.
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
    """Compute max_i |left_i - right_i|_2: (..., T, d) -> (...,)."""
    found: torch.Tensor = torch.linalg.vector_norm(left - right, dim=-1).amax(-1)
    return found
