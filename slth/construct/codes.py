"""Structured codes: one mask for a block of d weights, found by pruning whole units of a random two-layer map.

Each hidden unit listens to one input and feeds one block of d outputs, by a random vector in R^d: what a mask keeps
adds up to the block's weights, one bit a unit. With units in pairs of opposite vectors, of which one is kept, the sum
is one of N vectors, each with its own sign: centred at 0, for one bit a pair. The vectors are normal, or orthonormal
d at a time: then the nearest of all 2^N sums is found in 2^(N - d) d steps (`slth.construct.bases`), else by two halves
(`slth.construct.nearest`).

    construction = slth.construct.encode(matrix, slth.construct.Code(bits=2))
    construction.merged                       # (rows, columns), float64
    construction.masks, construction.bits     # one bit a unit; bits a weight, recorded scales among them

How near such a code comes to the information limit is what `slth.theory.random_code` says: 1.07 dB for d = 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from slth import theory
from slth.building import Recorded
from slth.construct import bases, nearest
from slth.construct.checks import array, check_finite, check_kind, check_scales, check_threads
from slth.construct.construction import Construction
from slth.construct.subset_sum import BoolArray, FloatArray
from slth.numbers import as_float, as_int, put
from slth.weights.recipes import Draw, Recipe, fill

SCALE_BITS = 16  # of a recorded scale: bfloat16
SAMPLE = 256  # blocks that a scale is tried on
SAMPLE_SEARCH = 4096  # sums of a part that are looked at then, at most
GRID = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.45)  # scales tried, over that of a random code
OFF_CENTRE = 1.6  # the same for sums of 0/1, whose middle is random


@dataclass(frozen=True)
class Code:
    """How a matrix is coded.

    Args:
        bits: of the mask, a weight; bits * block must be an int.
        block: weights of a row that share a mask, d; None: 16 up to 2 bits, else 8.
        pairs: units come in pairs of opposite vectors, of which one is kept (one bit a pair); else each is kept or not.
        orthogonal: vectors are orthonormal, d at a time; else they are normal.
        scale: what has a recorded scale of its own, 16 bits each: "matrix", "row", or so many weights of a row, a
            multiple of block.
        search: sums of a part that is too long to take all of them, see `slth.construct.bases`; None: 4,096 up to 3
            bits, else 16,384.

    Raises ValueError for anything else, and for more vectors than a search takes.
    """

    bits: float = 2.0
    block: int | None = None
    pairs: bool = True
    orthogonal: bool = True
    scale: Literal["matrix", "row"] | int = "matrix"
    search: int | None = None

    def __post_init__(self) -> None:
        bits = as_float("bits", self.bits, "(0, 40]")
        block = as_int("block", (16 if bits <= 2 else 8) if self.block is None else self.block, 1)
        search = (4096 if bits <= 3 else 16_384) if self.search is None else self.search
        put(self, bits=bits, block=block, search=as_int("search", search, 1))
        if self.scale not in ("matrix", "row"):
            put(self, scale=as_int("scale", self.scale, 1))
            if int(self.scale) % block:
                raise ValueError(f"scale={self.scale}: must be matrix, row or a multiple of block={block}")
        if abs(bits * block - self.vectors) > 1e-9 or not 1 <= self.vectors <= self._most:
            raise ValueError(f"bits={bits}: times block={block} must be an int in [1, {self._most}]")

    @property
    def vectors(self) -> int:
        """The bits of a block's mask, N."""
        assert self.block is not None
        return round(self.bits * self.block)

    @property
    def _most(self) -> int:
        assert self.block is not None
        return self.block + bases.MIDDLE + bases.HEAD if self.orthogonal else nearest.MOST


