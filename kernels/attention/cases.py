"""Cases of attention, merged attention and masked multi-head attention: layouts, odd lengths and widths, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from slth import kernels

from .. import offline
from ..bits import pack_mask
from ..cases import Case, Tensors, normal, with_gradients
from ..factors import Factors
from .masks import BlockMask

Inputs = Callable[[torch.device], Tensors]


def _heads(name: str, q: tuple[int, ...], k: tuple[int, ...], width: int, transposed: bool = False) -> Inputs:
    """Make inputs of attention from the shapes of q and k and the width of v; transposed: heads lie within tokens."""

    def inputs(device: torch.device) -> Tensors:
        shapes = {"q": q, "k": k, "v": (*k[:-1], width)}
        drawn = {key: normal(f"{name} {key}", *shape, device=device) for key, shape in shapes.items()}
        if transposed:
            drawn = {key: t.transpose(-3, -2).contiguous().transpose(-3, -2) for key, t in drawn.items()}
        return drawn

    return inputs


def _tokens(name: str, x: tuple[int, ...], heads: int, out: int) -> Inputs:
    """Make inputs of merged attention, with logits of about 1."""

    def inputs(device: torch.device) -> Tensors:
        d = x[-1]
        return {
            "x": normal(f"{name} x", *x, device=device),
            "qk": normal(f"{name} qk", heads, d, d, device=device, scale=1 / d),
            "vo": normal(f"{name} vo", heads, d, out, device=device, scale=d**-0.5),
        }

    return inputs


def _layer(name: str, x: tuple[int, ...], heads: int, hidden: int) -> Inputs:
    """Make inputs of multi-head attention whose output is as wide as its input."""

    def inputs(device: torch.device) -> Tensors:
        d = x[-1]
        return {"x": normal(f"{name} x", *x, device=device)} | {
            key: normal(f"{name} {key}", heads, *shape, device=device, scale=shape[0] ** -0.5)
            for key, shape in {
                "query": (d, hidden),
                "key": (d, hidden),
                "value": (d, hidden),
                "output": (hidden, d),
            }.items()
        }

    return inputs


def _mask(name: str, *shape: int, device: torch.device) -> torch.Tensor:
    """Make a bool mask with about a third True; all queries attend to the first key."""
    drawn = normal(f"{name} mask", *shape, device=device) > 0.5
    drawn[..., 0] = True
    return drawn


def _case(
    name: str,
    kernel: str,
    inputs: Inputs,
    *,
    mask: tuple[int, ...] | None = None,
    size: int = 0,
    large: bool = False,
    wanted: tuple[str, ...] = (),
    **how: Any,
) -> Case:
    """Make a case with gradients to all inputs, or to those in wanted; mask: shape of the mask, in blocks of `size`."""

    def call(t: Tensors, impl: str) -> Tensors:
        entries = None if mask is None else _mask(name, *mask, device=next(iter(t.values())).device)
        blocks = BlockMask(entries, size) if size and entries is not None else entries

        def run(leaves: Tensors) -> torch.Tensor:
            tensors = [*leaves.values()]
            given = (tensors[0], Factors(*tensors[1:])) if kernel == "masked_mha" else tensors
            out: torch.Tensor = getattr(kernels, kernel)(*given, mask=blocks, impl=impl, **how)
            return out

        return with_gradients(t, wanted or tuple(t), run)

    return Case(f"{kernel}, {name}", kernel, inputs, call, large)


def _by(weights: str) -> Callable[[Tensors, str], Tensors]:
    """Call multi-head attention with queries and values masked by bits, or keys and outputs masked by scores."""

    def call(t: Tensors, impl: str) -> Tensors:
        names = ("query", "key", "value", "output")
        drawn = {name: normal(f"{name} scores", *t[name].shape, device=t["x"].device) for name in names}

        def run(leaves: Tensors) -> torch.Tensor:
            bits = {name: pack_mask(scores > 0) for name, scores in drawn.items()}
            scored = {name: (leaves[f"{name} scores"], 0.5) for name in names if f"{name} scores" in leaves}
            masks = tuple(bits[name] if name in ("query", "value") else scored.get(name) for name in names)
            weights = Factors(*(t[name] for name in names))
            return kernels.masked_mha(leaves["x"], weights, masks, causal=True, impl=impl)

        leaves = {"x": t["x"]}
        if weights == "scores":
            leaves |= {f"{name} scores": drawn[name] for name in ("key", "output")}
        return with_gradients(leaves, tuple(leaves), run)

    return call


CASES = [
    _case("odd", "attention", _heads("odd", (2, 37, 24), (2, 41, 24), 24)),
    _case("one query, one key", "attention", _heads("one", (1, 1, 8), (1, 1, 8), 8), wanted=("v",)),
    _case("one query of many keys", "attention", _heads("decode", (2, 1, 16), (1, 67, 16), 16), causal=True),
    _case("causal", "attention", _heads("causal", (1, 2, 67, 16), (1, 2, 67, 16), 16), causal=True),
    _case("causal, last queries", "attention", _heads("last", (2, 35, 16), (2, 70, 16), 16), causal=True),
    _case("groups", "attention", _heads("groups", (2, 4, 19, 16), (2, 2, 35, 16), 16), causal=True),
    _case("narrow, then wide", "attention", _heads("widths", (1, 2, 33, 12), (1, 1, 35, 12), 40), scale=0.7),
    _case("wide, then narrow", "attention", _heads("widths", (1, 2, 33, 72), (1, 1, 35, 72), 5), scale=0.1),
    _case("width 160", "attention", _heads("160", (1, 18, 160), (1, 35, 160), 160)),
    _case("width 256", "attention", _heads("256", (1, 18, 256), (1, 35, 256), 256), causal=False),
    _case("transposed", "attention", _heads("swap", (2, 2, 34, 16), (2, 2, 34, 16), 16, True), causal=True),
    _case("more batch axes", "attention", _heads("batch", (2, 1, 2, 2, 17, 8), (2, 1, 2, 1, 18, 8), 8)),
    _case("mask", "attention", _heads("mask", (2, 2, 35, 16), (2, 2, 67, 16), 16), mask=(2, 2, 35, 67)),
    _case("mask of keys", "attention", _heads("mask", (2, 2, 35, 16), (2, 2, 67, 16), 16), mask=(2, 1, 1, 67)),
    _case("mask of heads", "attention", _heads("mask", (2, 2, 35, 16), (2, 1, 67, 16), 16), mask=(2, 35, 67)),
    _case("mask, causal", "attention", _heads("both", (2, 35, 16), (2, 67, 16), 16), mask=(35, 67), causal=True),
    _case("blocks", "attention", _heads("16", (2, 70, 16), (2, 90, 16), 16), mask=(2, 5, 6), size=16),
    _case("blocks, causal", "attention", _heads("16", (2, 70, 16), (1, 90, 16), 16), mask=(5, 6), size=16, causal=True),
    _case("large blocks", "attention", _heads("64", (2, 70, 16), (2, 90, 16), 16), mask=(2, 2), size=64),
    _case("odd", "merged_attention", _tokens("odd", (37, 20), 3, 11)),
    _case("causal", "merged_attention", _tokens("causal", (2, 67, 16), 2, 16), causal=True),
    _case("one token", "merged_attention", _tokens("one", (1, 1, 7), 2, 5), wanted=("x", "vo")),
    _case("one head", "merged_attention", _tokens("head", (1, 33, 16), 1, 16)),
    _case("mask", "merged_attention", _tokens("mask", (2, 35, 16), 2, 16), mask=(2, 2, 35, 35)),
    _case("blocks", "merged_attention", _tokens("16", (1, 70, 16), 2, 16), mask=(1, 5, 5), size=16, causal=True),
    _case("width 144", "merged_attention", _tokens("144", (35, 144), 2, 16)),
    _case("merged", "masked_mha", _layer("merged", (2, 19, 8), 3, 12), causal=True),
    _case("heads", "masked_mha", _layer("heads", (2, 19, 24), 3, 8), mask=(19, 19)),
    Case("masked_mha, bits", "masked_mha", _layer("bits", (1, 19, 24), 3, 8), _by("bits")),
    Case("masked_mha, scores", "masked_mha", _layer("scores", (1, 19, 8), 3, 12), _by("scores")),
    *(
        _case(name, "attention", _heads(name, (2, 8, 1021, d), (2, groups, 1021, d), d), large=True, **how)
        for name, d, groups, how in (
            ("64 wide", 64, 8, {}),
            ("64 wide, causal", 64, 2, {"causal": True}),
            ("80 wide, causal", 80, 8, {"causal": True}),
            ("128 wide, causal", 128, 8, {"causal": True}),
            ("128 wide, mask", 128, 4, {"mask": (2, 1, 1021, 1021)}),
            ("256 wide, causal", 256, 8, {"causal": True}),
            ("64 wide, blocks", 64, 8, {"mask": (8, 8), "size": 128}),
        )
    ),
    *(
        _case(name, "merged_attention", _tokens(name, (2, 1021, d), 8, d), large=True, **how)
        for name, d, how in (
            ("64 wide", 64, {}),
            ("64 wide, blocks, causal", 64, {"mask": (16, 16), "size": 64, "causal": True}),
            ("128 wide, mask", 128, {"mask": (1021, 1021)}),
            ("256 wide", 256, {}),
        )
    ),
]

# ---------------------------------------------------------------- compiled without a GPU


def offline_cases() -> list[offline.Case]:
    """Return the launches of forward and backward at usual sizes, as the launchers prepare them."""
    blocks = BlockMask(torch.ones(32, 32, dtype=torch.bool, device="meta"), 128)
    dense = torch.ones(4096, 4096, dtype=torch.bool, device="meta")
    # spills: two sums of heads of width 256, and float32 products without tensor cores, do not fit into registers
    return [
        *_compiled("bf16", 64, "merged", shared=True),
        *_compiled("bf16", 128, "merged", shared=True),
        *_compiled("bf16", 256, "merged", shared=True, spills=(0, 0, 160)),
        *_compiled("bf16", 64, "causal", causal=True),
        *_compiled("bf16", 64, "mask", mask=dense),
        *_compiled("bf16", 64, "blocks", mask=blocks),
        *_compiled("bf16", 128, "causal", causal=True),
        *_compiled("bf16", 80, "causal", causal=True)[:1],
        *_compiled("bf16", 256, "causal", causal=True, spills=(0, 0, 100)),
        *_compiled("fp16", 64, "causal", causal=True),
        *_compiled("fp32", 64, "causal", causal=True, spills=(0, 0, 320)),
        *_compiled("fp32", 256, "causal", causal=True, spills=(0, 1200, 10))[1:],
        *_compiled("bf16", 64, "one query", queries=1)[:1],
    ]


_TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.uint8: "u8", torch.int32: "i32"
}  # fmt: skip


def _compiled(
    dtype: str, d: int, name: str, *, queries: int = 4096, shared: bool = False, causal: bool = False,
    mask: torch.Tensor | BlockMask | None = None, spills: tuple[int, int, int] = (0, 0, 0),
) -> list[offline.Case]:  # fmt: skip
    """Return the launches of forward, of dq, and of dk with dv, for 8 heads of 4096 keys."""
    from . import triton as t

    found: list[offline.Case] = []

    def record(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
        part = kernel.__name__.replace("_", " ")
        found.append(_launch(f"attention {part} {dtype} {d} {name}", kernel, arguments, spills[len(found)]))

    kind = next(one for one, text in _TYPES.items() if text == dtype)
    q, k = (torch.empty(1, length, heads, d, dtype=kind, device="meta").transpose(1, 2)
            for length, heads in ((queries, 8), (4096, 1 if shared else 8)))  # fmt: skip
    v = None if shared else k
    call = t._Call(t._Mask.of(mask, torch.Size([1])), causal, 1.0, record)
    out, logs = t._forward_launch(q, k, v, call)
    _, deltas = t._backward_queries_launch(out, q, k, v, out, logs, call)
    t._backward_keys_launch(out, q, k, v, logs, deltas, call)
    return found


def _launch(name: str, kernel: Any, arguments: dict[str, Any], spills: int) -> offline.Case:
    """Make a case of a launch; constants are arguments in capitals except lengths and, as in Triton, ints of 1."""
    warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
    constants = {key: value for key, value in arguments.items()
                 if (key.isupper() and key not in "TS") or (isinstance(value, int) and value == 1)}  # fmt: skip
    rest = {key: value for key, value in arguments.items() if key not in constants}
    types = {key: _type_of(value) for key, value in rest.items()}
    aligned = tuple(key for key, type_ in types.items() if type_[0] == "*" or (type_ == "i32" and rest[key] % 16 == 0))
    sixteen = "*fp32" not in (types["q"], types["k"])
    return offline.Case(name, kernel, types, constants, warps, stages, spills, aligned, products=sixteen)


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"
