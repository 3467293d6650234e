# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
"""The kernels of softmax attention: forward, and backward by tiles of queries and by tiles of keys.

The algorithm is FlashAttention-2 (Dao 2023). Forward updates each query's maximum and sum tile by tile of keys, and
saves the logarithm of the sum. Backward recomputes the weights from it, once by tiles of queries for dq and once by
tiles of keys for dk and dv, so that the order of summation does not change from run to run.

Arguments of all kernels: each tensor as its pointer and its strides by batch, head, token and entry (0: broadcast);
N and M, the widths of keys and values, and WIDE_N and WIDE_M, the powers of two that they are padded to; T queries,
which are the last of S keys; ROWS queries and COLUMNS keys per tile; SHARED: the values are the keys, so one tile is
loaded for both; ELEMENTS: a mask is read by entry, with blocks of SIZE; LISTED: visit only the tiles in `lists`, which
holds their number and then their indices. scale includes log2(e), since all exponentials are powers of 2.
"""

import triton
import triton.language as tl

# ---------------------------------------------------------------- helpers


@triton.jit
def _head(pointer, b, h, stride_b, stride_h):
    """Return the pointer to one head; the offset is 64 bits wide."""
    return pointer + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h


@triton.jit
def _places(at, first, stride_t, stride_n, ROWS: tl.constexpr, PADDED: tl.constexpr):
    """Return pointers (ROWS, PADDED) to a tile of a head's tokens, with 32-bit offsets."""
    rows = tl.arange(0, ROWS)[:, None] * stride_t
    return at + tl.cast(first, tl.int64) * stride_t + (rows + tl.arange(0, PADDED)[None, :] * stride_n)


@triton.jit
def _inside(first, length, ROWS: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr):
    """Return the mask of a tile's valid entries: up to the last token and to the unpadded width."""
    here = (first + tl.arange(0, ROWS) < length)[:, None]
    if WIDTH < PADDED:
        here = here & (tl.arange(0, PADDED) < WIDTH)[None, :]
    return here


@triton.jit
def _load(at, first, length, stride_t, stride_n, ROWS: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr):
    """Load a tile of tokens; entries outside of the tensor are 0."""
    here = _inside(first, length, ROWS, PADDED, WIDTH)
    return tl.load(_places(at, first, stride_t, stride_n, ROWS, PADDED), mask=here, other=0.0)


@triton.jit
def _store(at, tile, first, length, stride_t, stride_n, ROWS: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr):
    """Store the valid entries of a tile of tokens."""
    here = _inside(first, length, ROWS, PADDED, WIDTH)
    tl.store(_places(at, first, stride_t, stride_n, ROWS, PADDED), tile, mask=here)


@triton.jit
def _end(first, T, S, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr):
    """Return the number of tiles of keys that a tile of queries attends to."""
    return tl.cdiv(tl.minimum(S, first + ROWS + S - T) if CAUSAL else S, COLUMNS)


@triton.jit
def _whole(first, start, T, S, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr):
    """Tell whether a tile lies before the last key, and the diagonal, so that _within changes nothing."""
    return start + COLUMNS - 1 <= (first + S - T if CAUSAL else S - 1)


@triton.jit
def _within(logits, rows, columns, first, start, T, S, CAUSAL: tl.constexpr):
    """Set logits beyond the last key, or beyond the diagonal, to -inf.

    rows and columns are relative to first and start, and broadcast. The diagonal also hides keys beyond the last from
    valid queries.
    """
    last = rows + first + (S - T) if CAUSAL else S - 1
    return tl.where(columns + start <= last, logits, float("-inf"))


