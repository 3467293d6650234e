"""Time token-level multi-head linear attention (MHLA) against softmax attention of equal width, over lengths."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from slth.attention import GroupedQueryAttention, MultiHeadLinearAttention
from slth.attention.base import Attention
from slth.kernels.timing import Row, compare, interleave
from slth.weights import inits

WHAT = "linear_attention"
PEER = "softmax"


def rows(lengths: Sequence[int], *, d: int, block: int, rounds: int, seed: int) -> list[Row]:
    """Return one row per length: a forward pass of one head with projections, in float32, both not causal.

    `growth` is the ratio of our time to that at the length before (NaN for the first): 4 means that four times as many
    tokens take four times as long. All lengths are timed in turn. error_ours is the largest difference to the same
    layer in float64; the peer computes another function and has none. The number of threads is torch's.

    Args:
        lengths: numbers of tokens, each >= 1.
        d: width of tokens and head.
        block: tokens per block of MHLA.
        rounds: >= 1.
        seed: seed of weights and tokens.
    """
    lengths = sorted(lengths)
    options: dict[str, Any] = {"init": "xavier_uniform", "seed": seed}
    ours = MultiHeadLinearAttention(d, d, 1, d, length=lengths[-1], block=block, **options)
    tokens = {length: inits.normal((1, length, d), 1.0, seed=seed, name=f"speed/tokens {length}") for length in lengths}
    layers: dict[str, Attention] = {"ours": ours, PEER: GroupedQueryAttention(d, d, 1, d, **options)}
    calls = {(name, length): partial(_call, layer, x) for name, layer in layers.items() for length, x in tokens.items()}
    with torch.no_grad():
        timed = interleave(calls, rounds, lead_ins=1)
        exact = ours.double()
        errors = {n: float((timed["ours", n].values[0] - exact(x.double())).abs().max()) for n, x in tokens.items()}
    table: list[Row] = []
    for length in lengths:
        own, theirs = timed["ours", length], timed[PEER, length]
        row = compare(WHAT, f"T={length:,}", own, PEER, theirs, errors[length], float("nan"))
        growth = row["ours_s"] / table[-1]["ours_s"] if table else float("nan")
        conditions = {"length": length, "d": d, "block": block, "rounds": rounds, "threads": torch.get_num_threads()}
        table.append(row | {"growth": growth} | conditions)
    return table


def _call(layer: Attention, x: torch.Tensor, turn: int) -> torch.Tensor:
    outputs: torch.Tensor = layer(x)
    return outputs
