"""Benchmark serving from a seed and one bit per weight on a GPU, against the product with the weight in memory.

The floor is the largest of three times: reading the bits at 3.0e12 bytes/s, the products at 8e14 FLOP/s, and the
instructions that generate the weights at 29.6e12 lane instructions/s (H100: 132 SMs of 128 lanes at 1.75 GHz). The
instructions are counted in the loop of the kernel for one token, compiled for sm_90.

Both are captured in a CUDA graph, so times do not include Python's launch overhead.
"""

import torch

from slth.weights.recipes import Draw

from ..bits import pack_mask
from ..cases import normal
from ..finished import captured
from ..timing import Row, compare, interleave
from . import seeded_linear, seeded_weight

AREA, KERNELS = "seeded", ("seeded_weight", "seeded_linear")  # timed if these are right

#: (tokens, inputs, outputs)
SIZES = [(1, 8192, 8192), (16, 8192, 8192)]
INSTRUCTIONS = {"uniform": 23.1, "uniform16": 15.5, "sign": 6.2}  # per weight, for one token


def rows(
    device: torch.device,
    rounds: int,
    seed: int,
    sizes: list[tuple[int, int, int]] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Row]:
    """Return a row for each distribution, against the dense product in the same dtype."""
    return [
        _compared(device, rounds, seed, size, dtype, distribution)
        for size in (SIZES if sizes is None else sizes)
        for distribution in INSTRUCTIONS
    ]


def _compared(
    device: torch.device, rounds: int, seed: int, size: tuple[int, int, int], dtype: torch.dtype, distribution: str
) -> Row:
    tokens, inward, outward = size
    x = normal(f"seeded/{seed}", tokens, inward, device=device).to(dtype)
    draw = Draw(distribution, inward**-0.5, seed, "weight")
    half = seeded_weight((outward, inward), Draw("uniform16", 1.0, seed, "mask"), device=device)
    bits = pack_mask(half > 0)
    del half
    weight = seeded_weight((outward, inward), draw, bits=bits, device=device)
    dense = weight.to(dtype)
    exact = (x.float() @ dense.float().mT).double()
    impl = "triton" if device.type == "cuda" else "auto"

    calls = {
        "ours": lambda: seeded_linear(x, draw, bits, impl=impl),
        "dense": lambda: x @ dense.mT,
    }
    runs = {name: captured(call, device) for name, call in calls.items()}
    timed = interleave(runs, rounds, warmups=3, lead_ins=1)
    errors = [
        float((timed[name].values[-1].double() - exact).abs().max() / exact.abs().max()) for name in ("ours", "dense")
    ]
    weights = inward * outward
    floor = max(weights / 8 / 3.0e12, 2 * tokens * weights / 8e14, INSTRUCTIONS[distribution] * weights / 29.6e12)
    what = f"{distribution} {tokens}x{inward}x{outward}"
    row = compare("seeded_linear", what, timed["ours"], f"dense {dtype}".replace("torch.", ""), timed["dense"], *errors)
    return row | {"floor_s": floor}
