"""Lemma 7 of arXiv 2511.04217 on arrays: masks of two random factors whose product approximates a matrix.

`slth.construct.linear` and `slth.construct.product` return these masks as a construction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from slth.construct import subset_sum
from slth.construct.checks import array, check_threads
from slth.construct.subset_sum import BoolArray, FloatArray

IntArray = npt.NDArray[np.int64]
Side = Literal["input", "output"]
SIDES: tuple[Side, ...] = ("input", "output")


@dataclass(frozen=True)
class FactorMasks:
    """Masks for which (first * mask_first) @ (second * mask_second) approximates the target.

    Attributes:
        mask_first: bool (..., d_in, hidden).
        mask_second: bool (..., hidden, d_out).
        unreachable: bool (..., d_in, d_out); the target entry lies outside the range of its candidates' sums, so no
            solver could reach it.
        side: the factor whose mask is structural, "input": first, "output": second.
        candidates: the fewest candidates of any entry.
    """

    mask_first: BoolArray
    mask_second: BoolArray
    unreachable: BoolArray
    side: Side
    candidates: int


def blocks(hidden: int, parts: int) -> list[slice]:
    """Split range(hidden) into consecutive blocks of hidden // parts; the first blocks take one more of the rest."""
    size, longer = divmod(hidden, parts)
    starts = [i * size + min(i, longer) for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(starts)]


def structure(parts: int, hidden: int) -> BoolArray:
    """Make the structural mask (parts, hidden) of :func:`solve`: each hidden unit is in one part, as in `blocks`."""
    mask = np.zeros((parts, hidden), np.bool_)
    for part, units in zip(mask, blocks(hidden, parts), strict=True):
        part[units] = True
    return mask


def tensors(masks: dict[str, BoolArray]) -> dict[str, torch.Tensor]:
    """Copy masks into tensors."""
    return {name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in masks.items()}


def better_side(d_in: int, d_out: int) -> Side:
    """Return the side with more candidates per entry, hidden / d_in or hidden / d_out; on ties the paper's, "input"."""
    return "output" if d_out < d_in else "input"


def solve(
    target: FloatArray, first: FloatArray, second: FloatArray, *, side: Side = "input", threads: int | None = None
) -> FactorMasks:
    """Find masks of first (..., d_in, hidden) and second (..., hidden, d_out) whose product is near the target.

    target: (..., d_in, d_out).

    With side="input" (the paper's), hidden unit k has one input coordinate only, by a block-structured mask of first.
    Each entry (i, j) is then one subset sum over the products first[i, k] * second[k, j] of block i, whose solution is
    the mask of second[k, j]. With side="output", each unit has one output instead, and the sums give the mask of first.
    Leading axes are independent problems. Computed in float64.

    Raises ValueError for shapes that do not fit, hidden < d_in (side "input") or < d_out (side "output"), another side,
    and values that are not finite.
    """
    if side not in SIDES:
        raise ValueError(f"side={side!r}: must be one of {', '.join(SIDES)}")
    target, first, second = array("target", target), array("first", first), array("second", second)
    threads = check_threads(threads)
    *batch, d_in, d_out = target.shape
    hidden = first.shape[-1]
    if first.shape != (*batch, d_in, hidden) or second.shape != (*batch, hidden, d_out):
        raise ValueError(
            f"first {first.shape} and second {second.shape}: must be (..., d_in, hidden) and (..., hidden, d_out) "
            f"for a target {target.shape}"
        )
    if side == "output":
        turned = solve(
            *(np.swapaxes(a, -1, -2) for a in (target, second, first)),
            side="input",
            threads=threads,
        )
        return FactorMasks(
            mask_first=np.swapaxes(turned.mask_second, -1, -2),
            mask_second=np.swapaxes(turned.mask_first, -1, -2),
            unreachable=np.swapaxes(turned.unreachable, -1, -2),
            side="output",
            candidates=turned.candidates,
        )
    if hidden < d_in:
        raise ValueError(
            f"hidden={hidden}: must be >= {d_in}, the coordinates that each need a hidden unit of their own"
        )
    check_factors(target, first, second)

    mask_first = np.zeros(first.shape, np.bool_)
    mask_second = np.zeros(second.shape, np.bool_)
    unreachable = np.zeros(target.shape, np.bool_)
    for rows, units, candidates in _groups(first, second):
        wanted = target[..., rows, :]  # (..., rows, d_out)
        solved = subset_sum.solve(candidates.reshape(-1, units.shape[1]), wanted.reshape(-1), threads=threads)
        mask_first[..., rows[:, None], units] = True
        mask_second[..., units, :] = np.swapaxes(solved.masks.reshape(candidates.shape), -1, -2)
        unreachable[..., rows, :] = out_of_reach(candidates, wanted)
    return FactorMasks(mask_first, mask_second, unreachable, "input", hidden // d_in)


def check_factors(target: FloatArray, first: FloatArray, second: FloatArray) -> None:
    """Raise ValueError unless all values are finite, and all products of first and second."""
    for name, values in (("target", target), ("first", first), ("second", second)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite values: all must be finite")
    largest = [float(np.abs(values).max(initial=0.0)) for values in (first, second)]
    if largest[0] * largest[1] == np.inf:
        raise ValueError(f"first and second reach {largest[0]:g} and {largest[1]:g}: products must be finite")


def _groups(first: FloatArray, second: FloatArray) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Yield the subset sums of side="input" in groups of equal block size, of which there are at most two.

    Yields (input coordinates (rows,), their hidden units (rows, size), candidates (..., rows, d_out, size)).
    """
    d_in, hidden = first.shape[-2:]
    parts = blocks(hidden, d_in)
    for size in sorted({block.stop - block.start for block in parts}):
        rows = np.array([i for i, block in enumerate(parts) if block.stop - block.start == size])
        units = np.array([range(parts[i].start, parts[i].stop) for i in rows])  # (rows, size)
        listening = first[..., rows[:, None], units]  # (..., rows, size)
        yield rows, units, np.swapaxes(listening[..., None] * second[..., units, :], -1, -2)


def reach(first: FloatArray, second: FloatArray, *, side: Side = "input") -> tuple[FloatArray, FloatArray]:
    """Return the least and the largest value (..., d_in, d_out) that :func:`solve` can reach at each entry."""
    if side == "output":
        low, high = reach(np.swapaxes(second, -1, -2), np.swapaxes(first, -1, -2))
        return np.swapaxes(low, -1, -2), np.swapaxes(high, -1, -2)
    low = np.empty((*first.shape[:-1], second.shape[-1]))
    high = low.copy()
    for rows, _, candidates in _groups(first, second):
        low[..., rows, :], high[..., rows, :] = span(candidates)
    return low, high


def span(candidates: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the least and the largest subset sum of candidates (..., n), each (...,), added up in index order."""
    low, high = np.zeros(candidates.shape[:-1]), np.zeros(candidates.shape[:-1])
    for k in range(candidates.shape[-1]):
        low += np.minimum(candidates[..., k], 0.0)
        high += np.maximum(candidates[..., k], 0.0)
    return low, high


def out_of_reach(candidates: FloatArray, wanted: FloatArray) -> BoolArray:
    """Tell where wanted (...,) lies outside the range of the subset sums of candidates (..., n)."""
    low, high = span(candidates)
    out: BoolArray = (wanted < low) | (wanted > high)
    return out
