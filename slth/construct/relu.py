"""Lemma 2 and Theorem 10 of arXiv 2511.04217: ReLU networks hidden in random ones of twice the depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from slth.construct import subset_sum
from slth.construct.checks import array, check_apart, check_finite, check_kind, check_scales, check_threads
from slth.construct.construction import Construction
from slth.construct.copies import double
from slth.construct.factors import IntArray, check_factors, out_of_reach, span, tensors
from slth.construct.subset_sum import BoolArray, FloatArray
from slth.models.transformer import FeedForward


@dataclass(frozen=True)
class ReluMasks:
    """Masks for which ReLU(x (first * mask_first)) (second * mask_second) approximates x @ target.

    Attributes:
        mask_first: bool (d_in, hidden).
        mask_second: bool (hidden, d_out).
        unreachable: bool (2, d_in, d_out); outside the range of the candidates' sums, for positive and for negative
            inputs.
        candidates: the fewest candidates of any entry.
    """

    mask_first: BoolArray
    mask_second: BoolArray
    unreachable: BoolArray
    candidates: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FeedForwardConstruction(Construction):
    """Masks of the 2L layers of a source, and the error of each pair of layers.

    errors: name of a target layer W -> the matrix [P - W; N + W] (2 widths[l], widths[l+1]), where the pair of layers
    computes x+ P + x- N from an input's positive and negative part. Its spectral norm bounds the error for inputs of
    norm 1. roundings: for each target layer, a bound on the rounding errors of the pair and the layer in float64.
    """

    roundings: list[float]

    kinds = (FeedForward,)
    allowed = "a slth.models.transformer.FeedForward"


def relu_linear(target: FloatArray, first: FloatArray, second: FloatArray, *, threads: int | None = None) -> ReluMasks:
    """Find masks of first (d_in, hidden) and second (hidden, d_out) whose ReLU network is near x @ target (Lemma 2).

    A hidden unit k whose only input is coordinate j outputs |first[j, k]| times the positive part of x_j if
    first[j, k] > 0, and times the negative part if first[j, k] < 0. So each entry (j, o) needs two subset sums over
    products first[j, k] * second[k, o], one for each sign, and a unit can serve any j in the half of its weight's sign.
    A maximum flow assigns hidden // (2 d_in) units to each of the 2 d_in halves; the paper uses fixed blocks instead
    and needs twice the width. Computed in float64.

    Raises ValueError for shapes that do not fit, hidden < 2 d_in, and values that are not finite.
    """
    target, first, second = array("target", target), array("first", first), array("second", second)
    threads = check_threads(threads)
    if target.ndim != 2:
        raise ValueError(f"target of shape {target.shape}: must be (d_in, d_out)")
    d_in, d_out = target.shape
    hidden = first.shape[-1]
    if first.shape != (d_in, hidden) or second.shape != (hidden, d_out):
        raise ValueError(
            f"first {first.shape} and second {second.shape}: must be (d_in, hidden) and (hidden, d_out) "
            f"for a target {target.shape}"
        )
    if hidden < 2 * d_in:
        raise ValueError(f"hidden={hidden}: must be >= {2 * d_in}, two hidden units for each of the inputs")
    check_factors(target, first, second)
    units, candidates = _halves(first, second)
    some = units >= 0
    wanted = np.broadcast_to(target, (2, d_in, d_out))
    solved = subset_sum.solve(candidates.reshape(-1, candidates.shape[-1]), wanted.reshape(-1), threads=threads)
    chosen = np.swapaxes(solved.masks.reshape(candidates.shape), -1, -2)  # (2, d_in, size, d_out)

    mask_first, mask_second = np.zeros(first.shape, np.bool_), np.zeros(second.shape, np.bool_)
    coordinate = np.broadcast_to(np.arange(d_in)[:, None], units.shape)
    mask_first[coordinate[some], units[some]] = True
    mask_second[units[some]] = chosen[some]
    return ReluMasks(mask_first, mask_second, out_of_reach(candidates, wanted), int(some.sum(-1).min()))


def _halves(first: FloatArray, second: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return the hidden units (2, d_in, size) of each half, -1 = none, and candidates (2, d_in, d_out, size)."""
    d_in, hidden = first.shape
    units = _share_out(first > 0, hidden // (2 * d_in))
    listening = np.where(units >= 0, first[np.arange(d_in)[:, None], units], 0.0)  # a candidate of 0 is never chosen
    return units, np.swapaxes(listening[..., None] * second[units], -1, -2)


def relu_reach(first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the least and the largest value (d_in, d_out) that :func:`relu_linear` can reach in both halves."""
    low, high = span(_halves(first, second)[1])
    return low.max(axis=0), high.min(axis=0)


def _share_out(positive: BoolArray, size: int) -> IntArray:
    """Assign units to halves (sign, coordinate): positive (d_in, hidden) -> units (2, d_in, size), -1 = none.

    Half 0 of coordinate j takes units with a positive weight there, half 1 the others. Each unit is assigned at most
    once, and as many as possible are assigned in total.
    """
    d_in, hidden = positive.shape
    # a flow network: start -> units -> halves -> end
    start, end = hidden + 2 * d_in, hidden + 2 * d_in + 1
    unit = np.arange(hidden)
    half = hidden + np.where(positive.T, 0, d_in) + np.arange(d_in)  # (hidden, d_in)
    tails = np.concatenate((np.full(hidden, start), np.repeat(unit, d_in), hidden + np.arange(2 * d_in)))
    heads = np.concatenate((unit, half.reshape(-1), np.full(2 * d_in, end)))
    room = np.concatenate((np.ones(hidden * (d_in + 1), np.int32), np.full(2 * d_in, size, np.int32)))
    edges = tails.astype(np.int32), heads.astype(np.int32)  # scipy 1.13's flow takes no int64
    network = csr_array((room, edges), shape=(end + 1, end + 1))
    flow = maximum_flow(network, start, end).flow.tocoo()
    given = (flow.data > 0) & (flow.row < hidden)
    shares: IntArray = np.full((2 * d_in, size), -1, np.int64)
    for h in range(2 * d_in):
        taken = np.sort(flow.row[given & (flow.col == hidden + h)])
        shares[h, : len(taken)] = taken
    return shares.reshape(2, d_in, size)


@torch.no_grad()
def feed_forward(target: FeedForward, source: FeedForward, *, threads: int | None = None) -> FeedForwardConstruction:
    """Find masks with which source, of 2L layers, approximates target, of L layers (Theorem 10).

    Layer l of the target is hidden in layers 2l and 2l + 1 of the source, with the same ReLU after both. The source's
    recorded scales stay as they are (see `slth.construct.scales`). Computed in float64. Raises ValueError if the source
    has not twice the layers and fitting widths, and as :func:`relu_linear` does.
    """
    check(target, source)
    exact, random = double(target), double(source)
    masks: dict[str, torch.Tensor] = {}
    errors: dict[str, torch.Tensor] = {}
    solved, roundings = [], []
    for i, layer in enumerate(exact.layers):
        matrix = layer.detach() * exact.scales[i]
        first, second = (random.layers[2 * i + j].detach() for j in (0, 1))
        first, scale = first * random.scales[2 * i], random.scales[2 * i + 1]
        pair = relu_linear((matrix / scale).numpy(), first.numpy(), second.numpy(), threads=threads)
        solved.append(pair)
        mask_first, mask_second = tensors({"first": pair.mask_first, "second": pair.mask_second}).values()
        masks |= {f"layers.{2 * i}": mask_first, f"layers.{2 * i + 1}": mask_second}
        first, second = first * mask_first, second * mask_second * scale
        errors[f"layers.{i}"] = torch.cat((first.relu() @ second - matrix, (-first).relu() @ second + matrix))
        roundings.append(_rounding(matrix, first, second))
    return FeedForwardConstruction(
        source=source,
        masks=masks,
        errors=errors,
        unreachable=sum(int(pair.unreachable.sum()) for pair in solved),
        entries=sum(pair.unreachable.size for pair in solved),
        candidates=min(pair.candidates for pair in solved),
        roundings=roundings,
    )


def _rounding(target: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> float:
    """Bound the rounding errors of ReLU(x first) second - x target in float64 for |x| = 1, in any order of summation.

    The rounding error of a sum of n products is at most n eps / 2 times the sum of their absolute values; here each n
    is doubled and 8 is added.
    """
    d_in, hidden = first.shape
    pair = torch.cat((first.relu() @ second.abs(), (-first).relu() @ second.abs()))
    size = (hidden + d_in + 8) * torch.linalg.matrix_norm(pair) + (d_in + 8) * torch.linalg.matrix_norm(target)
    return float(torch.finfo(torch.float64).eps * size.item())


def check(target: FeedForward, source: FeedForward) -> None:
    """Raise as :func:`feed_forward` does if target cannot be hidden in source: kinds, layers, widths, NaN."""
    for label, network in (("target", target), ("source", source)):
        check_kind(label, network, FeedForwardConstruction.kinds, FeedForwardConstruction.allowed)
    check_apart(target, source)
    if len(source.layers) != 2 * len(target.layers):
        raise ValueError(f"source of {len(source.layers)} layers: must have twice the target's {len(target.layers)}")
    for i, layer in enumerate(target.layers):
        outer = (source.layers[2 * i].shape[0], source.layers[2 * i + 1].shape[1])
        if outer != tuple(layer.shape):
            raise ValueError(f"source layers {2 * i}, {2 * i + 1} map {outer}: must be {tuple(layer.shape)}")
    for label, network in (("target", target), ("source", source)):
        for i, layer in enumerate(network.layers):
            if not torch.isfinite(layer).all():
                raise ValueError(f"{label} layer {i} holds NaN or infinite values: all must be finite")
        check_finite(label, network)
    check_scales("source", source)
