# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, type-arg, misc"
"""Benchmark linear attention over mixed blocks on a GPU, against softmax attention and chunks in torch.

The floor is the larger of two times: that of moving all bytes at 3.0e12 bytes/s (queries, keys, values and outputs
once; float32 summaries (heads, blocks, width, width) written and read before and after mixing), and that of the
operations at 8e14 FLOP/s.

All calls are captured in a CUDA graph, so times do not include Python's launch overhead.
"""

import torch

from ..cases import normal
from ..finished import captured
from ..timing import Row, compare, interleave
from . import mhla, reference

AREA, KERNELS = "mhla", ("mhla",)  # timed if these are right

#: (batch, heads, T, width, block)
SIZES = [(1, 12, 4096, 64, 64), (1, 12, 16384, 64, 128)]


def rows(
    device: torch.device,
    rounds: int,
    seed: int,
    sizes: list[tuple[int, int, int, int, int]] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Row]:
    """Return rows for each peer, forward and forward with backward, causal."""
    found = []
    for size in SIZES if sizes is None else sizes:
        for backward in (False, True):
            found += _compared(device, rounds, seed, size, dtype, backward)
    return found


def _compared(
    device: torch.device,
    rounds: int,
    seed: int,
    size: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    backward: bool,
) -> list[Row]:
    batch, heads, length, width, block = size
    shape = (batch, heads, length, width)
    q, k, v, grad = (normal(f"mhla/{seed}/{one}", *shape, device=device).to(dtype) for one in ("q", "k", "v", "grad"))
    q, k = q.abs(), k.abs()
    blocks = -(-length // block)
    mixing = torch.ones(blocks, blocks, device=device).tril().div(blocks).to(dtype)
    leaves = [t.requires_grad_(backward) for t in (q, k, v, mixing)]

    def run(call):
        def whole() -> torch.Tensor:
            out = call()
            if backward:
                torch.autograd.grad(out, leaves[: 3 if call is peers["causal SDPA"] else 4], grad)
            return out.detach()

        return captured(whole, device)

    peers = {
        "causal SDPA": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        "chunks in torch": lambda: mhla(q, k, v, mixing, block=block, causal=True, impl="cpu"),
    }
    ours = "triton" if device.type == "cuda" else "reference"
    calls = {"ours": run(lambda: mhla(q, k, v, mixing, block=block, causal=True, impl=ours))}
    timed = interleave(calls | {name: run(call) for name, call in peers.items()}, rounds, warmups=3, lead_ins=1)
    error = {name: _error(one.values[-1], q, k, v, mixing, block) for name, one in timed.items()}
    error["causal SDPA"] = float("nan")  # it computes another function
    what = f"{batch}x{heads}x{length}x{width} block {block}{' backward' if backward else ''}"
    floor = _floor(size, q.element_size()) * (3.0 if backward else 1.0)
    return [
        compare("mhla", what, timed["ours"], name, timed[name], error["ours"], error[name]) | {"floor_s": floor}
        for name in peers
    ]


def _error(
    out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mixing: torch.Tensor, block: int
) -> float:
    """Return the largest difference from the quadratic form of one head, relative to its largest entry."""
    with torch.no_grad():
        head = [t[:1, :1] for t in (q, k, v)]
        wanted = reference.mhla(head[0], head[1], head[2], mixing, block, True, True).double()
        return float((out[:1, :1].double() - wanted).abs().max() / wanted.abs().max())


def _floor(size: tuple[int, int, int, int, int], bytes_each: int) -> float:
    batch, heads, length, width, block = size
    blocks = -(-length // block)
    moved = batch * heads * (4 * length * width * bytes_each + 4 * blocks * width * (width + 1) * 4)
    # summaries, their products with queries, and a triangle of each block twice; then the mixing
    operations = batch * heads * (4 * length * width * width + 2 * length * block * width + blocks**2 * width**2)
    return max(moved / 3.0e12, operations / 8e14)
