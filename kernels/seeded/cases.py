"""Cases of `slth.kernels.seeded_linear` and `seeded_weight`: rows of whole blocks and others, few tokens and many.

The weight itself must be equal bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch

from slth.weights.recipes import Draw

from .. import offline
from ..bits import pack_mask
from ..cases import Case, Tensors, normal, with_gradients
from . import seeded_linear, seeded_weight

DISTRIBUTIONS = ("uniform", "uniform16", "sign")


def _bits(shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Make the bits of a mask that keeps half."""
    return pack_mask(normal("seeded/mask", *shape, device=device) > 0)


def _weight(name: str, distribution: str, shape: tuple[int, int], *, masked: bool = True, large: bool = False) -> Case:
    def inputs(device: torch.device) -> Tensors:
        return {"bits": _bits(shape, device)}

    def call(tensors: Tensors, impl: str) -> Tensors:
        bits = tensors["bits"]
        draw = Draw(distribution, 0.3, 7, "cases", stream=1 << 31)
        return {"out": seeded_weight(shape, draw, bits=bits if masked else None, device=bits.device, impl=impl)}

    what = f"weight {name}, {distribution}"
    return Case(what, "seeded_weight", inputs, call, large=large, exact=True, dtypes=(torch.float32,))


def _linear(name: str, distribution: str, tokens: tuple[int, ...], inward: int, outward: int, **options: bool) -> Case:
    """Make a case of `inward` inputs and `outward` outputs.

    Options: first (the weight is (in, out)), bias, turned (strided tensors), large.
    """
    first = options.get("first", False)
    shape = (inward, outward) if first else (outward, inward)
    wanted = ("x", "bias") if options.get("bias") else ("x",)

    def inputs(device: torch.device) -> Tensors:
        x = normal("seeded/x", *tokens, inward, device=device)
        given = {"x": x, "bits": _bits(shape, device)}
        return given | ({"bias": normal("seeded/bias", outward, device=device)} if options.get("bias") else {})

    def call(tensors: Tensors, impl: str) -> Tensors:
        def run(given: Tensors) -> torch.Tensor:
            x, bits = given["x"], given["bits"]
            if options.get("turned"):
                x = torch.cat((x, x), -1)[..., ::2] if x.dim() == 1 else x.mT.contiguous().mT
                bits = torch.cat((bits, bits), 1)[:, : bits.shape[1]]
            draw, columns = Draw(distribution, 0.25, 7, "cases"), shape[1] if first else None
            return seeded_linear(x, draw, bits, columns=columns, bias=given.get("bias"), impl=impl)

        return with_gradients(tensors, wanted, run)

    return Case(f"linear {name}, {distribution}", "seeded_linear", inputs, call, large=bool(options.get("large")))


def _of(distribution: str) -> list[Case]:
    return [
        _weight("whole blocks", distribution, (5, 256)),
        _weight("whole blocks, all kept", distribution, (17, 128), masked=False),
        _weight("odd", distribution, (7, 37)),
        _weight("odd, all kept", distribution, (3, 5), masked=False),
        _weight("large", distribution, (4096, 4096), large=True),
        _weight("large and odd", distribution, (1001, 999), large=True),
        _linear("one token", distribution, (1,), 128, 19, bias=True),
        _linear("one token, no batch", distribution, (), 256, 5),
        _linear("one token, inputs first", distribution, (1,), 21, 128, first=True, bias=True),
        _linear("one token, odd", distribution, (1,), 37, 11, bias=True),
        _linear("three tokens", distribution, (1, 3), 128, 19, bias=True),
        _linear("three tokens, inputs first", distribution, (3,), 19, 128, first=True),
        _linear("20 tokens, odd", distribution, (4, 5), 37, 11),
        _linear("20 tokens, odd, inputs first", distribution, (20,), 37, 11, first=True, bias=True),
        _linear("strides", distribution, (18,), 128, 9, turned=True),
        _linear("one input", distribution, (3,), 1, 4),
        _linear("one token, large", distribution, (1,), 4096, 4096, bias=True, large=True),
        _linear("16 tokens, large", distribution, (16,), 2048, 3072, large=True),
        _linear("16 tokens, large, inputs first", distribution, (16,), 2048, 3072, first=True, large=True),
        _linear("1,000 tokens, large", distribution, (1000,), 768, 3072, bias=True, large=True),
        _linear("100 tokens, large and odd", distribution, (100,), 501, 333, first=True, large=True),
    ]


