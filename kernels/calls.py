"""The public kernels: what they take, what they refuse, and which form a call goes to."""

from __future__ import annotations

import math
from functools import partial

import torch

from . import reference
from .autocast import as_autocast
from .bits import check_bits
from .choice import check_impl, takes_triton
from .shapes import (
    BlockMask,
    Scored,
    Threshold,
    as_threshold,
    check_attending,
    check_device,
    check_floats,
    is_of_pairs,
    placed,
)

WIDEST = 256  # head width that Triton's attention holds on chip
SIXTEEN = (torch.float16, torch.bfloat16)
LONGEST = 128  # block of tokens that Triton's linear attention does

# ---------------------------------------------------------------- masked weights


def masked_weight(
    weight: torch.Tensor, mask: torch.Tensor | Scored, *, out: torch.Tensor | None = None, impl: str = "auto"
) -> torch.Tensor:
    """The weight where its mask keeps it, else exactly 0, in one pass over memory.

    Args:
        weight: (rows, columns), float; it gets no gradient.
        mask: bits, uint8 (rows, ceil(columns / 8)) of :func:`pack_mask`; or (scores, threshold), scores float32 of the
            weight's shape and a :class:`Threshold` or a number: kept are |score| > threshold, and ties as it says.
            Scores get the straight-through gradient of |score|: grad * weight * sign (Ramanujan et al. 2020).
        out: of the weight's shape and dtype, any strides: is written to and returned, and nothing gets a gradient.
        impl: "auto", "reference" or "triton".

    Returns the weight's shape and dtype. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    check_floats(weight=weight)
    mask = _check_mask(weight, mask)
    if out is not None:
        _check_like(weight, out)
    if takes_triton("masked_weight", weight, impl=impl):
        from . import triton_masked_linear

        return triton_masked_linear.masked_weight(weight, mask, out)
    made = reference.masked_weight(weight, mask)
    return made if out is None else out.copy_(made.detach())


def score_gradient(
    grad: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, *, impl: str = "auto"
) -> torch.Tensor:
    """The straight-through gradient of |score| (Ramanujan et al. 2020): grad * weight, with the score's sign, + at 0.

    grad and weight (..., rows, columns), float; scores float32 of that shape, the result like them. Raises ValueError
    for shapes, dtypes or devices that do not fit.
    """
    check_floats(grad=grad, weight=weight)
    _check_scores(weight, scores)
    check_device(weight=weight, scores=scores)
    if grad.shape != weight.shape:
        raise ValueError(f"grad {tuple(grad.shape)}: must be {tuple(weight.shape)} as weight is")
    if takes_triton("score_gradient", weight, impl=impl):
        from . import triton_masked_linear

        return triton_masked_linear.score_gradient(grad, weight, scores)
    return reference.score_gradient(grad, weight, scores)


@as_autocast
def masked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | Scored,
    *,
    bias: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """X times the masked weight, transposed, whose masked copy is never written to memory.

    Differentiable in x, the bias and the scores (straight through, as :func:`masked_weight`); the weight gets no
    gradient.

    Args:
        x: (..., in), float.
        weight: (out, in), of x's dtype.
        mask: as in :func:`masked_weight`.
        bias: (out,), of x's dtype.
        impl: "auto", "reference" or "triton".

    Returns (..., out), of x's dtype. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    check_floats(x=x, weight=weight, bias=bias)
    _check_linear(x, weight.shape, bias)
    mask = _check_mask(weight, mask)
    if takes_triton("masked_linear", x, impl=impl):
        from . import triton_masked_linear

        return triton_masked_linear.masked_linear(x, weight, mask, bias)
    return reference.masked_linear(x, weight, mask, bias)


def _check_linear(x: torch.Tensor, shape: tuple[int, ...], bias: torch.Tensor | None) -> None:
    if len(shape) != 2 or x.dim() < 1 or x.shape[-1] != shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(shape)}: must be (..., in) and (out, in)")
    if bias is not None and bias.shape != shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)}: must be ({shape[0]},)")


def _check_mask(weight: torch.Tensor, mask: torch.Tensor | Scored, name: str = "mask") -> torch.Tensor | Scored:
    """The mask, its threshold as tensors."""
    _check_matrix(weight)
    if isinstance(mask, torch.Tensor):
        check_bits(mask, weight.shape[-1], name)
        if mask.shape[:-1] != weight.shape[:-1]:
            raise ValueError(f"{name}: bits of {tuple(mask.shape[:-1])} rows, must be of {tuple(weight.shape[:-1])}")
        check_device(weight=weight, **{name: mask})
        return mask
    scores, given = mask
    _check_scores(weight, scores)
    threshold = as_threshold(given, scores.device)
    check_device(weight=weight, scores=scores, threshold=threshold.value, last_tie=threshold.last_tie)
    return scores, threshold


