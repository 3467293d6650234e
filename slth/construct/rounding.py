"""Bounds on the rounding errors of an attention's outputs in float64, for any order of multiplication.

An attention multiplies chains of matrices: x W_Q W_K^T x'^T for its logits, x' W_V W_O for its outputs, with recorded
scales and mixing tensors in between. It may multiply the factors one by one or merge some of them first. In any order
the rounding error of an entry is at most `steps` eps times the sum of the absolute values of all products that it is
the sum of. That sum is the entry of the same chain of absolute values, |W_Q| |W_K|^T, which is far above the product
itself where large factors cancel. So the relevant norms are, for each head,

    A_h = | |W_Q,h| |W_K,h|^T |_2    and    B_h = | |W_V,h| |W_O,h| |_2,

including the absolute values of scales and mixing tensors. The rounding error of logits is then at most
r_h = steps eps alpha^2 A_h. It moves a head's average by at most 2 alpha tanh(r_h/2) (see
`slth.construct.certificates`), and its output by |VO_h|_2 times that. Values, softmax and output add
steps eps alpha B_h. Here eps = 2^-52, and `steps` is above the number of additions in any chain, for outputs including
the sums over `length` tokens.

Underflow adds at most 2^-1074 per operation, times the gain of the rest of the chain. That gain is at most P_h, the
same merged chain of matrices whose entries are all the largest of the weight, or 1. If P_h, times alpha^2 or alpha
where these are above 1, is near the largest float64, an intermediate result may overflow, and the bound is infinite.

In float32 eps is 2^29 times as large, and so is the bound, as long as no value leaves float32's range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from slth.attention import Attention
from slth.construct.copies import copied

#: (W_QK (..., heads, d_in, d_in) with its scale, W_VO (..., heads, d_in, d_out))
Merged = tuple[torch.Tensor, torch.Tensor]
Module = TypeVar("Module", bound=nn.Module)

_EPS = torch.finfo(torch.float64).eps
_LEAST = 5e-324  # the smallest float64 above 0
_HUGE = 1e307


@dataclass(frozen=True)
class Sizes:
    """The norms that rounding is relative to, for inputs of norm 1, each (..., heads) float64.

    logits, outputs: A_h and B_h (see this module's text). longest_logits, longest_outputs: P_h of the two chains.
    steps: bound on the additions in any chain, without those over tokens.
    """

    logits: torch.Tensor
    outputs: torch.Tensor
    longest_logits: torch.Tensor
    longest_outputs: torch.Tensor
    steps: int

    @staticmethod
    def of(module: Attention) -> Sizes:
        """Compute them for an attention that merges, float64, evaluated in any order."""
        logits, outputs = (spectral_norm(matrix.abs()) for matrix in absolute(module).merged())
        longest = [matrix.abs().amax((-2, -1)) for matrix in largest(module).merged()]
        return Sizes(logits, outputs, longest[0], longest[1], steps_of(module.parameters()))

    @staticmethod
    def of_merged(merged: Merged) -> Sizes:
        """Compute them for merged matrices without known factors, as in `slth.attention.merged_attention`."""
        logits, outputs = (spectral_norm(matrix.abs()) for matrix in merged)
        longest = [matrix.abs().amax((-2, -1)).clamp_min(1.0) * matrix.shape[-2] for matrix in merged]
        return Sizes(logits, outputs, longest[0], longest[1], steps_of(merged))

    def rounding(self, values: torch.Tensor, alpha: float, length: int) -> torch.Tensor:
        """Bound (...,) the rounding errors of the outputs; values (..., heads): alpha |VO_h|_2."""
        grown = max(alpha, 1.0)
        return rounding(
            alpha * (alpha * self.logits),
            alpha * self.outputs,
            values,
            longest_logits=grown * (grown * self.longest_logits),
            longest_outputs=grown * self.longest_outputs,
            steps=self.steps,
            length=length,
        )


class Evaluated(tuple[torch.Tensor, torch.Tensor]):
    """Merged matrices (W_QK, W_VO), float64, with the norms that their rounding is relative to."""

    sizes: Sizes

    def __new__(cls, merged: Merged, sizes: Sizes) -> Evaluated:
        """Attach sizes to merged matrices."""
        evaluated = super().__new__(cls, merged)
        evaluated.sizes = sizes
        return evaluated

    def __getnewargs__(self) -> tuple[Merged, Sizes]:
        return (self[0], self[1]), self.sizes


def rounding(
    logits: torch.Tensor,
    outputs: torch.Tensor,
    values: torch.Tensor,
    *,
    longest_logits: torch.Tensor,
    longest_outputs: torch.Tensor,
    steps: int,
    length: int,
) -> torch.Tensor:
    """Bound (...,) the rounding errors of the outputs.

    The arguments are (..., heads): alpha^2 A_h (logits), alpha B_h (outputs), alpha |VO_h|_2 (values), and P_h of the
    two chains, times alpha.
    """
    moved = average_moved(steps * _EPS * logits + _LEAST * steps**2 * longest_logits)
    steps += 2 * length
    each = moved * values + steps * _EPS * outputs + _LEAST * steps**2 * longest_outputs
    in_range = (longest_logits < _HUGE) & (longest_outputs < _HUGE)
    return torch.where(in_range, each, torch.inf).sum(-1)


def average_moved(m: torch.Tensor) -> torch.Tensor:
    """Compute 2 tanh(m/2) <= m: an average moves by at most alpha times this if no logit moves by more than m."""
    return torch.where(m < 1e-8, m, 2.0 * torch.tanh(0.5 * m))  # torch's tanh rounds 1e-300 to 0


def spectral_norm(matrix: torch.Tensor) -> torch.Tensor:
    """Compute the spectral norm |.|_2 over the last two axes; infinite for a matrix with values that are not finite."""
    finite = matrix.isfinite().all(-1).all(-1)
    norm: torch.Tensor = torch.linalg.matrix_norm(matrix.where(finite[..., None, None], 0.0), ord=2)
    return norm.where(finite, torch.inf)


def steps_of(weights: Iterable[torch.Tensor]) -> int:
    """Bound the number of additions in a chain of these weights: each axis, heads too, is summed over at most once."""
    shapes = [tuple(weight.shape) for weight in weights]
    return 32 + max(shape[-3] for shape in shapes if len(shape) > 2) + sum(sum(shape[-2:]) for shape in shapes)


def absolute(module: Module) -> Module:
    """Copy a module with the absolute values of all weights and scales; parameters that are vectors stay unchanged."""
    return _replaced(module, torch.abs)


def largest(module: Module) -> Module:
    """Copy a module with every weight and scale replaced by the largest absolute value of its tensor, at least 1."""
    return _replaced(module, lambda weight: torch.full_like(weight, 1.0) * weight.abs().amax().clamp_min(1.0))


def _replaced(module: Module, by: Callable[[torch.Tensor], torch.Tensor]) -> Module:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        vector = isinstance(tensor, nn.Parameter) and tensor.dim() < 2
        as_is = vector or not tensor.is_floating_point() or not tensor.numel()
        return tensor.detach().clone() if as_is else by(tensor.detach())

    return copied(module, change)
