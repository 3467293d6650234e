"""Token-level multi-head linear attention (arXiv 2601.07832)."""

from __future__ import annotations

from functools import partial

import torch

from ..arguments import check_device, check_floats
from ..attention import too_wide
from ..autocast import as_autocast
from ..dispatch import Kernel
from . import reference

SIXTEEN = (torch.float16, torch.bfloat16)
LONGEST = 128  # block of tokens that Triton's does

_MHLA = Kernel(reference.mhla)


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
        impl: "auto", "reference", "cpu" or "triton" (n, m <= 256, block <= 128).

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
    unfit = _unfit(max(q.shape[-1], v.shape[-1]), block)
    return _MHLA.choose(impl, q, unfit)(q, k, v, mixing, block, causal, normalise)


def _unfit(width: int, block: int) -> str:
    """What keeps Triton's linear attention from heads and blocks of that size, empty where nothing does."""
    return too_wide(width) or (f"block={block}, must be at most {LONGEST}" if block > LONGEST else "")
