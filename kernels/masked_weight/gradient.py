"""The straight-through estimator: the gradient of a masked weight to its scores, as if the mask were |score|."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

from slth.watched import followed, watched

from ..arguments import check_device
from ..dispatch import Kernel
from . import reference

_SCORE_GRADIENT = Kernel(reference.score_gradient)


def score_gradient(
    grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, *, impl: str = "auto"
) -> torch.Tensor:
    """Compute the straight-through gradient of |score|: grad * weight * sign(score), with sign(0) = 1.

    Args:
        grad: gradient to the masked weight, float, of the weight's shape.
        weight: float.
        scores: float32 of the weight's shape.
        impl: as in :func:`slth.kernels.masked_weight`. "auto" uses torch's operations if the result may need gradients.

    Returns float32 of the scores' shape. Raises ValueError for shapes, dtypes or devices that do not fit. Source:
    Ramanujan et al. 2020.
    """
    shape = weight.shape
    if grad.shape != shape or scores.shape != shape or scores.dtype != torch.float32 or grad.device != scores.device:
        _refuse_gradient(grad, weight, scores)
    return _SCORE_GRADIENT.choose(impl, grad, followed=followed(grad, weight))(grad, weight, scores)


def straight_through(
    weight: torch.Tensor,
    scores: torch.Tensor,
    pruned: torch.Tensor,
    free: torch.Tensor | None = None,
    *,
    impl: str = "auto",
) -> torch.Tensor:
    """Return `pruned` with the gradient of weight * |score| to the scores only (Ramanujan et al. 2020).

    Args:
        weight: the weight before masking.
        scores: float32 of the weight's shape.
        pruned: the masked weight: the weight where the mask keeps it, else 0.
        free: bool of the weight's shape; where it is False, scores get gradient 0. None: True everywhere.
        impl: as in :func:`score_gradient`.
    """
    kind: type[Function] = _StraightThrough if torch.compiler.is_compiling() else _StraightThroughBothWays
    # Function.apply binds arguments in every call, which only transforms of torch.func and defaults need
    apply: Callable[..., torch.Tensor] = kind.apply if watched() else super(Function, kind).apply  # type: ignore[misc]
    return apply(weight, scores, pruned, free, impl)


class _StraightThrough(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: torch.Tensor, scores: torch.Tensor, pruned: torch.Tensor, free: torch.Tensor | None, impl: str
    ) -> torch.Tensor:
        return pruned

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        weight, scores, _, free, ctx.impl = inputs
        ctx.save_for_backward(weight, scores, free)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None, None, None]:
        weight, scores, free = ctx.saved_tensors
        slope = score_gradient(grad, weight, scores, impl=ctx.impl)
        return None, slope if free is None else slope * free, None, None, None


class _StraightThroughBothWays(_StraightThrough):
    """The same with forward-mode derivatives, which torch.compile does not support in a Function."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _StraightThrough.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], inputs[1], inputs[3])

    @staticmethod
    def jvp(ctx: Any, weight: None, scores: torch.Tensor | None, *rest: None) -> torch.Tensor | None:
        return None if scores is None else _StraightThrough.backward(ctx, scores)[1]


def refuse_scores(weight: torch.Tensor, scores: torch.Tensor) -> None:
    """Raise ValueError for scores that do not fit the weight."""
    shape = tuple(weight.shape)
    raise ValueError(f"scores: {scores.dtype} {tuple(scores.shape)}, must be torch.float32 {shape}")


def _refuse_gradient(grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> None:
    if scores.dtype != torch.float32 or scores.shape != weight.shape:
        refuse_scores(weight, scores)
    if grad.shape != weight.shape:
        raise ValueError(f"grad {tuple(grad.shape)}: must be {tuple(weight.shape)} as weight is")
    check_device(weight=weight, scores=scores, grad=grad)
