"""Cases of `slth.kernels.mhla`: any block size, shorter last blocks, widths that fit no tile, entries of 0."""

from __future__ import annotations

from typing import Any

import torch

from .. import offline
from ..cases import Case, Tensors, normal, with_gradients
from . import mhla

WANTED = ("q", "k", "v", "mixing")
SIXTEEN = (torch.float16, torch.bfloat16)


def _case(
    name: str,
    shape: tuple[int, ...],
    m: int,
    block: int,
    *,
    causal: bool = True,
    normalise: bool = True,
    **options: bool,
) -> Case:
    """Make a case; shape is the shape of q, (..., heads, T, n), and m the width of v."""

    def inputs(device: torch.device) -> Tensors:
        blocks = -(-shape[-2] // block) + options.get("larger", False)
        q, k = (normal(f"mhla/{one}", *shape, device=device).abs() for one in "qk")
        v = normal("mhla/v", *shape[:-1], m, device=device)
        mixing = normal("mhla/mixing", blocks, blocks, device=device).abs()
        if options.get("blind"):
            q[..., : shape[-2] // 3, :] = 0  # tokens whose weights are all 0
            mixing[-1] = 0
        return {"q": q, "k": k, "v": v, "mixing": mixing}

    def call(tensors: Tensors, impl: str) -> Tensors:
        def run(given: Tensors) -> torch.Tensor:
            q, k, v, mixing = (given[one] for one in WANTED)
            if options.get("turned"):  # heads within tokens, and widths strided
                q = q.transpose(-3, -2).contiguous().transpose(-3, -2)
                k = k.mT.contiguous().mT
                v = torch.cat((v, v), -1)[..., ::2]
                mixing = mixing.mT
            return mhla(q, k, v, mixing, block=block, causal=causal, normalise=normalise, impl=impl)

        if tensors["mixing"].dtype in SIXTEEN and not options.get("narrow"):
            tensors = tensors | {"mixing": tensors["mixing"].float()}  # as under autocast
        return with_gradients(tensors, WANTED, run)

    return Case(f"mhla {name}", "mhla", inputs, call, large=bool(options.get("large")))


CASES = [
    _case("causal, last block shorter", (2, 2, 37, 8), 5, 16),
    _case("bidirectional, last block shorter", (2, 2, 37, 8), 5, 16, causal=False),
    _case("causal sums", (1, 2, 37, 8), 5, 16, normalise=False),
    _case("bidirectional sums", (1, 2, 37, 8), 5, 16, causal=False, normalise=False),
    _case("one token", (1, 1, 1, 4), 3, 8, normalise=False),
    _case("blocks of one", (1, 1, 5, 4), 3, 1),
    _case("one block", (1, 1, 19, 20), 17, 128, normalise=False),
    _case("one block, bidirectional", (1, 1, 19, 20), 17, 128, causal=False, normalise=False),
    _case("two blocks of 100", (1, 1, 117, 16), 16, 100),
    _case("wide keys", (1, 1, 40, 100), 9, 32),
    _case("wide values", (1, 1, 40, 9), 100, 32),
    _case("wide, bidirectional", (1, 1, 40, 70), 70, 32, causal=False),
    _case("zeros, causal", (1, 2, 30, 8), 8, 8, blind=True),
    _case("zeros, bidirectional", (1, 2, 30, 8), 8, 8, causal=False, blind=True),
    _case("larger matrix", (1, 1, 20, 8), 8, 8, larger=True),
    _case("strides", (2, 2, 20, 8), 6, 8, turned=True),
    _case("three batch axes", (2, 1, 2, 17, 8), 6, 8),
    _case("no batch", (2, 17, 8), 6, 8),
    _case("mixing of the same dtype", (2, 17, 8), 6, 8, narrow=True),
    _case("1,000 tokens", (2, 3, 1000, 64), 64, 64, large=True),
    _case("4,096 tokens, bidirectional", (1, 4, 4096, 64), 64, 64, causal=False, large=True),
    _case("width 128", (1, 2, 1500, 128), 128, 128, large=True),
    _case("width 256", (1, 2, 777, 256), 256, 128, large=True),
    _case("width 256 sums", (1, 2, 777, 200), 256, 100, normalise=False, large=True),
]

# ---------------------------------------------------------------- compiled without a GPU


def offline_cases() -> list[offline.Case]:
    """Return the kernels at widths 64, 128 and 256 and blocks of 64 and 128, as launched for contiguous tensors."""
    causal = ("out", "grad_q", "grad_k", "grad_v")
    again = (*causal, "out_again")
    found = [
        _offline_attend(dtype, torch_type, width, block, way)
        for dtype, torch_type, width, block, ways in (
            ("bf16", torch.bfloat16, 64, 64, causal[:2]),
            ("bf16", torch.bfloat16, 128, 128, tuple(_WAYS)),
            ("bf16", torch.bfloat16, 256, 128, again),
            ("fp16", torch.float16, 64, 64, causal[:1]),  # tiled as bfloat16
            ("fp32", torch.float32, 128, 128, causal),
        )
        for way in ways
    ]
    for width in (128, 256):
        found += [_offline_summaries("bf16", torch.bfloat16, width, 128, grad) for grad in (False, True)]
    return [*found, _offline_slopes()]


# (which rows are grad, whose is the slope, transposed, later, normalise, dots)
_WAYS = {
    "out": ("", "", False, False, True, False),
    "out_again": ("", "", False, False, True, False),
    "grad_q": ("a", "a", True, False, False, True),
    "grad_k": ("b", "b", True, True, False, False),
    "grad_v": ("c", "", False, True, False, False),
    "bidirectional": ("", "", False, False, True, False),
}


def _offline(
    name: str, kernel: Any, dtype: str, typed: set[str], constants: dict[str, Any], tile: dict[str, int], spills: int
) -> offline.Case:
    """Make a case whose pointers `typed` have the dtype and others float32; all numbers are multiples of 16."""
    from . import triton as t

    tile = dict(tile)
    warps = tile.pop("num_warps")
    constants = constants | tile
    types = {
        name: f"*{dtype if name in typed else 'fp32'}" if name in _POINTERS else "i32"
        for name in kernel.arg_names
        if name not in constants
    }
    odd = {"heads", "mixing_i"}
    aligned = tuple(name for name in types if name not in odd)
    products = dtype != "fp32" and kernel is not t._slopes
    name = f"mhla {name} {dtype}"
    return offline.Case(name, kernel, types, constants, warps, 3, spills=spills, aligned=aligned, products=products)


_POINTERS = {
    "a", "b", "c", "scale", "slope", "states", "z", "mixing", "out", "out_z", "inverse", "dots", "partner", "grad"
}  # fmt: skip


def _offline_summaries(dtype: str, torch_type: torch.dtype, width: int, block: int, grad: bool) -> offline.Case:
    from . import triton as t

    constants = {"a_w": 1, "b_w": 1, "SCALED": grad, "Z": True, "PRECISION": t._precision(torch_type, grad)}
    name = f"summaries{' of gradients' if grad else ''} {width} block {block}"
    tile = t._summaries_tile(block, width, width, torch_type)
    return _offline(name, t._summaries, dtype, {"a", "b"}, constants, tile, 0)


def _offline_attend(dtype: str, torch_type: torch.dtype, width: int, block: int, way: str) -> offline.Case:
    from . import triton as t

    scaled, slope, transposed, later, normalise, dots = _WAYS[way]
    constants = {
        "a_w": 1, "b_w": 1, "c_w": 1, "p_w": 1, "states_a" if transposed else "states_c": 1,
        "OWN": way != "bidirectional", "LATER": later, "SCALED_A": "a" in scaled, "SCALED_B": "b" in scaled,
        "SCALED_C": "c" in scaled, "SLOPE": slope, "NORMALISE": normalise, "DOTS": dots,
        "PRECISION": t._precision(torch_type, way == "out_again"),
        "OWN_PRECISION": t._precision(torch_type, way == "out_again" or dots),
    }  # fmt: skip
    tile = t._attend_tile(block, width, width, torch_type)
    typed = {"a", "b", "c", "partner"} | (set() if way == "out_again" else {"out"})
    return _offline(
        f"{way} {width} block {block}", t._attend, dtype, typed, constants, tile, _SPILLS.get((way, dtype, width), 0)
    )


# Float32 products without tensor cores unroll 128 x 128 x 128 in registers. The most that Triton 3.6, 3.7 and 3.9 make
# of these, rounded up; no kernel for 16 bits has any.
_SPILLS = {
    ("out", "fp32", 128): 960,
    ("grad_q", "fp32", 128): 220,
    ("grad_k", "fp32", 128): 600,
    ("grad_v", "fp32", 128): 110,
}


def _offline_slopes() -> offline.Case:
    from . import triton as t

    tile = {"R": 16, "W": 64, "num_warps": 4}
    return _offline("slopes 64", t._slopes, "bf16", {"grad"}, {"g_w": 1}, tile, 0)
