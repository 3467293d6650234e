"""Time the attention of wide heads from merged matrices against the same attention head by head."""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from slth.attention import MultiHeadAttention
from slth.kernels.timing import Row, compare, interleave
from slth.weights import inits

WHAT = "attention_route"


@dataclass(frozen=True)
class Shape:
    """An attention from d_in to d_in, and the number of tokens of its input."""

    d_in: int
    hidden: int
    length: int
    heads: int

    def __str__(self) -> str:
        return f"d={self.d_in} n={self.hidden} T={self.length} H={self.heads}"


def rows(shape: Shape, *, rounds: int, seed: int) -> list[Row]:
    """Return one row: the forward of `MultiHeadAttention`, which merges if hidden > d_in, against `direct`, in float32.

    `ideal` is the factor by which merging reduces the operations at long inputs, hidden / d_in, or 1 without merging.
    Errors are the largest differences to `direct` in float64. The number of threads is torch's.
    """
    layer = MultiHeadAttention(shape.d_in, shape.d_in, shape.heads, shape.hidden, seed=seed)
    scale = shape.d_in**-0.5  # tokens of norm at most 1
    x = inits.uniform((1, shape.length, shape.d_in), scale, seed=seed, name="speed/tokens")
    with torch.no_grad():
        timed = interleave({"ours": lambda _: layer(x), "direct": lambda _: direct(layer, x)}, rounds, lead_ins=1)
        exact = direct(layer.double(), x.double())
    ours, theirs = timed["ours"], timed["direct"]
    errors = [float((timing.values[0] - exact).abs().max()) for timing in (ours, theirs)]
    return [
        compare(WHAT, str(shape), ours, "direct", theirs, *errors)
        | {"ideal": max(1.0, shape.hidden / shape.d_in), "rounds": rounds, "threads": torch.get_num_threads()}
    ]


def direct(layer: MultiHeadAttention, x: torch.Tensor) -> torch.Tensor:
    """Compute the layer with unmerged heads of width hidden: x (batch, T, d_in) -> (batch, T, d_out)."""
    x = x.unsqueeze(1)  # (batch, 1, T, d_in)
    heads = scaled_dot_product_attention(x @ layer.query, x @ layer.key, x @ layer.value)  # (batch, heads, T, hidden)
    return (heads @ layer.output).sum(dim=1)
