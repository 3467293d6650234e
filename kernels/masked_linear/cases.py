"""Cases of products with masked weights: masks of bits and of scores, layouts, few and many tokens, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from slth import kernels

from .. import offline
from ..bits import pack_mask
from ..cases import Case, Tensors, normal, with_gradients
from ..masked_weight.cases import cut_of, mask_of, offline_case, offline_masks, scored


def _linear(name: str, tokens: tuple[int, ...], rows: int, columns: int, device: torch.device) -> Tensors:
    """Make inputs of a product: x, weight, bias, bits and scores with many ties."""
    weight = normal(f"{name} weight", rows, columns, device=device, scale=columns**-0.5)
    return {
        "x": normal(f"{name} x", *tokens, columns, device=device),
        "weight": weight,
        "bias": normal(f"{name} bias", rows, device=device),
        "bits": pack_mask(mask_of(name, rows, columns, device=device)),
    } | scored(name, rows, columns, device=device)


def _by_bits(t: Tensors, impl: str) -> Tensors:
    def call(leaves: Tensors) -> torch.Tensor:
        return kernels.masked_linear(leaves["x"], t["weight"], t["bits"], bias=leaves["bias"], impl=impl)

    return with_gradients({"x": t["x"], "bias": t["bias"]}, ("x", "bias"), call)


def _by_scores(t: Tensors, impl: str) -> Tensors:
    def call(leaves: Tensors) -> torch.Tensor:
        mask = leaves["scores"], cut_of(t)
        return kernels.masked_linear(leaves["x"], t["weight"], mask, bias=leaves["bias"], impl=impl)

    leaves = {"x": t["x"], "bias": t["bias"], "scores": t["scores"].float()}
    return with_gradients(leaves, ("x", "bias", "scores"), call)


def _strided(t: Tensors, impl: str) -> Tensors:
    """Call with all tensors in other layouts than contiguous, without a bias."""
    scores = t["scores"].float().mT.contiguous().mT
    weight = t["weight"].mT.contiguous().mT

    def call(leaves: Tensors) -> torch.Tensor:
        x = leaves["x"].repeat_interleave(2, dim=-1)[..., ::2]
        return kernels.masked_linear(x, weight, (leaves["scores"], cut_of(t)), impl=impl).flip(-1).mT

    return with_gradients({"x": t["x"], "scores": scores}, ("x", "scores"), call)


def _strided_bits(t: Tensors, impl: str) -> Tensors:
    bits, weight = t["bits"].mT.contiguous().mT, t["weight"].repeat_interleave(2, dim=0)[::2]
    x = t["x"].mT.contiguous().mT
    return with_gradients({"x": x}, ("x",), lambda leaves: kernels.masked_linear(leaves["x"], weight, bits, impl=impl))


def _case(
    call: Callable[[Tensors, str], Tensors], name: str, tokens: tuple[int, ...], rows: int, columns: int, **more: Any
) -> Case:
    def inputs(device: torch.device) -> Tensors:
        return _linear(name, tokens, rows, columns, device)

    return Case(name, "masked_linear", inputs, call, **more)


CASES = [
    _case(_by_bits, "one token, one entry", (1,), 1, 1),
    _case(_by_bits, "one token, in parts", (1,), 33, 330),
    _case(_by_bits, "5 tokens, bits in bytes", (5,), 40, 70),
    _case(_by_bits, "70 tokens, bits in words", (2, 35), 33, 96),
    _case(_by_scores, "one token by scores, in parts", (1,), 20, 290),
    _case(_by_scores, "17 tokens by scores", (17,), 65, 40),
    _case(_by_scores, "66 tokens by scores", (3, 22), 30, 67),
    _case(_by_scores, "tiles in two groups", (66,), 300, 20),
    _case(_by_scores, "two groups of the inputs' tiles", (66,), 20, 530),
    _case(_by_scores, "many heads of 1 token by scores", (2, 3, 1), 16, 16),
    _case(_strided, "other layouts by scores", (2, 19), 35, 44),
    _case(_strided_bits, "other layouts by bits", (2, 20), 35, 64),
    *(
        _case(call, f"GPT-2 small {rows}x{columns}, {tokens} tokens {by}", (tokens,), rows, columns, large=True)
        for rows, columns, tokens in (
            (2304, 768, 1),
            (768, 3072, 16),
            (3072, 768, 64),
            (768, 3072, 1000),
            (768, 768, 8192),
        )
        for by, call in (("by bits", _by_bits), ("by scores", _by_scores))
    ),
    _case(_strided, "GPT-2 small, other layouts", (8, 200), 768, 3072, large=True),
]

# ---------------------------------------------------------------- compiled without a GPU


def offline_cases() -> list[offline.Case]:
    """Return all products of the largest tile; of others y by bits, as in serving, and dx by scores, as in training."""
    from ..masked_weight.triton import ENTRIES
    from . import triton as t

    found = []
    for dtype, size, tiles in (
        ("bf16", 2, dict.fromkeys((*t.TILES[2], *t.TILES_FEW[2]))),  # without repetition
        ("fp16", 2, t.TILES[2][1:2]),
        ("fp32", 4, t.TILES[4][:1]),
    ):
        pointers = dict.fromkeys(("weight_ptr", "x_ptr", "grad_ptr", "bias_ptr", "out_ptr"), f"*{dtype}")
        products = dtype != "fp32"
        for tile in tiles:
            launch = tile.warps, tile.stages
            name = f"{dtype} {tile.rows}x{tile.columns}x{tile.depth}"
            for mask, types, constants in offline_masks(pointers):
                constants = constants | t._sizes(tile) | {"x_inner": 1}
                if tile not in t.TILES[size]:  # few tokens, in parts
                    types, constants = types | {"out_ptr": "*fp32"}, constants | {"bias_ptr": None}
                for output, extra in (
                    ("y", {"TRANSPOSED": False}),
                    ("dx", {"TRANSPOSED": True, "bias_ptr": None}),
                ):
                    if mask == "bytes" or (tile != t.TILES[size][0] and (output == "y") != (mask == "bits")):
                        continue
                    # without tensor cores, dx of the larger tile by bits: 4 on 3.7.1, none on 3.6.0 and 3.9.0
                    spills = 8 if (dtype, output, tile) == ("fp32", "dx", t.TILES[4][0]) else 0
                    full = f"masked_linear {output} {mask} {name}"
                    found.append(offline_case(full, t._multiply, types, constants | extra, *launch, spills, products))
            if tile in t.TILES[size]:
                ones = dict.fromkeys(("grad_row", "x_column", "weight_column", "scores_column", "out_column"), 1)
                types = pointers | {"out_ptr": "*fp32"}
                full = f"masked_linear dS {name}"
                constants = ones | t._sizes(tile)
                found.append(offline_case(full, t._multiply_slope, types, constants, *launch, products=products))
        if dtype == "bf16":
            types = pointers | {"parts_ptr": "*fp32"}
            add_up = offline_case(f"masked_linear add_up {dtype}", t._add_up, types, {"BLOCK": ENTRIES // 4})
            found.append(add_up)
    return found