def _check_matrix(weight: torch.Tensor) -> None:
    if weight.dim() < 2:
        raise ValueError(f"weight of shape {tuple(weight.shape)}: must be (rows, columns)")


def _check_scores(weight: torch.Tensor, scores: torch.Tensor) -> None:
    _check_matrix(weight)
    if scores.dtype != torch.float32 or scores.shape != weight.shape:
        shape = tuple(weight.shape)
        raise ValueError(f"scores: {scores.dtype} {tuple(scores.shape)}, must be torch.float32 {shape}")


def _check_like(weight: torch.Tensor, out: torch.Tensor) -> None:
    check_floats(weight=weight, out=out)
    if out.shape != weight.shape:
        raise ValueError(f"out {tuple(out.shape)}: must be {tuple(weight.shape)} as weight is")


# ---------------------------------------------------------------- selection


def select_threshold(scores: torch.Tensor, k: int, *, near: Threshold | None = None, impl: str = "auto") -> Threshold:
    """Where to cut for exactly k scores to be kept: those of largest magnitude, ties going to the lowest index.

    The rule of `slth.masking.masks`, on the scores' own device: nothing is copied to the host, whose work goes on
    meanwhile.

    Args:
        scores: float32, any shape, not NaN (which is not looked for).
        k: how many are kept, from 1 to their number.
        near: the last step's threshold, from where the search starts; never changes the result.
        impl: "auto", "reference" or "triton".

    Returns a :class:`Threshold`, whose last_tie counts row by row. Raises ValueError for another dtype or k.
    """
    if scores.dtype != torch.float32:
        raise ValueError(f"scores of dtype {scores.dtype}: must be torch.float32")
    if not 1 <= k <= scores.numel():
        raise ValueError(f"k={k}: must be from 1 to the number of scores, {scores.numel()}")
    if near is not None:
        check_device(scores=scores, near=near.value)
    if takes_triton("select_threshold", scores, impl=impl):
        from . import triton_select

        return triton_select.select_threshold(scores, k, near)
    return reference.select_threshold(scores, k)


# ---------------------------------------------------------------- attention


@as_autocast
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | BlockMask | None = None,
    causal: bool = False,
    *,
    scale: float | None = None,
    padded: bool = False,
    impl: str = "auto",
) -> torch.Tensor:
    """softmax(scale q k^T; mask) v for heads side by side, the T x S matrix never written to memory.

    Args:
        q: (..., heads, T, n), float.
        k: (..., groups, S, n), groups dividing heads: heads / groups neighbours share one (GQA).
        v: (..., groups, S, m).
        mask: bool, broadcastable to (..., heads, T, S), True = attend; or a :class:`BlockMask`, whose empty blocks cost
            nothing. A token that the mask says is padding may attend to nothing, and gets zeros: with one row for all
            queries it is a mask of keys, which says so; with more, a token is padding to which no query attends.
        causal: query t attends to keys up to S - T + t only.
        scale: 1 / sqrt(n) unless given.
        padded: every query that attends to nothing is padding, whatever the mask looks like.
        impl: "auto", "reference" or "triton" (n, m <= 256).

    Returns (..., heads, T, m), of q's dtype. Raises ValueError for a query that attends to nothing and is no padding,
    and for shapes, dtypes or devices that do not fit.
    """
    check_floats(q=q, k=k, v=v)
    _check_heads(q, k, v)
    _check_attended(mask, causal, (*q.shape[:-1], k.shape[-2]), q.device, padded)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if takes_triton("attention", q, impl=impl, unfit=too_wide(q.shape[-1], v.shape[-1])) and q.numel():
        from . import triton_attention

        return triton_attention.attention(q, k, v, mask, causal, scale)
    return reference.attention(q, k, v, _dense(mask, q.shape[-2], k.shape[-2]), causal, scale)


