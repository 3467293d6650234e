"""Softmax attention in Triton, forward and backward, for heads up to 256 wide; the T x S matrix stays on chip.

One set of kernels (flash.py) serves plain heads, groups of heads with shared keys and values, and the merged form,
whose values are its keys. Masks are read through strides (0 for a broadcast axis). A mask in blocks comes with lists of
its tiles that are not empty, and only those are visited.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import reference
from .flash import backward_keys, backward_queries, forward
from .masks import BlockMask

LOG2_E = 1.0 / math.log(2.0)
PROGRAMS = 264  # two per multiprocessor of an H100; fewer would leave it idle

# ---------------------------------------------------------------- launching


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of a kernel (queries and keys), its warps and its pipeline stages."""

    rows: int
    columns: int
    warps: int
    stages: int


#: By kernel and bytes per entry, for heads padded to 64, 128 and 256. With larger tiles of the side that a program
#: keeps, it reads the other side less often. "keys" has 32 rows where its two sums leave no registers for more; "shared
#: keys" has one sum.
TILES = {
    ("forward", 2): (Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 3), Tiles(128, 32, 8, 2)),
    ("queries", 2): (Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2), Tiles(64, 32, 8, 2)),
    ("keys", 2): (Tiles(64, 128, 8, 2), Tiles(32, 128, 8, 2), Tiles(32, 64, 8, 2)),
    ("shared keys", 2): (Tiles(64, 128, 8, 2), Tiles(64, 128, 8, 2), Tiles(32, 64, 8, 2)),
    ("forward", 4): (Tiles(64, 32, 8, 2), Tiles(64, 32, 8, 2), Tiles(32, 32, 8, 1)),
    ("queries", 4): (Tiles(32, 32, 4, 2), Tiles(32, 32, 8, 1), Tiles(32, 16, 8, 1)),
    ("keys", 4): (Tiles(32, 32, 4, 2), Tiles(32, 32, 8, 1), Tiles(16, 32, 8, 1)),
    ("shared keys", 4): (Tiles(32, 32, 4, 2), Tiles(32, 32, 8, 1), Tiles(16, 32, 8, 1)),
}


def _padded(width: int) -> int:
    """Return the padded width of a head on chip."""
    return max(16, 1 << (width - 1).bit_length())


def _tiles(kernel: str, bytes_each: int, widest: int, queries: int) -> Tiles:
    tiles = TILES[kernel, bytes_each][0 if widest <= 64 else 1 if widest <= 128 else 2]
    if kernel == "forward" and queries < tiles.rows:  # a few queries, as in decoding
        return Tiles(_padded(queries), tiles.columns, 4, tiles.stages)
    return tiles


