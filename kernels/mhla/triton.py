"""Token-level multi-head linear attention in chunks (arXiv 2601.07832): O(T n m) for few blocks, without T x T.

A block b of tokens has the summaries S_b = sum_j k_j v_j^T (n x m) and z_b = sum_j k_j. torch mixes these with the
matrix over blocks, in one product for all heads: row i has the mixed summaries for the tokens of block i. Two kernels
do the rest, forward and backward:

    summaries   of any two sets of rows:    sum_t a_t (g_t b_t)^T  and  sum_t g'_t a_t
    attend      the output of a row:        M^T a_t + w_t z  +  m_ii sum_j (a_t . b_j + w_t w'_j) c_j,  j of its block

The normaliser is one more column of the values: w = 1 forward, and its gradient, "slope", backward. So forward is
(a, b, c) = (q, k, v), the gradient to q (g, v, k), to k (v, g, q) and to v (k, q, g), with g the gradient to the sums.
Summaries are float32. If inputs have 16 bits, products with summaries or g use tf32, which has as many bits as float16
without its narrow range; the kernels are memory-bound anyway (some 40 operations per byte at width 64). Products for
the gradient to mixing use all bits of float32, as three products of tf32, since with normalised rows that gradient is
the difference of sums that nearly cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..autocast import without_autocast
from . import reference

# ---------------------------------------------------------------- kernels


@triton.jit
def _rows(rows, stride_t, stride_w, t, live, width, offset, scale, W: tl.constexpr, SCALED: tl.constexpr):
    """Load rows (T, W) from column `offset`, 0 outside of the tensor; in float32 and scaled by row if SCALED."""
    w = offset + tl.arange(0, W)
    at = rows + t.to(tl.int64)[:, None] * stride_t + w[None, :] * stride_w
    found = tl.load(at, mask=live[:, None] & (w < width)[None, :], other=0.0)
    if SCALED:
        found = found.to(tl.float32) * tl.load(scale + t, mask=live, other=0.0)[:, None]
    return found


@triton.jit
def _summaries(
    a, b, scale, slope, out, out_z,
    heads, length, block, width_a, width_b, row,
    a_o, a_h, a_t, a_w, b_o, b_h, b_t, b_w,
    SCALED: tl.constexpr, Z: tl.constexpr, T: tl.constexpr, A: tl.constexpr, B: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write out (blocks, outer * heads, width_a, width_b), float32: the sum of a_t b_t^T over each block.

    If Z, out_z is the sum of a_t slope_t. If SCALED, b is scaled by `scale`; otherwise slope is 1. row: the stride
    between blocks.
    """
    tiles_b = tl.cdiv(width_b, B)
    tiles = tl.cdiv(width_a, A) * tiles_b
    program = tl.program_id(0)
    tile = program % tiles
    blocks = tl.cdiv(length, block)
    i = (program // tiles) % blocks
    head = (program // tiles // blocks).to(tl.int64)
    from_a = (tile // tiles_b) * A
    from_b = (tile % tiles_b) * B
    a += (head // heads) * a_o + (head % heads) * a_h
    b += (head // heads) * b_o + (head % heads) * b_h
    scale += head * length
    slope += head * length
    local = tl.arange(0, T)
    t = i * block + local
    live = (local < block) & (t < length)
    rows_a = _rows(a, a_t, a_w, t, live, width_a, from_a, scale, A, False)
    rows_b = _rows(b, b_t, b_w, t, live, width_b, from_b, scale, B, SCALED)
    found = tl.dot(tl.trans(rows_a.to(rows_b.dtype)), rows_b, input_precision=PRECISION)  # (A, B)
    u = from_a + tl.arange(0, A)
    w = from_b + tl.arange(0, B)
    out += i.to(tl.int64) * row + head * width_a * width_b
    inside = (u < width_a)[:, None] & (w < width_b)[None, :]
    tl.store(out + u[:, None] * width_b + w[None, :], found, mask=inside)
    if Z:  # noqa: SIM102 (one is a compile-time condition, the other is not)
        if from_b == 0:
            total = rows_a.to(tl.float32)
            if SCALED:
                total *= tl.load(slope + t, mask=live, other=0.0)[:, None]
            tl.store(out_z + i.to(tl.int64) * row + head * width_a + u, tl.sum(total, axis=0), mask=u < width_a)


@triton.jit
def _attend(
    a, b, c, scale, slope, states, z, mixing, out, inverse, dots, partner,
    heads, length, block, width_a, width_c, row, mixing_i,
    a_o, a_h, a_t, a_w, b_o, b_h, b_t, b_w, c_o, c_h, c_t, c_w, states_a, states_c, p_o, p_h, p_t, p_w,
    OWN: tl.constexpr, LATER: tl.constexpr, SCALED_A: tl.constexpr, SCALED_B: tl.constexpr, SCALED_C: tl.constexpr,
    SLOPE: tl.constexpr, NORMALISE: tl.constexpr, DOTS: tl.constexpr,
    T: tl.constexpr, A: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr, OWN_PRECISION: tl.constexpr,
):  # fmt: skip
    """Write out (outer * heads, T, width_c): each row's product with the summaries and, if OWN, rows of its own block.

    Those are the rows up to itself, or from itself on if LATER. SLOPE: the side, "a" or "b", whose factor of z is
    `slope` while the other's is 1; "" for neither. NORMALISE: divide by the same sums with 1 instead of c, and store
    their inverse; for a sum of 0, store 0 and do not divide. DOTS: store the products of the rows' own-block part,
    before mixing, with `partner`.
    """
    tiles = tl.cdiv(width_c, C)
    program = tl.program_id(0)
    tile = program % tiles
    blocks = tl.cdiv(length, block)
    i = (program // tiles) % blocks
    head = (program // tiles // blocks).to(tl.int64)
    outer = head // heads
    inner = head % heads
    a += outer * a_o + inner * a_h
    states += i.to(tl.int64) * row + head * width_a * width_c
    scale += head * length
    local = tl.arange(0, T)
    t = i * block + local
    live = (local < block) & (t < length)
    w = tile * C + tl.arange(0, C)
    rows_out = tl.zeros((T, C), tl.float32)
    if OWN:
        b += outer * b_o + inner * b_h
        c += outer * c_o + inner * c_h
        met = tl.zeros((T, T), tl.float32)
    if NORMALISE:
        total = tl.zeros((T,), tl.float32)
        z += i.to(tl.int64) * row + head * width_a
    for start in range(0, width_a, A):
        u = start + tl.arange(0, A)
        rows_a = _rows(a, a_t, a_w, t, live, width_a, start, scale, A, SCALED_A)
        matrix = tl.load(
            states + u[:, None] * states_a + w[None, :] * states_c,
            mask=(u < width_a)[:, None] & (w < width_c)[None, :],
            other=0.0,
        )
        rows_out = tl.dot(rows_a.to(tl.float32), matrix, rows_out, input_precision=PRECISION)
        if NORMALISE:
            weights = tl.load(z + u, mask=u < width_a, other=0.0)
            total += tl.sum(rows_a.to(tl.float32) * weights[None, :], axis=1)
        if OWN:
            rows_b = _rows(b, b_t, b_w, t, live, width_a, start, scale, A, SCALED_B)
            if SCALED_A and OWN_PRECISION != "ieee":  # scaled below: products of 16 bits are exact
                unscaled = _rows(a, a_t, a_w, t, live, width_a, start, scale, A, False)
                met = tl.dot(unscaled, tl.trans(rows_b), met, input_precision=OWN_PRECISION)
            elif SCALED_A or SCALED_B:
                met = tl.dot(rows_a.to(tl.float32), tl.trans(rows_b.to(tl.float32)), met, input_precision=OWN_PRECISION)
            else:
                met = tl.dot(rows_a, tl.trans(rows_b), met, input_precision=OWN_PRECISION)
    if SLOPE != "":
        slopes = tl.load(slope + head * length + t, mask=live, other=0.0)
        here = tl.load(z + i.to(tl.int64) * row + head * width_c + w, mask=w < width_c, other=0.0)
        if SLOPE == "a":
            rows_out += slopes[:, None] * here[None, :]
        else:
            rows_out += here[None, :]
    if OWN:
        if SCALED_A and OWN_PRECISION != "ieee":
            met *= tl.load(scale + t, mask=live, other=0.0)[:, None]
        if SLOPE == "a":
            met += slopes[:, None]
        if SLOPE == "b":
            met += slopes[None, :]
        if LATER:
            met = tl.where(local[:, None] <= local[None, :], met, 0.0)
        else:
            met = tl.where(local[:, None] >= local[None, :], met, 0.0)
        share = tl.load(mixing + i.to(tl.int64) * mixing_i).to(tl.float32)
        rows_c = _rows(c, c_t, c_w, t, live, width_c, tile * C, scale, C, SCALED_C).to(tl.float32)
        if DOTS:
            own = tl.dot(met, rows_c, input_precision=OWN_PRECISION)
            rows_out += own * share
            partner += outer * p_o + inner * p_h
            rows_p = _rows(partner, p_t, p_w, t, live, width_c, tile * C, scale, C, False).to(tl.float32)
            tl.store(dots + program, tl.sum(tl.sum(own * rows_p, axis=1), axis=0))
        else:
            rows_out = tl.dot(met * share, rows_c, rows_out, input_precision=OWN_PRECISION)
        if NORMALISE:
            total += tl.sum(met, axis=1) * share
    if NORMALISE:
        upside = 1.0 / tl.where(total == 0.0, 1.0, total)
        rows_out *= upside[:, None]
        if tile == 0:
            tl.store(inverse + head * length + t, tl.where(total == 0.0, 0.0, upside), mask=live)
    tl.store(
        out + (head * length + t)[:, None] * width_c + w[None, :],
        rows_out.to(out.dtype.element_ty),
        mask=live[:, None] & (w < width_c)[None, :],
    )


@triton.jit
def _slopes(
    out, grad, inverse, scale, slope, heads, length, rows, width, g_o, g_h, g_t, g_w, R: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """Write the factors that turn rows of grad into the gradient to the sums, and the gradient to the normaliser."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    w = tl.arange(0, W)
    live = r < rows
    head = r // length
    from_row = (head // heads) * g_o + (head % heads) * g_h + (r % length) * g_t
    inside = live[:, None] & (w < width)[None, :]
    g = tl.load(grad + from_row[:, None] + w[None, :] * g_w, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(out + r[:, None] * width + w[None, :], mask=inside, other=0.0).to(tl.float32)
    one = tl.load(inverse + r, mask=live, other=0.0)
    tl.store(slope + r, -one * tl.sum(g * o, axis=1), mask=live)
    tl.store(scale + r, tl.where(one == 0.0, 1.0, one), mask=live)


# ---------------------------------------------------------------- launches


def _summaries_tile(block: int, n: int, m: int, dtype: torch.dtype) -> dict[str, int]:
    """Return T rows of a block and A x B entries of a summary: 64 x 64 in registers; less in float32, for operands."""
    rows, most = _power(block), 64 if dtype != torch.float32 else 32
    return {"T": rows, "A": min(most, _power(n)), "B": min(most, _power(m)), "num_warps": 8 if rows > 64 else 4}


def _attend_tile(block: int, width_a: int, width_c: int, dtype: torch.dtype) -> dict[str, int]:
    """Return T rows by C columns in steps of A: small ones that suit tensor cores, next to T x T; less in float32."""
    rows = _power(block)
    if dtype == torch.float32:
        a, c, warps = 16, 16 if rows > 64 else 32, 8
    else:
        a, c, warps = 32, 64, 8 if rows > 64 else 4
    return {"T": rows, "A": min(a, _power(width_a)), "C": min(c, _power(width_c)), "num_warps": warps}


def _power(width: int) -> int:
    """Return the least power of two that holds a width and that tl.dot supports."""
    return max(16, int(triton.next_power_of_2(width)))


def _precision(dtype: torch.dtype, exact: bool = False) -> str:
    """Return the precision of products with a float32 operand; exact: all bits, by three products of tf32."""
    return "ieee" if dtype == torch.float32 else "tf32x3" if exact else "tf32"


def _summed(
    a: torch.Tensor, b: torch.Tensor, block: int, z: bool, scale: torch.Tensor | None, slope: torch.Tensor | None
) -> torch.Tensor:
    """Summarise a (outer, heads, T, n), b (outer, heads, T, m): float32 (blocks, outer * heads * (n m [+ n for z]))."""
    outer, heads, length, n = a.shape
    m, blocks = b.shape[-1], triton.cdiv(length, block)
    row = outer * heads * n * (m + z)
    out = torch.empty(blocks, row, dtype=torch.float32, device=a.device)
    tile = _summaries_tile(block, n, m, a.dtype)
    grid = (triton.cdiv(n, tile["A"]) * triton.cdiv(m, tile["B"]) * blocks * outer * heads,)
    with torch.cuda.device_of(a):
        _summaries[grid](
            a, b, out if scale is None else scale, out if slope is None else slope, out,
            _z(out, outer * heads * n * m, z), heads, length, block, n, m, row, *a.stride(), *b.stride(),
            SCALED=scale is not None, Z=z, **tile, PRECISION=_precision(a.dtype, scale is not None),
        )  # fmt: skip
    return out


def _z(sums: torch.Tensor, first: int, z: bool) -> torch.Tensor:
    """Return the z part of summaries."""
    return sums[:, first:] if z else sums


class _Reading(NamedTuple):
    """Options of a launch of `_attend`. scaled: the one of "abc" that is grad; inverse: receives the inverse sums."""

    transposed: bool = False  # summaries map m to n
    later: bool = False
    scaled: str = ""
    slope: str = ""
    inverse: torch.Tensor | None = None
    partner: torch.Tensor | None = None


@dataclass(frozen=True)
class _Blocks:
    """Arguments that all launches of a call share."""

    mixing: torch.Tensor
    block: int
    causal: bool
    scale: torch.Tensor | None = None  # of the rows of grad, if normalised
    slope: torch.Tensor | None = None

    def attend(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, states: torch.Tensor, out: torch.Tensor,
        reading: _Reading,
    ) -> torch.Tensor:  # fmt: skip
        """Fill out (outer, heads, T, width of c); return dots with partner, (outer * heads, blocks, tiles)."""
        transposed, later, scaled, slope, inverse, partner = reading
        outer, heads, length, width_a = a.shape
        width_c, blocks = c.shape[-1], triton.cdiv(length, self.block)
        tile = _attend_tile(self.block, width_a, width_c, a.dtype)
        tiles = triton.cdiv(width_c, tile["C"])
        shape = (outer * heads, blocks, tiles if partner is not None else 0)
        dots = torch.empty(shape, dtype=torch.float32, device=a.device)
        some = out if inverse is None else inverse
        with torch.cuda.device_of(a):
            _attend[(tiles * blocks * outer * heads,)](
                a, b, c, some if self.scale is None else self.scale, some if self.slope is None else self.slope,
                states, _z(states, outer * heads * width_a * width_c, bool(slope) or inverse is not None), self.mixing,
                out, some, dots, a if partner is None else partner,
                heads, length, self.block, width_a, width_c, states.stride(0), sum(self.mixing.stride()),
                *a.stride(), *b.stride(), *c.stride(), *((1, width_a) if transposed else (width_c, 1)),
                *(a if partner is None else partner).stride(),
                OWN=self.causal, LATER=later, SCALED_A="a" in scaled, SCALED_B="b" in scaled, SCALED_C="c" in scaled,
                SLOPE=slope, NORMALISE=inverse is not None, DOTS=partner is not None, **tile,
                PRECISION=_precision(a.dtype, out.dtype == torch.float32),
                OWN_PRECISION=_precision(a.dtype, out.dtype == torch.float32 or partner is not None),
            )  # fmt: skip
        return dots

    def mixed(self, blocks: int) -> torch.Tensor:
        """Return the matrix that mixes summaries: (blocks, blocks), float32, without the own block if causal."""
        matrix = self.mixing[:blocks, :blocks].float()
        return matrix.tril(-1) if self.causal else matrix


def mhla(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mixing: torch.Tensor, block: int, causal: bool, normalise: bool
) -> torch.Tensor:
    """Linear attention over mixed blocks: q, k (..., heads, T, n), v (..., heads, T, m) -> (..., heads, T, m)."""
    if not (q.numel() and v.numel()):  # nothing to launch
        return reference.mhla(q, k, v, mixing, block, causal, normalise)
    q4, k4, v4 = (t.reshape(-1, *t.shape[-3:]) for t in (q, k, v))
    out: torch.Tensor = _Mhla.apply(q4, k4, v4, mixing, block, causal, normalise)
    return out.reshape(v.shape)


class _Mhla(Function):
    """Saves the summaries, 4 n m / block bytes per token and head; backward mixes them again.

    A normalised output is recomputed in float32 as well: an output rounded to 16 bits would make the gradient to mixing
    some ten times less accurate.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mixing: torch.Tensor,
        block: int,
        causal: bool,
        normalise: bool,
    ) -> torch.Tensor:
        shared = _Blocks(mixing, block, causal)
        sums = _summed(k, v, block, normalise, None, None)
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        inverse = torch.empty(v.shape[:-1], dtype=torch.float32, device=v.device) if normalise else None
        shared.attend(q, k, v, shared.mixed(len(sums)) @ sums, out, _Reading(inverse=inverse))
        ctx.save_for_backward(q, k, v, mixing, sums, inverse)
        ctx.block, ctx.causal = block, causal
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, mixing, sums, inverse = ctx.saved_tensors
        block, causal, normalise = ctx.block, ctx.causal, inverse is not None
        shared = _Blocks(mixing, block, causal)
        mixed = shared.mixed(len(sums))
        states = mixed @ sums
        scale = slope = None
        if normalise:
            out = torch.empty(v.shape, dtype=torch.float32, device=v.device)
            shared.attend(q, k, v, states, out, _Reading(inverse=inverse))
            scale, slope = _slopes_of(out, grad, inverse)
            del out
        shared = _Blocks(mixing, block, causal, scale, slope)
        of_states = _summed(q, grad, block, normalise, scale, slope)  # the gradient to the mixed summaries
        dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
        rows, columns = ("a", "b") if normalise else ("", "")
        of_queries = _Reading(transposed=True, scaled=rows, slope=rows, partner=q if causal else None)
        dots = shared.attend(grad, v, k, states, dq, of_queries)
        of_sums = mixed.T @ of_states
        of_keys = _Reading(transposed=True, later=True, scaled=columns, slope=columns)
        shared.attend(v, grad, q, of_sums, dk, of_keys)
        shared.attend(k, q, grad, of_sums, dv, _Reading(later=True, scaled="c" if normalise else ""))
        dmixing = None
        if ctx.needs_input_grad[3]:
            found = of_states @ sums.T
            if causal:
                found = found.tril(-1) + dots.sum((0, 2)).diag()
            dmixing = torch.zeros_like(mixing)
            dmixing[: len(sums), : len(sums)] = found.to(mixing.dtype)
        return dq, dk, dv, dmixing, None, None, None


def _slopes_of(out: torch.Tensor, grad: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (scale, slope), float32 (outer, heads, T): see `_slopes`."""
    _, heads, length, width = out.shape
    scale, slope = torch.empty_like(inverse), torch.empty_like(inverse)
    with torch.cuda.device_of(out):
        _slopes[(triton.cdiv(inverse.numel(), 16),)](
            out, grad, inverse, scale, slope, heads, length, inverse.numel(), width, *grad.stride(),
            R=16, W=triton.next_power_of_2(width),
        )  # fmt: skip
    return scale, slope