@as_autocast
def merged_attention(
    x: torch.Tensor,
    qk: torch.Tensor,
    vo: torch.Tensor,
    mask: torch.Tensor | BlockMask | None = None,
    causal: bool = False,
    *,
    impl: str = "auto",
) -> torch.Tensor:
    """Attention from merged matrices: sum over heads of softmax(x qk_h x^T; mask) x vo_h; keys and values are x itself.

    The route for heads wider than their input: the width of the T x T part is d, whatever theirs was.

    Args:
        x: (..., T, d), float.
        qk: (heads, d, d), the scale included.
        vo: (heads, d, d_out).
        mask: as in :func:`attention`, broadcastable to (..., heads, T, T).
        causal: token t attends to tokens up to t only.
        impl: "auto", "reference" or "triton" (d <= 256).

    Returns (..., T, d_out), of x's dtype. Raises ValueError as :func:`attention` does.
    """
    check_floats(x=x, qk=qk, vo=vo)
    d = x.shape[-1]
    if x.dim() < 2 or qk.shape[1:] != (d, d) or vo.shape[:2] != qk.shape[:2] or vo.dim() != 3:
        shapes = f"x {tuple(x.shape)}, qk {tuple(qk.shape)}, vo {tuple(vo.shape)}"
        raise ValueError(f"{shapes}: must be (..., T, d), (heads, d, d), (heads, d, d_out)")
    length = x.shape[-2]
    _check_attended(mask, causal, (*x.shape[:-2], qk.shape[0], length, length), x.device)
    if takes_triton("merged_attention", x, impl=impl, unfit=too_wide(d)) and x.numel():
        from . import triton_attention

        return triton_attention.merged_attention(x, qk, vo, mask, causal)
    return reference.merged_attention(x, qk, vo, _dense(mask, length, length), causal)


@as_autocast
def masked_mha(
    x: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    masks: tuple[torch.Tensor | Scored | None, ...] = (None, None, None, None),
    mask: torch.Tensor | BlockMask | None = None,
    causal: bool = False,
    *,
    impl: str = "auto",
) -> torch.Tensor:
    """Multi-head attention under weight masks: heads wider than d_in are merged, others attend as they are.

    Args:
        x: (..., T, d_in), float.
        query: (heads, d_in, hidden), as key and value.
        key: (heads, d_in, hidden).
        value: (heads, d_in, hidden).
        output: (heads, hidden, d_out).
        masks: of query, key, value and output, each as in :func:`masked_weight`, or None: all are kept.
        mask: which tokens attend to which, as in :func:`attention`.
        causal: token t attends to tokens up to t only.
        impl: "auto", "reference" or "triton".

    Returns (..., T, d_out), of x's dtype. Raises ValueError as :func:`masked_weight` and :func:`attention` do.
    """
    check_impl(impl)
    weights = {"query": query, "key": key, "value": value, "output": output}
    check_floats(x=x, **weights)
    heads, d_in, hidden = query.shape if query.dim() == 3 else (0, 0, 0)
    inner = (heads, d_in, hidden)
    if x.shape[-1] != d_in or key.shape != inner or value.shape != inner or output.shape[:2] != (heads, hidden):
        shapes = ", ".join(f"{name} {tuple(w.shape)}" for name, w in weights.items())
        raise ValueError(f"x {tuple(x.shape)}, {shapes}: must be (heads, d_in, hidden), output (heads, hidden, d_out)")
    if len(masks) != 4:
        raise ValueError(f"masks: {len(masks)} given, must be 4: of query, key, value and output")
    query, key, value, output = (
        weight if one is None else masked_weight(weight, one, impl=impl)
        for weight, one in zip(weights.values(), masks, strict=True)
    )
    scale = 1.0 / math.sqrt(hidden)
    if hidden > d_in:
        return merged_attention(x, (query @ key.mT) * scale, value @ output, mask, causal, impl=impl)
    tokens = x.unsqueeze(-3)
    found = attention(tokens @ query, tokens @ key, tokens @ value, mask, causal, scale=scale, impl=impl)
    return (found @ output).sum(-3)


