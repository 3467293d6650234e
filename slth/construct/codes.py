"""Structured codes: one mask for a block of d weights, found by pruning whole units of a random two-layer map.

Each hidden unit has one input and one block of d outputs, with a random vector in R^d as its output weights. The
vectors of the kept units add up to the block's weights; a mask has one bit per unit. With units in pairs of opposite
vectors, of which exactly one is kept, the sum is a signed sum of N vectors, centred at 0, and the mask has one bit per
pair. The vectors are normal, or orthonormal in groups of d. For orthonormal ones the nearest of all 2^N sums is found
in 2^(N - d) d steps (`slth.construct.bases`), otherwise by meet in the middle (`slth.construct.nearest`).

    construction = slth.construct.encode(matrix, slth.construct.Code(bits=2))
    construction.merged                       # (rows, columns), float64
    construction.masks, construction.bits     # one bit per unit; bits per weight, with the recorded scales

`slth.theory.random_code` tells how near such a code comes to the information limit: 1.07 dB for d = 16.
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
SAMPLE = 256  # blocks that each scale is tried on
SAMPLE_SEARCH = 4096  # most sums of a part that are tried then
GRID = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.45)  # scales to try, relative to that of a random code
OFF_CENTRE = 1.6  # further factor for 0/1 sums, whose centre is random


@dataclass(frozen=True)
class Code:
    """Options of a structured code.

    Args:
        bits: bits of the mask per weight; bits * block must be an int.
        block: d, the weights of a row that share a mask. None: 16 up to 2 bits, else 8.
        pairs: True: units come in pairs of opposite vectors, of which one is kept (one bit per pair). False: each unit
            is kept or not.
        orthogonal: True: vectors are orthonormal in groups of d. False: they are normal.
        scale: what has its own recorded scale of 16 bits: the "matrix", each "row", or each group of this many weights
            of a row, a multiple of block.
        search: sums to try of a part with too many sums to try all, see `slth.construct.bases`. None: 4,096 up to 3
            bits, else 16,384.

    Raises ValueError for other values, and for more vectors than a search supports.
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
        """N, the bits of a block's mask."""
        assert self.block is not None
        return round(self.bits * self.block)

    @property
    def _most(self) -> int:
        assert self.block is not None
        return self.block + bases.MIDDLE + bases.HEAD if self.orthogonal else nearest.MOST


class BlockProduct(Recorded):
    """A random two-layer map (..., rows) -> (..., columns) whose units each connect one input to one block of outputs.

    first (rows, blocks, units) holds each unit's input weight, 1 or -1; second (rows, blocks, units, d) holds its
    output weights. scale (rows or 1, groups), bfloat16, multiplies groups of columns of equal size. With `code.pairs`
    units 2k and 2k + 1 have equal first and opposite second weights. Columns are padded to whole blocks.
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
        """Compute the matrix (rows, columns), float64."""
        return block_sums(self.first, self.second, self.scales())

    def scales(self) -> torch.Tensor:
        """Return the scale of each entry, float64, (rows or 1, columns)."""
        return spread(self.scale, self.code, self.columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., rows) -> (..., columns)."""
        return x @ self.matrix().to(x)


def spread(scale: torch.Tensor, code: Code, columns: int) -> torch.Tensor:
    """Expand the recorded scales of a :class:`BlockProduct` to one per entry, float64, (rows or 1, columns)."""
    group = columns if isinstance(code.scale, str) else code.scale
    return scale.double().repeat_interleave(group, dim=1)[:, :columns]


