"""Lemma 7 of arXiv 2511.04217 as a construction: hide a linear map in a product of two random matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from slth.construct import factors
from slth.construct.checks import array, check_finite, check_kind, check_scales
from slth.construct.construction import Construction
from slth.construct.factors import FactorMasks, Side, better_side, tensors
from slth.construct.subset_sum import BoolArray, FloatArray
from slth.models.transformer import Product


class Factors(nn.Module):
    """The map x (..., d_in) -> x first second of two arrays, first (..., d_in, hidden), in float64."""

    def __init__(self, first: FloatArray, second: FloatArray) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Parameter(torch.from_numpy(factor), requires_grad=False) for factor in (first, second)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., d_in) -> (..., d_out)."""
        return x @ self.first @ self.second


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LinearConstruction(Construction):
    """Masks of "first" and "second" with which their product approximates a matrix, and the error "product".

    side: the factor whose mask is structural, "input": first, "output": second. beyond, bool (..., d_in, d_out): the
    entry lies outside the range of its candidates' sums, so no solver could reach it.
    """

    side: Side
    beyond: BoolArray

    kinds = (Product, Factors)
    allowed = "a slth.models.transformer.Product, or the source of a construction of arrays"

    @property
    def mask_first(self) -> BoolArray:
        """The mask of first as an array, bool."""
        mask: BoolArray = self.masks["first"].numpy()
        return mask

    @property
    def mask_second(self) -> BoolArray:
        """The mask of second as an array, bool."""
        mask: BoolArray = self.masks["second"].numpy()
        return mask


def linear(
    target: FloatArray, first: FloatArray, second: FloatArray, *, side: Side = "input", threads: int | None = None
) -> LinearConstruction:
    """Find masks of arrays first (..., d_in, hidden) and second (..., hidden, d_out) with a product near target.

    Arguments and errors are those of :func:`slth.construct.factors.solve`. The construction's source holds copies of
    both arrays.
    """
    masks = factors.solve(target, first, second, side=side, threads=threads)
    target, first, second = array("target", target), array("first", first), array("second", second)
    return _construction(Factors(first, second), target, masks, 1.0)


@torch.no_grad()
def product(
    target: torch.Tensor, source: Product, *, side: Side | Literal["auto"] = "auto", threads: int | None = None
) -> LinearConstruction:
    """Find masks with which source, a random product times its recorded scale, approximates target (rows, columns).

    side: as in :func:`slth.construct.factors.solve`, or "auto", the side with more candidates. Computed in float64.
    Raises TypeError for another kind of source; ValueError for shapes that do not fit, values that are not finite, and
    a scale of 0.
    """
    matrix = torch.from_numpy(array("target", target))
    check_product(matrix, source)
    if side == "auto":
        side = better_side(*matrix.shape)
    scale = source.scale.to("cpu", torch.float64)
    first, second = array("first", source.first), array("second", source.second)
    masks = factors.solve((matrix / scale).numpy(), first, second, side=side, threads=threads)
    return _construction(source, matrix.numpy(), masks, float(scale))


def check_product(target: torch.Tensor, source: Any, name: str = "source") -> None:
    """Raise as :func:`product` does if target cannot be hidden in source; `name` is the source's name in errors."""
    check_kind(name, source, Product, "a slth.models.transformer.Product")
    given = (source.first.shape[0], source.second.shape[1])
    if given != tuple(target.shape):
        raise ValueError(f"{name} is {given}: must be {tuple(target.shape)}")
    check_finite(name, source)
    check_scales(name, source)


def _construction(
    source: Product | Factors, target: FloatArray, masks: FactorMasks, scale: float
) -> LinearConstruction:
    first, second = (array(name, getattr(source, name)) for name in ("first", "second"))
    error = (first * masks.mask_first) @ (second * masks.mask_second) * scale - target
    return LinearConstruction(
        source=source,
        masks=tensors({"first": masks.mask_first, "second": masks.mask_second}),
        errors={"product": torch.from_numpy(error)},
        unreachable=int(masks.unreachable.sum()),
        entries=masks.unreachable.size,
        candidates=masks.candidates,
        side=masks.side,
        beyond=masks.unreachable,
    )
