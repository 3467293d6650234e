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
    """The straight-through gradient of |score| (Ramanujan et al. 2020): grad * weight, with the score's sign, + at 0.

    Three tensors of one shape, grad and weight float, scores float32, the result like them. Where gradients of its own
    may be asked for, "auto" leaves it to torch's operations. Raises ValueError for shapes, dtypes or devices that do
    not fit.
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
    """The masked weight `pruned`, with the gradient of weight * |score| to the scores alone (Ramanujan et al. 2020).

    Args:
        weight: before masking.
        scores: float32 of the weight's shape.
        pruned: where the mask keeps it the weight, else 0.
        free: bool of the weight's shape: scores elsewhere get no gradient.
        impl: of :func:`score_gradient`.
    """
    kind: type[Function] = _StraightThrough if torch.compiler.is_compiling() else _StraightThroughBothWays
    # Function.apply binds arguments anew at every call, for the transforms of torch.func and for defaults: else in vain
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
    """With tangents for forward mode; torch.compile refuses a Function that has any, hence the other one."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _StraightThrough.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], inputs[1], inputs[3])

    @staticmethod
    def jvp(ctx: Any, weight: None, scores: torch.Tensor | None, *rest: None) -> torch.Tensor | None:
        return None if scores is None else _StraightThrough.backward(ctx, scores)[1]


def refuse_scores(weight: torch.Tensor, scores: torch.Tensor) -> None:
    """Raise the ValueError for scores that do not fit the weight."""
    shape = tuple(weight.shape)
    raise ValueError(f"scores: {scores.dtype} {tuple(scores.shape)}, must be torch.float32 {shape}")


def _refuse_gradient(grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor) -> None:
    if scores.dtype != torch.float32 or scores.shape != weight.shape:
        refuse_scores(weight, scores)
    if grad.shape != weight.shape:
        raise ValueError(f"grad {tuple(grad.shape)}: must be {tuple(weight.shape)} as weight is")
    check_device(weight=weight, scores=scores, grad=grad)