CASES = [case for distribution in DISTRIBUTIONS for case in _of(distribution)]

# ---------------------------------------------------------------- compiled without a GPU


def offline_cases() -> list[offline.Case]:
    """Return kernels for one token and 16 on 8192 x 8192, for a training step, and for writing the weight.

    There are cases of every distribution; "uniform16", which is used for serving, also has shapes without whole blocks,
    and other dtypes.
    """
    from . import triton as t
    from .philox import PER_BLOCK

    shape, size = (8192, 8192), 8192
    found = []
    for distribution in DISTRIBUTIONS:
        bits = "i32" if distribution == "sign" else "u8"
        tile = t._one_token_tile(size)
        constants = {"DISTRIBUTION": distribution, "PER": PER_BLOCK[distribution], "WIDE": False, "BIASED": False}
        types = {"x": "fp32", "bits": bits, "bias": "bf16", "y": "bf16"}
        found.append(_offline(f"one token {distribution}", t._one_token, types, constants, tile))
        tile = t._write_tile()
        constants = {"DISTRIBUTION": distribution, **t._whole(distribution, shape), "MASKED": True}
        found.append(_offline(f"write {distribution}", t._write, {"out": "fp32", "bits": bits}, constants, tile))
        launches = [("bf16", 16, True), ("bf16", 512, False)]
        if distribution == "uniform16":
            odd = constants | {"WHOLE": False}
            found.append(
                _offline(f"write any shape {distribution}", t._write, {"out": "fp32", "bits": "u8"}, odd, tile)
            )
            launches += [("bf16", 16, False), ("bf16", 512, True), ("fp16", 16, True), ("fp32", 16, True)]
        for dtype, tokens, over_columns in launches:
            kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
            tile = t._product_tile(distribution, over_columns, tokens, kind, whole=True)
            constants = {
                "DISTRIBUTION": distribution, "OVER_COLUMNS": over_columns, **t._whole(distribution, shape),
                "BIASED": False, "PRECISION": "ieee" if dtype == "fp32" else "tf32", "stride_xi": 1,
            }  # fmt: skip
            y = "fp32" if tokens == 16 else dtype
            types = {"x": dtype, "bits": bits, "bias": dtype, "y": y}
            name = f"{tokens} tokens over {'columns' if over_columns else 'rows'} {distribution}"
            found.append(_offline(name, t._product, types, constants, tile))
            if distribution == "uniform16" and tokens == 512 and over_columns:
                tile = t._product_tile(distribution, over_columns, tokens, kind, whole=False)
                odd, types = constants | {"WHOLE": False}, types | {"bits": "u8"}
                found.append(_offline(f"{name} any shape", t._product, types, odd, tile))
    return found


def _offline(
    name: str, kernel: Any, pointers: dict[str, str], constants: dict[str, Any], tile: dict[str, int]
) -> offline.Case:
    """Make a case whose sizes and strides are multiples of 16."""
    from . import triton as t

    constants = constants | {name: value for name, value in tile.items() if name != "num_warps"}
    types = {
        name: f"*{pointers[name]}" if name in pointers else "fp32" if name == "scale" else "i32"
        for name in kernel.arg_names
        if name not in constants
    }
    unaligned = (*t.SCALARS, "scale", *(["x", "bits"] if kernel is t._one_token else []))
    aligned = tuple(name for name in types if name not in unaligned)
    dtype = pointers.get("bias", "fp32")
    products = kernel is t._product and dtype != "fp32"
    name, warps = f"seeded {name} {dtype}", tile["num_warps"]
    return offline.Case(name, kernel, types, constants, warps, stages=3, aligned=aligned, products=products)