@partial(as_autocast, but="mixing")
def mhla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mixing: torch.Tensor,
    *,
    block: int,
    causal: bool = False,
    normalise: bool = True,
    impl: str = "auto",
) -> torch.Tensor:
    """Token-level multi-head linear attention (arXiv 2601.07832) after its feature map, in chunks.

    out_t = sum_j m[block(t), block(j)] (q_t . k_j) v_j, over its weights' sum where `normalise` (0 where that is 0);
    causal: j <= t.

    Args:
        q: (..., heads, T, n), float, made positive by a feature map.
        k: (..., heads, T, n), likewise.
        v: (..., heads, T, m).
        mixing: (blocks, blocks) or larger, blocks = ceil(T / block); the entries beyond are not read. Of q's dtype, or
            float32 beside 16 bits, for its gradient sums over all tokens and heads: float16 overflows in it. autocast
            leaves float32 as it is.
        block: tokens of a block; the last may be shorter.
        causal: token t sees tokens up to t only.
        normalise: divide by the sum of what a token attends with.
        impl: "auto", "reference" or "triton" (n, m <= 256, block <= 128).

    Returns (..., heads, T, m), of q's dtype. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    check_floats(q=q, k=k, v=v)
    if mixing.dtype not in {q.dtype, torch.float32 if q.dtype in SIXTEEN else q.dtype}:
        raise ValueError(
            f"mixing of dtype {mixing.dtype}: must be {q.dtype} as q is, or torch.float32 where q has 16 bits"
        )
    check_device(q=q, mixing=mixing)
    if q.dim() < 3 or q.shape != k.shape or v.shape[:-1] != q.shape[:-1]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"{shapes}: must be (..., heads, T, n) twice and (..., heads, T, m)")
    if block < 1:
        raise ValueError(f"block={block}: must be an int >= 1")
    blocks = -(-q.shape[-2] // block)
    if mixing.dim() != 2 or min(mixing.shape) < blocks:
        raise ValueError(f"mixing {tuple(mixing.shape)}: must be at least ({blocks}, {blocks}), one row a block")
    if takes_triton("mhla", q, impl=impl, unfit=mhla_unfit(max(q.shape[-1], v.shape[-1]), block)) and q.numel():
        from . import triton_mhla

        return triton_mhla.mhla(q, k, v, mixing, block, causal, normalise)
    return reference.mhla(q, k, v, mixing, block, causal, normalise)


def mhla_unfit(width: int, block: int) -> str:
    """What keeps Triton's linear attention from heads and blocks of that size, empty where nothing does."""
    return too_wide(width) or (f"block={block}, must be at most {LONGEST}" if block > LONGEST else "")


def _check_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if min(t.dim() for t in (q, k, v)) < 3 or q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"{shapes}: must be (..., heads, T, n), (..., groups, S, n), (..., groups, S, m)")
    if q.shape[:-3] != k.shape[:-3] or q.shape[-3] % k.shape[-3]:
        raise ValueError(f"{shapes}: batches must be the same, and the groups of k and v must divide the heads of q")


def too_wide(*widths: int) -> str:
    """What keeps Triton's attention from heads of these widths, empty where nothing does."""
    return f"a head of width {max(widths)}, must be at most {WIDEST}" if max(widths) > WIDEST else ""