def _near(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, copied if its strides are too large for 32-bit offsets within a tile."""
    return tensor if max(tensor.stride()[-2:]) < 2**22 else tensor.contiguous()


class _Mask(NamedTuple):
    """A mask as kernels read it: bool (batch, heads, T, S) in blocks of a size (1: entries); axes of 1 broadcast."""

    tensor: torch.Tensor | None
    size: int

    @classmethod
    def of(cls, mask: torch.Tensor | BlockMask | None, batch: torch.Size) -> _Mask:
        if mask is None:
            return cls(None, 1)
        tensor, size = mask if isinstance(mask, BlockMask) else (mask, 1)
        tensor = tensor[(None,) * (len(batch) + 3 - tensor.dim())]
        if any(length > 1 for length in tensor.shape[:-3]):
            tensor = tensor.expand(*batch, *tensor.shape[-3:])
        return cls(_near(tensor.reshape(-1, *tensor.shape[-3:])), size)

    def arguments(self, tiles: Tiles, queries: int, keys: int, causal: bool, by_keys: bool, unused: Any) -> Any:
        """Return the mask as kernel arguments; unused: any tensor, for pointers that are not read."""
        blocks = self.tensor is not None and self.size > 1
        elements = self.tensor if self.size < max(tiles.rows, tiles.columns) else None
        lists = self.lists(tiles, queries, keys, causal, by_keys) if blocks else None
        return {
            **_pointer("mask", unused if elements is None else elements.view(torch.uint8), "bhts"),
            **_pointer("lists", unused if lists is None else lists, "bht"),
            "LISTED": blocks, "ELEMENTS": elements is not None, "SIZE": self.size, "CAUSAL": causal,
        }  # fmt: skip

    def lists(self, tiles: Tiles, queries: int, keys: int, causal: bool, by_keys: bool) -> torch.Tensor:
        """List the nonempty tiles of each tile of queries (by_keys: of keys), int32: their number, then indices."""
        assert self.tensor is not None
        sizes = (-(-queries // self.size), -(-keys // self.size))
        blocks = self.tensor.expand(*self.tensor.shape[:2], *sizes)
        full = _by_tile(_by_tile(blocks, self.size, tiles.columns, keys).mT, self.size, tiles.rows, queries).mT
        if causal:
            ends = (torch.arange(full.shape[-2], device=full.device) + 1) * tiles.rows + (keys - queries)
            starts = torch.arange(full.shape[-1], device=full.device) * tiles.columns
            full = full & (starts < ends[:, None])
        full = full.mT if by_keys else full
        order = full.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices
        return torch.cat([full.sum(-1, keepdim=True), order], dim=-1).to(torch.int32)


def _by_tile(blocks: torch.Tensor, size: int, tile: int, length: int) -> torch.Tensor:
    """Tell for each tile of the last axis whether any of its blocks is True."""
    if tile <= size:
        return blocks.repeat_interleave(size // tile, dim=-1)[..., : -(-length // tile)]
    ratio = tile // size
    padded = torch.nn.functional.pad(blocks, (0, -blocks.shape[-1] % ratio))
    return padded.reshape(*padded.shape[:-1], -1, ratio).any(-1)


def _pointer(name: str, tensor: torch.Tensor, axes: str) -> dict[str, Any]:
    """Return a tensor and its strides as kernel arguments; strides of broadcast axes are 0."""
    sizes = zip(axes, tensor.shape, tensor.stride(), strict=False)
    return {name: tensor} | {f"{name}_{axis}": stride if size > 1 else 0 for axis, size, stride in sizes}


def _common(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, tiles: Tiles, scale: float) -> dict[str, Any]:
    """Return arguments of all kernels; q (batch, heads, T, n), k (batch, groups, S, n), v like k, or None: v is k."""
    values = k if v is None else v
    n, m = k.shape[-1], values.shape[-1]
    return {
        **_pointer("q", q, "bhtn"), **_pointer("k", k, "bhtn"), **_pointer("v", values, "bhtn"),
        "heads": q.shape[1], "groups": k.shape[1], "T": q.shape[2], "S": k.shape[2], "scale": scale * LOG2_E,
        "ROWS": tiles.rows, "COLUMNS": tiles.columns, "N": n, "M": m, "WIDE_N": _padded(n), "WIDE_M": _padded(m),
        "SHARED": v is None, "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip


Launch = Callable[[Any, int, dict[str, Any]], None]  # (kernel, programs, arguments)


def _launch(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
    with torch.cuda.device_of(arguments["q"]):
        kernel[(programs,)](**arguments)


def _laid_out(like: torch.Tensor, width: int) -> torch.Tensor:
    """Make an empty tensor (batch, heads, T, width) with the axes in memory in the order of another tensor."""
    order = sorted(range(3), key=like.stride, reverse=True)
    made = torch.empty([*(like.shape[axis] for axis in order), width], dtype=like.dtype, device=like.device)
    return made.permute(*(order.index(axis) for axis in range(3)), 3)


class _Call(NamedTuple):
    """Arguments that all launches of a call share."""

    mask: _Mask
    causal: bool
    scale: float
    launch: Launch = _launch


def _forward_launch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, call: _Call
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (out (batch, heads, T, m), logs (batch, heads, T))."""
    batch, heads, queries, _ = q.shape
    width = (k if v is None else v).shape[-1]
    tiles = _tiles("forward", q.element_size(), max(q.shape[-1], width), queries)
    out = _laid_out(q, width)
    logs = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    arguments = _common(q, k, v, tiles, call.scale) | _pointer("out", out, "bhtn") | {"logs": logs}
    arguments |= call.mask.arguments(tiles, queries, k.shape[2], call.causal, False, q)
    call.launch(forward, triton.cdiv(queries, tiles.rows) * batch * heads, arguments)
    return out, logs


def _backward_queries_launch(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, out: torch.Tensor, logs: torch.Tensor,
    call: _Call,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return (dq, deltas (batch, heads, T))."""
    tiles = _tiles("queries", q.element_size(), max(q.shape[-1], out.shape[-1]), q.shape[2])
    dq, deltas = _laid_out(q, q.shape[-1]), torch.empty_like(logs)
    arguments = _common(q, k, v, tiles, call.scale) | {"logs": logs, "deltas": deltas, "scale_dq": call.scale}
    arguments |= _pointer("out", out, "bhtn") | _pointer("dout", grad, "bhtn") | _pointer("dq", dq, "bhtn")
    arguments |= call.mask.arguments(tiles, q.shape[2], k.shape[2], call.causal, False, q)
    call.launch(backward_queries, triton.cdiv(q.shape[2], tiles.rows) * q.shape[0] * q.shape[1], arguments)
    return dq, deltas


def _backward_keys_launch(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, logs: torch.Tensor,
    deltas: torch.Tensor, call: _Call,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Return (dk, dv); if the values are the keys, (dk + dv, None)."""
    batch, groups, length, _ = k.shape
    tiles = _tiles(
        "shared keys" if v is None else "keys", q.element_size(), max(q.shape[-1], grad.shape[-1]), q.shape[2]
    )
    count = triton.cdiv(length, tiles.columns) * batch
    parts = groups * _split(q.shape[1] // groups, count * groups)
    dk, dv = _parted(k, parts), None if v is None else _parted(v, parts)
    arguments = _common(q, k, v, tiles, call.scale) | {"logs": logs, "deltas": deltas}
    arguments |= {"scale_dk": call.scale, "parts": parts}
    arguments |= _pointer("dout", grad, "bhtn") | _pointer("dk", dk, "bhtn")
    arguments |= _pointer("dv", dk if dv is None else dv, "bhtn")
    arguments |= call.mask.arguments(tiles, q.shape[2], length, call.causal, True, q)
    call.launch(backward_keys, count * parts, arguments)
    return _joined(dk, k), None if dv is None or v is None else _joined(dv, v)


def _split(heads: int, programs: int) -> int:
    """Return into how many parts to split heads with shared keys, for enough programs to fill a device."""
    divisors = (parts for parts in range(1, heads + 1) if heads % parts == 0)
    return next((parts for parts in divisors if programs * parts >= PROGRAMS), heads)


def _parted(like: torch.Tensor, parts: int) -> torch.Tensor:
    """Allocate the gradient to keys or values: one float32 sum per part if groups are split."""
    batch, groups, length, width = like.shape
    if parts == groups:
        return _laid_out(like, width)
    return torch.empty(batch, parts, length, width, dtype=torch.float32, device=like.device)


def _joined(grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sum the parts of a gradient, one result per group."""
    groups = like.shape[1]
    return grad if grad.shape[1] == groups else grad.unflatten(1, (groups, -1)).sum(2).to(like.dtype)


class _Attention(Function):
    """Attention of (batch, heads, T, n) to (batch, groups, S, n), (batch, groups, S, m); v = None: v is k."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, mask: _Mask, causal: bool, scale: float
    ) -> torch.Tensor:
        out, logs = _forward_launch(q, k, v, _Call(mask, causal, scale))
        ctx.save_for_backward(q, k, v, out, logs, mask.tensor)
        ctx.rest = mask.size, causal, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, logs, mask = ctx.saved_tensors
        size, causal, scale = ctx.rest
        grad = _near(grad)
        call = _Call(_Mask(mask, size), causal, scale)
        dq, deltas = _backward_queries_launch(grad, q, k, v, out, logs, call)
        dk = dv = None
        if any(ctx.needs_input_grad[1:3]):
            dk, dv = _backward_keys_launch(grad, q, k, v, logs, deltas, call)
        return dq, dk, dv, None, None, None


# ---------------------------------------------------------------- the public kernels


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | BlockMask | None,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """Compute softmax(scale q k^T; mask) v: q (..., heads, T, n), k (..., groups, S, n), v (..., groups, S, m)."""
    if not q.numel():  # nothing to launch
        return reference.attention(q, k, v, mask, causal, scale)
    batch = q.shape[:-3]
    q, k, v = (_near(t.reshape(-1, *t.shape[-3:])) for t in (q, k, v))
    out: torch.Tensor = _Attention.apply(q, k, v, _Mask.of(mask, batch), causal, float(scale))
    return out.reshape(*batch, *out.shape[1:])


def merged_attention(
    x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, mask: torch.Tensor | BlockMask | None, causal: bool
) -> torch.Tensor:
    """Sum softmax(x qk_h x^T; mask) x vo_h over heads: x (..., T, d), qk (heads, d, d), vo (heads, d, d_out)."""
    if not x.numel():  # nothing to launch
        return reference.merged_attention(x, qk, vo, mask, causal)
    batch, (length, d), heads = x.shape[:-2], x.shape[-2:], qk.shape[0]
    tokens = _near(x.reshape(-1, length, d))
    queries = tokens @ qk.transpose(0, 1).reshape(d, heads * d)  # (batch, T, heads * d)
    queries = queries.unflatten(-1, (heads, d)).transpose(1, 2)  # (batch, heads, T, d)
    heads_out = _Attention.apply(queries, tokens.unsqueeze(1), None, _Mask.of(mask, batch), causal, 1.0)
    out: torch.Tensor = heads_out.transpose(1, 2).flatten(2) @ vo.reshape(heads * d, -1)  # (batch, T, d_out)
    return out.reshape(*batch, length, -1)
