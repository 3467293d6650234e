"""Construct tickets in random attentions of growing width, and draw the decay of their error.

python examples/construct_a_ticket.py
"""

from collections.abc import Sequence

import pandas as pd

import slth.construct
from slth import plots
from slth.attention import MultiHeadAttention
from slth.weights import inits


def main(widths: Sequence[int] = (16, 32, 64, 96, 128), sources: int = 3, file: str = "decay.png") -> pd.DataFrame:
    """Draw error and certificate against the source's width, save the figure as `file`, and return the table."""
    target = MultiHeadAttention(d_in=8, d_out=8, heads=2, hidden=8, init="xavier_uniform", seed=100).double()
    x = inits.normal((64, 16, 8), 1.0, seed=0, name="inputs").double()  # 64 inputs of 16 tokens
    x = x / x.norm(dim=-1, keepdim=True)  # of norm 1, which is alpha below
    rows = []
    for hidden in widths:
        for seed in range(sources):
            source = MultiHeadAttention(d_in=8, d_out=8, heads=2, hidden=hidden, init="theory", seed=seed).double()
            construction = slth.construct.attention(target, source, alpha=1.0)
            construction.prune(source)  # in place: pruned weights become 0, others do not change
            error = (source(x) - target(x)).norm(dim=-1).amax(-1).mean().item()  # the worst token of each input
            bound = float(construction.certificate.bound)
            row = {"hidden": hidden, "length": 16, "source": seed, "side": "input", "d_in": 8}
            rows.append(row | {"error_mean": error, "certificate": bound})
        print(f"hidden {hidden}: error {error:.2g}, certificate {bound:.2g}, {construction.ticket()}")
    table = pd.DataFrame(rows)
    plots.figure_of(plots.error_against_width(table)).savefig(file)
    return table


if __name__ == "__main__":
    main()
