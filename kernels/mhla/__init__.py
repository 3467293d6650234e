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
LONGEST = 128  # longest block of tokens that Triton supports

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
    """Compute token-level multi-head linear attention (arXiv 2601.07832) after its feature map.

    out_t = sum_j m[block(t), block(j)] (q_t . k_j) v_j, with j <= t if causal. With `normalise`, it is divided by the
    sum of the weights m[block(t), block(j)] (q_t . k_j), and is 0 where that sum is 0.

    Args:
        q: (..., heads, T, n), float, made positive by a feature map.
        k: (..., heads, T, n), likewise.
        v: (..., heads, T, m).
        mixing: (blocks, blocks) or larger, with blocks = ceil(T / block); further entries are not read. It has q's
            dtype, or float32 if q has 16 bits, since its gradient is a sum over all tokens and heads, which overflows
            float16. autocast does not cast float32.
        block: tokens per block; the last block may be shorter.
        causal: token t attends to tokens up to t only.
        normalise: divide by the sum of a token's weights.
        impl: "auto", "reference", "cpu" or "triton" (n, m <= 256, block <= 128).

    Returns (..., heads, T, m) in q's dtype. Raises ValueError for shapes, dtypes or devices that do not fit.
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
    """Return why Triton's linear attention cannot handle heads and blocks of these sizes; "" if it can."""
    return too_wide(width) or (f"block={block}, must be at most {LONGEST}" if block > LONGEST else "")
