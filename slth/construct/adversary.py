"""Lower bounds to set against a certificate: inputs, found by gradient ascent, with a large output error."""

from __future__ import annotations

import torch

from slth.attention import merged_attention
from slth.construct.certificates import Merged
from slth.construct.checks import check_alpha
from slth.numbers import as_int
from slth.weights import inits


def output_error(target: Merged, source: Merged, x: torch.Tensor) -> torch.Tensor:
    """Compute max_i |Attn_S(x_i) - Attn_T(x_i)|_2 of merged attentions: x (..., T, d_in) -> (...,)."""
    difference = merged_attention(x, *source) - merged_attention(x, *target)
    error: torch.Tensor = torch.linalg.vector_norm(difference, dim=-1).amax(-1)
    return error


def worst_input(
    target: Merged,
    source: Merged,
    alpha: float,
    *,
    length: int = 8,
    restarts: int = 8,
    steps: int = 60,
    start: torch.Tensor | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search for inputs of norm alpha on which source and target differ most.

    The search is projected gradient ascent with a shrinking step. A longer input can repeat the tokens found here, so
    the error is attained at every multiple of `length`.

    Args:
        target: merged matrices (qk (..., heads, d_in, d_in), vo (..., heads, d_in, d_out)), float64.
        source: the same of the source. Leading axes broadcast, and each pair is attacked independently.
        alpha: norm of every input token.
        length: tokens per input.
        restarts: random inputs that the ascent starts from.
        steps: steps of the ascent.
        start: inputs (restarts, length, d_in) to start from instead of random ones.
        seed: seed of the random inputs.

    Returns:
        (error (...,), inputs (..., length, d_in)): the largest error over all steps and restarts, and its inputs.

    Raises ValueError for an alpha that is not finite and positive, and for counts too small.
    """
    alpha = check_alpha(alpha)
    length, restarts, steps = as_int("length", length, 1), as_int("restarts", restarts, 1), as_int("steps", steps, 0)
    batch = torch.broadcast_shapes(target[0].shape[:-3], source[0].shape[:-3])
    d_in = source[0].shape[-1]
    if start is None:
        start = inits.normal((restarts, length, d_in), 1.0, seed=seed, name="adversary").double()
    # a restart axis in front of the heads, so that x (..., restarts, T, d_in) meets qk (..., 1, heads, d_in, d_in)
    target, source = ((qk.unsqueeze(-4), vo.unsqueeze(-4)) for qk, vo in (target, source))
    x = _on_sphere(start.expand(*batch, *start.shape), alpha)
    best = torch.full(x.shape[:-2], -torch.inf, dtype=x.dtype, device=x.device)
    best_x = x
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            error = output_error(target, source, x)
            (slope,) = torch.autograd.grad(error.sum(), x)
        better = error.detach() > best
        best = torch.where(better, error.detach(), best)
        best_x = torch.where(better[..., None, None], x.detach(), best_x)
        rate = alpha * 0.5 * (1.0 - step / (steps + 1))
        x = _on_sphere(x.detach() + rate * _unit(slope), alpha)
    at = best.argmax(-1, keepdim=True)  # the best restart
    found = torch.take_along_dim(best_x, at[..., None, None], dim=-3).squeeze(-3)
    return best.amax(-1), found


def _unit(slope: torch.Tensor) -> torch.Tensor:
    """Normalise each token's gradient, so that tokens with little attention weight move as well."""
    length: torch.Tensor = torch.linalg.vector_norm(slope, dim=-1, keepdim=True)
    return slope / length.clamp_min(torch.finfo(slope.dtype).tiny)


def _on_sphere(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return alpha * _unit(x)