class BlockProduct(Recorded):
    """A random two-layer map (..., rows) -> (..., columns) whose units go from one input to one block of outputs.

    first (rows, blocks, units) is what a unit takes of its input, 1 or -1; second (rows, blocks, units, d) is what it
    gives to each output of its block; scale, bfloat16, (rows or 1, groups), multiplies equal groups of columns. With
    `code.pairs` units 2k and 2k + 1 have equal first and opposite second weights. Columns are filled up to blocks.
    """

    first: nn.Parameter
    second: nn.Parameter
    scale: torch.Tensor

    def __init__(self, rows: int, columns: int, code: Code, *, seed: int = 0, name: str = "") -> None:
        super().__init__()
        self.rows, self.columns, self.code = as_int("rows", rows, 1), as_int("columns", columns, 1), code
        d, n, each = int(code.block or 1), code.vectors, 2 if code.pairs else 1
        shape = (self.rows, -(-self.columns // d), each * n, d)
        draws = {"first": Draw("sign", 1.0, seed, f"{name}.first")}
        draws["second"] = (
            Draw("orthogonal", 1.0, seed, f"{name}.second")
            if code.orthogonal
            else Draw("normal", d**-0.5, seed, f"{name}.second")
        )
        self.first, self.second = (nn.Parameter(torch.empty(size), requires_grad=False) for size in (shape[:3], shape))
        signs = {"first": 1, "second": -1}
        fill(self, {w: Recipe((draws[w],), pairs=(2, signs[w]) if code.pairs else None) for w in draws})
        group = self.columns if isinstance(code.scale, str) else code.scale
        groups = (1 if code.scale == "matrix" else self.rows, -(-self.columns // group))
        self.register_buffer("scale", torch.ones(groups, dtype=torch.bfloat16))

    def matrix(self) -> torch.Tensor:
        """The matrix (rows, columns), float64."""
        return block_sums(self.first, self.second, self.scales())

    def scales(self) -> torch.Tensor:
        """The scale of each entry, float64, (rows or 1, columns)."""
        return spread(self.scale, self.code, self.columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X (..., rows) -> (..., columns)."""
        return x @ self.matrix().to(x)


def spread(scale: torch.Tensor, code: Code, columns: int) -> torch.Tensor:
    """The scale of each entry, float64, (rows or 1, columns), of those that a :class:`BlockProduct` records."""
    group = columns if isinstance(code.scale, str) else code.scale
    return scale.double().repeat_interleave(group, dim=1)[:, :columns]


def block_sums(first: torch.Tensor, second: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The matrix (rows, columns), float64, of a :class:`BlockProduct` with these weights and scales of entries."""
    blocks = torch.from_numpy(_sums(first.detach().numpy(), second.detach().numpy()))
    return blocks.flatten(1)[:, : scales.shape[1]] * scales


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CodeConstruction(Construction):
    """Masks of the units of a :class:`BlockProduct` under which it is near a matrix, and the error "product".

    merged: the pruned source's matrix, float64. bits: a weight, of masks and recorded scales. above_limit: decibels of
    the mean squared error above the least that so many bits can have, for Gaussian weights of the target's mean square.
    """

    merged: torch.Tensor
    bits: float

    kinds = (BlockProduct,)
    allowed = "a slth.construct.codes.BlockProduct"

    @property
    def error(self) -> float:
        """The mean squared error over the target's mean square; 0 for a target of zeros."""
        error = self.errors["product"]
        power = float((self.merged - error).square().mean())
        return float(error.square().mean()) / power if power else 0.0

    @property
    def above_limit(self) -> float:
        """Decibels above the information limit at the bits that it takes; -inf without an error."""
        return theory.above_limit(self.error, self.bits) if self.error else -math.inf

    def _more(self) -> str:
        return f", {self.bits:.4g} bits a weight, {self.above_limit:.2f} dB above the limit"


def encode(
    target: torch.Tensor | FloatArray, code: Code, *, seed: int = 0, name: str = "", threads: int | None = None
) -> CodeConstruction:
    """Hide a matrix (rows, columns) in a random :class:`BlockProduct` of its own, scales and all.

    seed and name say which. In float64 but for the search, which is in float32. Raises ValueError as
    :func:`block_product` does.
    """
    matrix = array("target", target)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"target of shape {matrix.shape}: must be (rows, columns), neither of them 0")
    rows, columns = matrix.shape
    source = BlockProduct(rows, columns, code, seed=seed, name=name)
    record_block_scales(matrix, source)
    return block_product(matrix, source, threads=threads)


@torch.no_grad()
def block_product(
    target: torch.Tensor | FloatArray, source: BlockProduct, *, threads: int | None = None
) -> CodeConstruction:
    """Find masks of source's units, one bit each or one a pair, under which it is near target (rows, columns).

    source is taken with its recorded scales. Raises TypeError for another source, ValueError for shapes that do not
    fit, values that are not finite, and a scale of 0.
    """
    matrix, threads = array("target", target), check_threads(threads)
    problem = _Problem.of(matrix, source)
    signs = problem.signs(slice(None), problem.search, threads=threads)
    mask = np.stack((signs, ~signs), axis=-1) if source.code.pairs else signs
    mask = mask.reshape(source.first.shape)
    kept = torch.from_numpy(mask)
    merged = block_sums(source.first * kept, source.second, source.scales())
    return CodeConstruction(
        source=source,
        masks={"first": kept},
        errors={"product": merged - torch.from_numpy(matrix)},
        unreachable=problem.unreachable(),
        entries=matrix.size,
        candidates=source.code.vectors,
        merged=merged,
        bits=(signs.size + SCALE_BITS * source.scale.numel()) / matrix.size,
    )


@torch.no_grad()
def record_block_scales(target: torch.Tensor | FloatArray, source: BlockProduct) -> None:
    """Set source.scale in place: each group's own root mean square times the best of a grid, tried on some blocks.

    Raises an error, before any change, as :func:`block_product` does.
    """
    matrix = array("target", target)
    _Problem.of(matrix, source)
    code, group = source.code, -(-source.columns // source.scale.shape[1])
    padded = np.full((len(matrix), group * source.scale.shape[1]), np.nan)
    padded[:, : source.columns] = matrix
    square = np.square(padded.reshape(len(matrix), -1, group))
    size = np.sqrt(np.nanmean(square, axis=(0, 2) if len(source.scale) == 1 else 2)).reshape(source.scale.shape)
    size[size == 0.0] = 1.0
    d = int(code.block or 1)
    size *= math.sqrt(theory.code_variance(d) * d / code.vectors) * (1.0 if code.pairs else 2.0 * OFF_CENTRE)
    errors = [_sampled_error(matrix, source, torch.from_numpy(size * factor)) for factor in GRID]
    source.scale.copy_(torch.from_numpy(size * GRID[int(np.argmin(errors))]))


def _sampled_error(matrix: FloatArray, source: BlockProduct, scale: torch.Tensor) -> float:
    """The squared error of some blocks with source's scales set to these."""
    source.scale.copy_(scale)
    problem = _Problem.of(matrix, source)
    search = min(problem.search, SAMPLE_SEARCH)
    count = len(problem.targets)
    some = np.unique(np.linspace(0, count - 1, SAMPLE).round().astype(int))
    signs = problem.signs(some, search)
    sums = problem.sums(some, signs)
    return float((np.square(sums - problem.targets[some]) * problem.scales[some] ** 2).sum())


@dataclass(frozen=True)
class _Problem:
    """Blocks (P, d) over their scales (P, 1), and the vectors (P, N, d) that add up to them."""

    code: Code
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    targets: FloatArray
    scales: FloatArray

    @staticmethod
    def of(matrix: FloatArray, source: BlockProduct) -> _Problem:
        """Raises an error as :func:`block_product` does."""
        check_kind("source", source, BlockProduct, CodeConstruction.allowed)
        if matrix.shape != (source.rows, source.columns):
            raise ValueError(f"target of shape {matrix.shape}: must be {(source.rows, source.columns)}, the source's")
        if not np.isfinite(matrix).all():
            raise ValueError("target holds NaN or infinite values: all must be finite")
        check_finite("source", source)
        check_scales("source", source)
        rows, blocks, _, d = source.second.shape
        step = 2 if source.code.pairs else 1
        vectors = source.second.numpy()[:, :, ::step] * source.first.numpy()[:, :, ::step, None]
        scales = np.broadcast_to(source.scales().numpy(), matrix.shape)
        targets = np.zeros((rows, blocks * d))
        targets[:, : source.columns] = matrix / scales
        return _Problem(
            source.code, vectors.reshape(rows * blocks, -1, d), targets.reshape(-1, d), scales[:, ::d].reshape(-1, 1)
        )

    @property
    def search(self) -> int:
        """Sums of a part that are looked at."""
        return int(self.code.search or 1)

    def signs(self, which: Any, search: int, threads: int | None = None) -> BoolArray:
        """The signs (P, N) of some blocks, True = kept: the first of its pair, or the unit."""
        code, vectors, targets = self.code, self.vectors[which], self.targets[which]
        if not code.pairs:  # a sum of m c, m in {0, 1}, is half of that of c and of that of +-c
            targets = 2.0 * targets - vectors.sum(axis=1, dtype=np.float64)
        d = vectors.shape[2]
        if code.orthogonal and code.vectors >= d:
            return bases.solve(vectors, targets, keep=search, threads=threads)
        return nearest.solve(vectors, targets, keep=min(search, 512), threads=threads)

    def sums(self, which: Any, signs: BoolArray) -> FloatArray:
        """What these signs of some blocks add up to, (P, d)."""
        factors = np.where(signs, 1.0, -1.0) if self.code.pairs else signs.astype(np.float64)
        return _sums(factors, self.vectors[which])

    def unreachable(self) -> int:
        """Entries beyond what their candidates span."""
        if self.code.pairs:
            high = np.abs(self.vectors).sum(axis=1)
            low = -high
        else:
            low, high = (part(self.vectors, 0.0).sum(axis=1) for part in (np.minimum, np.maximum))
        return int(((self.targets < low) | (self.targets > high)).sum())


def _sums(first: Any, second: Any) -> FloatArray:
    """Vectors (..., units, d) times factors (..., units), added up in float64."""
    out: FloatArray = np.einsum("...k,...kj->...j", first, second, dtype=np.float64, casting="same_kind")
    return out