def block_sums(first: torch.Tensor, second: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Compute the matrix (rows, columns), float64, of a :class:`BlockProduct` from its weights and entries' scales."""
    blocks = torch.from_numpy(_sums(first.detach().numpy(), second.detach().numpy()))
    return blocks.flatten(1)[:, : scales.shape[1]] * scales


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CodeConstruction(Construction):
    """Masks of the units of a :class:`BlockProduct` that approximate a matrix, and the error "product".

    merged: the matrix of the pruned source, float64. bits: bits of masks and recorded scales per weight. above_limit:
    decibels of the mean squared error above the least that is possible at this rate for Gaussian weights of the
    target's mean square.
    """

    merged: torch.Tensor
    bits: float

    kinds = (BlockProduct,)
    allowed = "a slth.construct.codes.BlockProduct"

    @property
    def error(self) -> float:
        """The mean squared error relative to the target's mean square; 0 for a target of zeros."""
        error = self.errors["product"]
        power = float((self.merged - error).square().mean())
        return float(error.square().mean()) / power if power else 0.0

    @property
    def above_limit(self) -> float:
        """Decibels of the error above the information limit at the same bits; -inf without an error."""
        return theory.above_limit(self.error, self.bits) if self.error else -math.inf

    def _more(self) -> str:
        return f", {self.bits:.4g} bits a weight, {self.above_limit:.2f} dB above the limit"


def encode(
    target: torch.Tensor | FloatArray, code: Code, *, seed: int = 0, name: str = "", threads: int | None = None
) -> CodeConstruction:
    """Hide a matrix (rows, columns) in a new random :class:`BlockProduct`, whose scales are fitted as well.

    seed and name determine its random weights. Computed in float64, the search in float32. Raises ValueError as
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
    """Find masks of source's units, one bit each or one per pair, with which it approximates target (rows, columns).

    The source keeps its recorded scales. Raises TypeError for another kind of source; ValueError for shapes that do not
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
    """Fit source.scale to target, in place.

    Each group's scale is its root mean square times a factor, the one of a grid with the least error on a sample of
    blocks. Raises as :func:`block_product` does, before any change.
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
    """Set source's scales and return the squared error of a sample of blocks."""
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
    """Targets (P, d), which are blocks divided by their scales (P, 1), and the vectors (P, N, d) of their sums."""

    code: Code
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    targets: FloatArray
    scales: FloatArray

    @staticmethod
    def of(matrix: FloatArray, source: BlockProduct) -> _Problem:
        """State the problem of a matrix and a source. Raises as :func:`block_product` does."""
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
        """The number of sums of a part to try."""
        return int(self.code.search or 1)

    def signs(self, which: Any, search: int, threads: int | None = None) -> BoolArray:
        """Solve for the signs (P, N) of some blocks; True keeps the unit, or the first of its pair."""
        code, vectors, targets = self.code, self.vectors[which], self.targets[which]
        if not code.pairs:  # sum of m c with m in {0, 1} = half of (sum of c + sum of +-c)
            targets = 2.0 * targets - vectors.sum(axis=1, dtype=np.float64)
        d = vectors.shape[2]
        if code.orthogonal and code.vectors >= d:
            return bases.solve(vectors, targets, keep=search, threads=threads)
        return nearest.solve(vectors, targets, keep=min(search, 512), threads=threads)

    def sums(self, which: Any, signs: BoolArray) -> FloatArray:
        """Compute the sums (P, d) for these signs of some blocks."""
        factors = np.where(signs, 1.0, -1.0) if self.code.pairs else signs.astype(np.float64)
        return _sums(factors, self.vectors[which])

    def unreachable(self) -> int:
        """Count the entries outside the range of their candidates' sums."""
        if self.code.pairs:
            high = np.abs(self.vectors).sum(axis=1)
            low = -high
        else:
            low, high = (part(self.vectors, 0.0).sum(axis=1) for part in (np.minimum, np.maximum))
        return int(((self.targets < low) | (self.targets > high)).sum())


def _sums(first: Any, second: Any) -> FloatArray:
    """Sum vectors (..., units, d) times factors (..., units) over units in float64."""
    out: FloatArray = np.einsum("...k,...kj->...j", first, second, dtype=np.float64, casting="same_kind")
    return out
