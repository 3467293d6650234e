# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, type-arg, misc"
"""Benchmark products with masked weights on a GPU in bfloat16, against the dense product and explicit masking.

Peers: the dense product of cuBLAS, without a mask; and the product after torch.where has written the masked weight (for
bits: after unpacking them). floor_s is the larger of two times: that of moving all bytes (inputs, weight, mask, output)
once at 3.0 TB/s, and that of the operations at 800 TFLOP/s. All may be faster than that if data, such as the weights of
one layer, stays in the device's cache from one call to the next.

All products are captured in a CUDA graph, since launching them from Python takes longer than computing them for few
tokens. Gradients are timed as called from Python.
"""

import math

import torch

from slth.weights import inits

from ..bits import pack_mask, unpack_mask
from ..cut import Cut
from ..finished import captured, waited
from ..masked_weight import masked_weight
from ..masked_weight.reference import kept as kept_by
from ..select import select_threshold
from ..timing import Row, compare, interleave
from . import masked_linear

AREA, KERNELS = "masked_linear", ("masked_weight", "masked_linear")  # timed if these are right
WHAT = "masked_linear"
TOKENS = (1, 16, 64, 1024, 8192)
SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))  # (out, in) of GPT-2 small
SIZES = tuple((tokens, *shape) for shape in SHAPES for tokens in TOKENS)
BYTES_A_SECOND, OPERATIONS_A_SECOND = 3.0e12, 8e14


def rows(device: torch.device, rounds: int, seed: int, sizes: tuple[tuple[int, int, int], ...] = SIZES) -> list[Row]:
    """Return rows for each (tokens, out, in), kind of mask and peer, forward and forward with backward.

    Half of the weights are kept. "one pass" is our one-pass masked weight followed by the product of cuBLAS, the method
    for many tokens, against the same peers. Errors are the largest difference from the product in float64 relative to
    its largest entry; the dense peer computes another function and has none.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return [row for size in sizes for row in _rows(device, dtype, rounds, seed, *size)]


def _rows(
    device: torch.device, dtype: torch.dtype, rounds: int, seed: int, tokens: int, out: int, inner: int
) -> list[Row]:
    def drawn(name: str, *shape: int) -> torch.Tensor:
        return inits.uniform(shape, 1.0, seed=seed, name=f"speed/{name}").to(device)

    x, weight, scores = drawn("x", tokens, inner).to(dtype), drawn("w", out, inner).to(dtype), drawn("s", out, inner)
    grad = drawn("grad", tokens, out).to(dtype)
    threshold = select_threshold(scores, max(1, out * inner // 2), impl="reference")
    kept = kept_by((scores, threshold), inner)
    bits, truth = pack_mask(kept), x.double() @ torch.where(kept, weight, 0).double().mT
    found = []
    for name, mask in (("bits", bits), ("scores", (scores, threshold))):
        ours = {
            "fused": lambda mask=mask: masked_linear(x, weight, mask, impl="triton"),
            "one pass": lambda mask=mask: x @ masked_weight(weight, mask, impl="triton").mT,
        }
        theirs = {
            "dense": lambda: x @ weight.mT,
            "materialised": lambda mask=mask: x @ torch.where(_kept(mask, inner), weight, 0).mT,
        }
        timings = interleave({label: captured(call, device) for label, call in (ours | theirs).items()}, rounds)
        floor = _floor(tokens, out, inner, x.element_size(), 1 / 8 if name == "bits" else 4)
        found += _compared(f"{name} M={tokens} {out}x{inner}", ours, theirs, timings, truth, floor)
    found += _backward(x, weight, scores, threshold, grad, rounds)
    return [row | {"tokens": tokens, "rounds": rounds} for row in found]


def _backward(
    x: torch.Tensor,
    weight: torch.Tensor,
    scores: torch.Tensor,
    threshold: Cut,
    grad: torch.Tensor,
    rounds: int,
) -> list[Row]:
    """Time forward and both gradients with scores; the error is that of the scores' gradient."""
    (tokens, inner), out = x.shape, weight.shape[0]
    x = x.detach().requires_grad_()
    leaf, dense = scores.detach().requires_grad_(), weight.detach().requires_grad_()
    sign = torch.where(scores < 0, -1.0, 1.0)

    def materialised() -> torch.Tensor:
        masked = torch.where(_kept((scores, threshold), inner), weight, 0).requires_grad_()
        _, slope = torch.autograd.grad(x @ masked.mT, (x, masked), grad)
        return slope.float() * weight * sign

    def by_scores(product) -> torch.Tensor:
        return torch.autograd.grad(product, (x, leaf), grad)[1]

    mask = leaf, threshold
    ours = {
        "fused": lambda: by_scores(masked_linear(x, weight, mask, impl="triton")),
        "one pass": lambda: by_scores(x @ masked_weight(weight, mask, impl="triton").mT),
    }
    theirs = {
        "dense": lambda: torch.autograd.grad(x @ dense.mT, (x, dense), grad)[1],
        "materialised": materialised,
    }
    timings = interleave({name: waited(call, x.device) for name, call in (ours | theirs).items()}, rounds)
    truth = (grad.double().mT @ x.detach().double()) * weight.double() * sign
    floor = 3 * _floor(tokens, out, inner, x.element_size(), 4)
    return _compared(f"forward, backward M={tokens} {out}x{inner}", ours, theirs, timings, truth, floor)


def _kept(mask: torch.Tensor | tuple[torch.Tensor, Cut], columns: int) -> torch.Tensor:
    """Compute a mask in eager torch, without ties, which would need every index."""
    if isinstance(mask, torch.Tensor):
        return unpack_mask(mask, columns)
    scores, threshold = mask
    return scores.abs() >= threshold.value


def _compared(size, ours, theirs, timings, truth, floor) -> list[Row]:
    def error(name: str) -> float:
        value = timings[name].values[-1]
        return float((value.double() - truth).abs().max() / truth.abs().max())

    errors = {name: error(name) for name in (*ours, "materialised")} | {"dense": math.nan}
    return [
        compare(WHAT, f"{size} {name}", timings[name], peer, timings[peer], errors[name], errors[peer])
        | {"floor_s": floor}
        for name in ours
        for peer in theirs
    ]


def _floor(tokens: int, out: int, inner: int, size: int, mask: float) -> float:
    """Return the least seconds of one product, with `mask` bytes per entry for the mask."""
    moved = size * (tokens * (inner + out) + out * inner) + mask * out * inner
    return max(moved / BYTES_A_SECOND, 2 * tokens * out * inner / OPERATIONS_A_SECOND)