@triton.jit
def _masked(logits, rows, columns, first, start, T, S, mask, mask_t, mask_s, SIZE: tl.constexpr):
    """Set logits to -inf where a mask in blocks of SIZE (1: entries) is False; indices as in _within.

    Tiles and blocks are powers of two, so that the larger one contains a whole number of the smaller one.
    """
    mask += tl.cast(first // SIZE, tl.int64) * mask_t + tl.cast(start // SIZE, tl.int64) * mask_s
    exists = (rows < T - first) & (columns < S - start)
    given = tl.load(mask + (rows // SIZE * mask_t + columns // SIZE * mask_s), mask=exists, other=0)
    return tl.where(given != 0, logits, float("-inf"))


# ---------------------------------------------------------------- forward


@triton.jit
def _fold(total, peak, mass, q, end, listed, first, scale, T, S, k, k_t, k_n, v, v_t, v_n, mask, mask_t, mask_s,
          ROWS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, M: tl.constexpr, WIDE_N: tl.constexpr,
          WIDE_M: tl.constexpr, SHARED: tl.constexpr, LISTED: tl.constexpr,
          CAUSAL: tl.constexpr, ELEMENTS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Add tiles of keys to the sums (ROWS, WIDE_M) of a tile of queries, and update each row's maximum and mass."""
    for i in range(end):
        start = (tl.load(listed + i) if LISTED else i) * COLUMNS
        keys = _load(k, start, S, k_t, k_n, COLUMNS, WIDE_N, N)
        values = keys if SHARED else _load(v, start, S, v_t, v_n, COLUMNS, WIDE_M, M)
        logits = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale  # (ROWS, COLUMNS), to be a power of 2
        rows = tl.arange(0, ROWS)[:, None]
        columns = tl.arange(0, COLUMNS)[None, :]
        if not _whole(first, start, T, S, COLUMNS, CAUSAL):
            logits = _within(logits, rows, columns, first, start, T, S, CAUSAL)
        if ELEMENTS:
            logits = _masked(logits, rows, columns, first, start, T, S, mask, mask_t, mask_s, SIZE)
        higher = tl.maximum(peak, tl.max(logits, 1))
        pivot = higher
        if ELEMENTS or LISTED:
            pivot = tl.where(higher == float("-inf"), 0.0, higher)  # a row without any key so far stays at 0
        weights = tl.exp2(logits - pivot[:, None])
        shrink = tl.exp2(peak - pivot)
        mass = mass * shrink + tl.sum(weights, 1)
        total = tl.dot(weights.to(values.dtype), values, total * shrink[:, None], input_precision="ieee")
        peak = higher
    return total, peak, mass


@triton.jit
def forward(q, q_b, q_h, q_t, q_n, k, k_b, k_h, k_t, k_n, v, v_b, v_h, v_t, v_n, out, out_b, out_h, out_t, out_n, logs,
             mask, mask_b, mask_h, mask_t, mask_s, lists, lists_b, lists_h, lists_t, heads, groups, T, S, scale,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, M: tl.constexpr, WIDE_N: tl.constexpr,
             WIDE_M: tl.constexpr, SHARED: tl.constexpr, CAUSAL: tl.constexpr, LISTED: tl.constexpr,
             ELEMENTS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Compute the output of one tile of queries of one head, and the logarithm (base 2) of its weights' sum."""
    tiles = tl.cdiv(T, ROWS)
    rest = tl.program_id(0) // tiles
    tile = tiles - 1 - tl.program_id(0) % tiles  # under a causal mask, the longest first
    h = rest % heads
    b = rest // heads
    first = tile * ROWS
    group = h // (heads // groups)
    k = _head(k, b, group, k_b, k_h)
    v = _head(v, b, group, v_b, v_h)
    mask = _head(mask, b, h, mask_b, mask_h)
    listed = _head(lists, b, h, lists_b, lists_h) + tile.to(tl.int64) * lists_t

    queries = _load(_head(q, b, h, q_b, q_h), first, T, q_t, q_n, ROWS, WIDE_N, N)
    total = tl.zeros((ROWS, WIDE_M), tl.float32)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    end = tl.load(listed) if LISTED else _end(first, T, S, ROWS, COLUMNS, CAUSAL)
    total, peak, mass = _fold(total, peak, mass, queries, end, listed + 1, first, scale, T, S, k, k_t, k_n, v, v_t, v_n,
                              mask, mask_t, mask_s, ROWS, COLUMNS, N, M, WIDE_N, WIDE_M, SHARED, LISTED, CAUSAL,
                              ELEMENTS, SIZE)  # fmt: skip

    empty = mass == 0.0  # rows beyond the last query
    mass = tl.where(empty, 1.0, mass)
    peak = tl.where(empty, 0.0, peak)
    total = total / mass[:, None]
    _store(_head(out, b, h, out_b, out_h), total, first, T, out_t, out_n, ROWS, WIDE_M, M)
    rows = first + tl.arange(0, ROWS)
    tl.store(logs + rest.to(tl.int64) * T + rows, peak + tl.log2(mass), mask=rows < T)


# ---------------------------------------------------------------- backward


@triton.jit
def _fold_queries(dq, q, dout, log, delta, end, listed, first, scale, T, S, k, k_t, k_n, v, v_t, v_n, mask,
                  mask_t, mask_s, ROWS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
                  WIDE_N: tl.constexpr, WIDE_M: tl.constexpr, SHARED: tl.constexpr, LISTED: tl.constexpr,
                  CAUSAL: tl.constexpr, ELEMENTS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Add tiles of keys to dq (ROWS, WIDE_N), without the scale."""
    for i in range(end):
        start = (tl.load(listed + i) if LISTED else i) * COLUMNS
        keys = _load(k, start, S, k_t, k_n, COLUMNS, WIDE_N, N)
        values = keys if SHARED else _load(v, start, S, v_t, v_n, COLUMNS, WIDE_M, M)
        logits = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale  # (ROWS, COLUMNS)
        rows = tl.arange(0, ROWS)[:, None]
        columns = tl.arange(0, COLUMNS)[None, :]
        if not _whole(first, start, T, S, COLUMNS, CAUSAL):
            logits = _within(logits, rows, columns, first, start, T, S, CAUSAL)
        if ELEMENTS:
            logits = _masked(logits, rows, columns, first, start, T, S, mask, mask_t, mask_s, SIZE)
        weights = tl.exp2(logits - log[:, None])
        slopes = weights * (tl.dot(dout, tl.trans(values), input_precision="ieee") - delta[:, None])
        dq = tl.dot(slopes.to(keys.dtype), keys, dq, input_precision="ieee")
    return dq


@triton.jit
def backward_queries(q, q_b, q_h, q_t, q_n, k, k_b, k_h, k_t, k_n, v, v_b, v_h, v_t, v_n, out, out_b, out_h, out_t,
                      out_n, dout, dout_b, dout_h, dout_t, dout_n, dq, dq_b, dq_h, dq_t, dq_n, logs, deltas,
                      mask, mask_b, mask_h, mask_t, mask_s, lists, lists_b, lists_h, lists_t,
                      heads, groups, T, S, scale, scale_dq,
                      ROWS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
                      WIDE_N: tl.constexpr, WIDE_M: tl.constexpr, SHARED: tl.constexpr, CAUSAL: tl.constexpr,
                      LISTED: tl.constexpr, ELEMENTS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Compute dq of one tile of queries of one head, and delta = sum(out * dout) of each query for the other kernel."""
    tiles = tl.cdiv(T, ROWS)
    rest = tl.program_id(0) // tiles
    tile = tiles - 1 - tl.program_id(0) % tiles
    h = rest % heads
    b = rest // heads
    first = tile * ROWS
    group = h // (heads // groups)
    k = _head(k, b, group, k_b, k_h)
    v = _head(v, b, group, v_b, v_h)
    mask = _head(mask, b, h, mask_b, mask_h)
    listed = _head(lists, b, h, lists_b, lists_h) + tile.to(tl.int64) * lists_t

    rows = first + tl.arange(0, ROWS)
    here = rows < T
    grads = _load(_head(dout, b, h, dout_b, dout_h), first, T, dout_t, dout_n, ROWS, WIDE_M, M)
    found = _load(_head(out, b, h, out_b, out_h), first, T, out_t, out_n, ROWS, WIDE_M, M)
    delta = tl.sum(found.to(tl.float32) * grads.to(tl.float32), 1)
    tl.store(deltas + rest.to(tl.int64) * T + rows, delta, mask=here)
    log = tl.load(logs + rest.to(tl.int64) * T + rows, mask=here, other=0.0)
    queries = _load(_head(q, b, h, q_b, q_h), first, T, q_t, q_n, ROWS, WIDE_N, N)
    sums = tl.zeros((ROWS, WIDE_N), tl.float32)
    end = tl.load(listed) if LISTED else _end(first, T, S, ROWS, COLUMNS, CAUSAL)
    sums = _fold_queries(sums, queries, grads, log, delta, end, listed + 1, first, scale, T, S, k, k_t, k_n, v, v_t,
                         v_n, mask, mask_t, mask_s, ROWS, COLUMNS, N, M, WIDE_N, WIDE_M, SHARED, LISTED, CAUSAL,
                         ELEMENTS, SIZE)  # fmt: skip
    _store(_head(dq, b, h, dq_b, dq_h), sums * scale_dq, first, T, dq_t, dq_n, ROWS, WIDE_N, N)


@triton.jit
def _fold_keys(dk, dv, keys, values, begin, end, listed, start, scale, T, S, q, q_t, q_n, dout, dout_t, dout_n, logs,
               deltas, mask, mask_t, mask_s, ROWS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr,
               M: tl.constexpr, WIDE_N: tl.constexpr, WIDE_M: tl.constexpr, SHARED: tl.constexpr, LISTED: tl.constexpr,
               CAUSAL: tl.constexpr, ELEMENTS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Add tiles of queries to dk (COLUMNS, WIDE_N), without the scale, and to dv (COLUMNS, WIDE_M), all transposed."""
    for i in range(begin, end):
        first = (tl.load(listed + i) if LISTED else i) * ROWS
        queries = _load(q, first, T, q_t, q_n, ROWS, WIDE_N, N)
        grads = _load(dout, first, T, dout_t, dout_n, ROWS, WIDE_M, M)
        at = first + tl.arange(0, ROWS)
        log = tl.load(logs + at, mask=at < T, other=0.0)
        logits = tl.dot(keys, tl.trans(queries), input_precision="ieee") * scale  # (COLUMNS, ROWS)
        rows = tl.arange(0, ROWS)[None, :]
        columns = tl.arange(0, COLUMNS)[:, None]
        if not _whole(first, start, T, S, COLUMNS, CAUSAL):
            logits = _within(logits, rows, columns, first, start, T, S, CAUSAL)
        if ELEMENTS:
            logits = _masked(logits, rows, columns, first, start, T, S, mask, mask_t, mask_s, SIZE)
        weights = tl.exp2(logits - log[None, :])
        if SHARED:
            dk = tl.dot(weights.to(grads.dtype), grads, dk, input_precision="ieee")
        else:
            dv = tl.dot(weights.to(grads.dtype), grads, dv, input_precision="ieee")
        delta = tl.load(deltas + at, mask=at < T, other=0.0)
        slopes = weights * (tl.dot(values, tl.trans(grads), input_precision="ieee") - delta[None, :])
        dk = tl.dot(slopes.to(queries.dtype), queries, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def backward_keys(q, q_b, q_h, q_t, q_n, k, k_b, k_h, k_t, k_n, v, v_b, v_h, v_t, v_n,
                   dout, dout_b, dout_h, dout_t, dout_n, dk, dk_b, dk_h, dk_t, dk_n, dv, dv_b, dv_h, dv_t, dv_n,
                   logs, deltas, mask, mask_b, mask_h, mask_t, mask_s, lists, lists_b, lists_h, lists_t,
                   heads, groups, parts, T, S, scale, scale_dk,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, M: tl.constexpr, WIDE_N: tl.constexpr,
                   WIDE_M: tl.constexpr, SHARED: tl.constexpr, CAUSAL: tl.constexpr, LISTED: tl.constexpr,
                   ELEMENTS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Compute dk and dv of one tile of keys, shared by heads / parts neighbouring heads; SHARED: dk + dv in dk."""
    tiles = tl.cdiv(S, COLUMNS)
    rest = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    part = rest % parts
    b = rest // parts
    start = tile * COLUMNS
    group = part // (parts // groups)
    each = heads // parts
    keys = _load(_head(k, b, group, k_b, k_h), start, S, k_t, k_n, COLUMNS, WIDE_N, N)
    values = keys if SHARED else _load(_head(v, b, group, v_b, v_h), start, S, v_t, v_n, COLUMNS, WIDE_M, M)
    sums_k = tl.zeros((COLUMNS, WIDE_N), tl.float32)
    sums_v = tl.zeros((COLUMNS, WIDE_M), tl.float32)
    first = 0  # the first tile of queries that attends to any of these keys
    if CAUSAL:
        first = tl.maximum(0, start - (S - T)) // ROWS
    for i in range(each):
        h = part * each + i
        tokens = (b.to(tl.int64) * heads + h) * T
        listed = _head(lists, b, h, lists_b, lists_h) + tile.to(tl.int64) * lists_t
        begin = 0 if LISTED else first
        end = tl.load(listed) if LISTED else tl.cdiv(T, ROWS)
        sums_k, sums_v = _fold_keys(
            sums_k, sums_v, keys, values, begin, end, listed + 1, start, scale, T, S, _head(q, b, h, q_b, q_h), q_t,
            q_n, _head(dout, b, h, dout_b, dout_h), dout_t, dout_n, logs + tokens, deltas + tokens,
            _head(mask, b, h, mask_b, mask_h), mask_t, mask_s, ROWS, COLUMNS, N, M, WIDE_N, WIDE_M, SHARED, LISTED,
            CAUSAL, ELEMENTS, SIZE)  # fmt: skip
    _store(_head(dk, b, part, dk_b, dk_h), sums_k * scale_dk, start, S, dk_t, dk_n, COLUMNS, WIDE_N, N)
    if not SHARED:
        _store(_head(dv, b, part, dv_b, dv_h), sums_v, start, S, dv_t, dv_n, COLUMNS, WIDE_M, M)