def _check_attended(
    mask: torch.Tensor | BlockMask | None,
    causal: bool,
    shape: tuple[int, ...],
    device: torch.device,
    padded: bool = False,
) -> None:
    """Raise ValueError unless the mask fits (..., heads, T, S) and each query attends to something or is padding."""
    queries, keys = shape[-2:]
    if causal and queries > keys:
        raise ValueError(
            f"causal, {queries} queries of {keys} keys: the first attend to nothing, must be at most {keys}"
        )
    if mask is None:
        return
    if isinstance(mask, BlockMask):
        size = mask.size
        if size < 16 or size & (size - 1):
            raise ValueError(f"mask: blocks of size {size}, must be a power of two >= 16")
        shape = (*shape[:-2], -(-queries // size), -(-keys // size))
    given = mask.blocks if isinstance(mask, BlockMask) else mask
    if given.dtype != torch.bool:
        raise ValueError(f"mask of dtype {given.dtype}: must be torch.bool, True = attend")
    if given.device != device:
        raise ValueError(f"mask on {given.device}: must be on {device}")
    try:
        fits = torch.broadcast_shapes(given.shape, shape) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"mask of shape {tuple(given.shape)}: must broadcast to {tuple(shape)}")
    if padded:
        return
    if isinstance(mask, BlockMask):
        _check_blocks(mask, causal, queries, keys)
    elif is_of_pairs(mask):
        joint = reference.attended(mask, causal, queries, keys, device)
        check_attending(mask if joint is None else joint, queries, keys)


def _check_blocks(mask: BlockMask, causal: bool, queries: int, keys: int) -> None:
    """Raise ValueError where a query attends to nothing: of padding a mask in blocks says nothing."""
    blocks, size = mask
    empty = ~(_seen_first(blocks, size, queries, keys) if causal else blocks).any(-1)
    if empty.any():
        *row, last = (int(i) for i in empty.nonzero()[0])
        where = (*row, last * size if causal else last)
        raise ValueError(f"mask row {where} has no True: each query must attend to at least one key")


def _seen_first(blocks: torch.Tensor, size: int, queries: int, keys: int) -> torch.Tensor:
    """Which blocks of a causal mask the first query of each of their rows sees something of: it sees the least."""
    rows, columns = -(-queries // size), -(-keys // size)
    last = torch.arange(rows, device=blocks.device)[:, None] * size + (keys - queries)  # key of the first query
    return blocks & (torch.arange(columns, device=blocks.device) * size <= last)


def _dense(mask: torch.Tensor | BlockMask | None, queries: int, keys: int) -> torch.Tensor | None:
    return mask.dense(queries, keys) if isinstance(mask, BlockMask) else mask


# ---------------------------------------------------------------- weights from a seed


def seeded_weight(
    shape: tuple[int, int],
    seed: int,
    name: str,
    distribution: str,
    *,
    scale: float,
    stream: int = 0,
    bits: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    impl: str = "auto",
) -> torch.Tensor:
    """The random weight of `slth.weights.inits` under a mask, made where it is used: float32, the same bits everywhere.

    Args:
        shape: (rows, columns).
        seed: as in `slth.weights.inits`, like name and stream.
        name: of the weight's stream.
        distribution: "uniform", "uniform16" or "sign".
        scale: of the distribution.
        stream: of re-draws.
        bits: uint8 (rows, ceil(columns / 8)): 0 where a bit is 0; all are kept without.
        device: of the result, "cuda" being the current one.
        impl: "auto", "reference" or "triton".

    Raises ValueError for another distribution, and for bits that do not fit.
    """
    device = placed(device)
    _check_seeded(tuple(shape), distribution, bits, device)
    if takes_triton("seeded_weight", torch.empty(0, device=device), impl=impl):
        from . import triton_seeded

        return triton_seeded.seeded_weight(shape, seed, name, distribution, scale, stream, bits, device)
    return reference.seeded_weight(shape, seed, name, distribution, scale, stream, bits, device)


@as_autocast
def seeded_linear(
    x: torch.Tensor,
    seed: int,
    name: str,
    bits: torch.Tensor,
    distribution: str,
    *,
    scale: float,
    stream: int = 0,
    columns: int | None = None,
    bias: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """X times a weight that exists only as a seed and one bit an entry: made, masked and used tile by tile.

    Differentiable in x and the bias. The weight is float32 as `slth.weights.inits` draws it, row by row of its own
    layout, and rounded to x's dtype.

    Args:
        x: (..., in), float.
        seed: as in `slth.weights.inits`, like name and stream.
        name: of the weight's stream.
        bits: its mask, uint8: (out, ceil(in / 8)) for a weight (out, in) like that of nn.Linear.
        distribution: "uniform", "uniform16" or "sign".
        scale: of the distribution.
        stream: of re-draws.
        columns: given (= out) where the weight is (in, out), like that of Hugging Face's Conv1D and the projections
            of `slth.attention`, and bits (in, ceil(out / 8)).
        bias: (out,), of x's dtype.
        impl: "auto", "reference" or "triton".

    Returns (..., out), of x's dtype. Raises ValueError for another distribution, and for shapes, dtypes or devices that
    do not fit.
    """
    check_floats(x=x, bias=bias)
    if bits.dim() != 2:
        raise ValueError(f"bits of shape {tuple(bits.shape)}: must be (rows, ceil(columns / 8))")
    inputs_first = columns is not None
    shape = (bits.shape[0], x.shape[-1] if columns is None else columns)
    _check_seeded(shape, distribution, bits, x.device)
    _check_linear(x, shape[::-1] if inputs_first else shape, bias)
    if takes_triton("seeded_linear", x, impl=impl):
        from . import triton_seeded

        return triton_seeded.seeded_linear(
            x, shape, seed, name, bits, distribution, scale, stream, inputs_first=inputs_first, bias=bias
        )
    weight = reference.seeded_weight(shape, seed, name, distribution, scale, stream, bits, x.device)
    weight = reference.wide(weight.to(x.dtype))
    y = reference.wide(x) @ (weight if inputs_first else weight.mT)
    return (y if bias is None else y + reference.wide(bias)).to(x.dtype)


def _check_seeded(shape: tuple[int, ...], distribution: str, bits: torch.Tensor | None, device: torch.device) -> None:
    if distribution not in reference.SEEDED:
        raise ValueError(f"distribution={distribution!r}: must be one of {', '.join(reference.SEEDED)}")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)}: must be (rows, columns), each >= 1")
    if bits is not None:
        check_bits(bits, shape[1])
        if bits.shape[0] != shape[0]:
            raise ValueError(f"bits of {bits.shape[0]} rows: must be of {shape[0]}")
        if bits.device != device:
            raise ValueError(f"bits on {bits.device}: must be on {device}")
