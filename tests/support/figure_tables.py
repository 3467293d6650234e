"""Small tables as the experiments store them, for the tests of figures."""

import numpy as np
import pandas as pd
from matplotlib.text import Text

from slth.plots.page import END

FITS = {
    "input": {"gamma": 0.39, "delta": 0.11, "delta_low": 0.093, "delta_high": 0.127},
    "output": {"gamma": 0.35, "delta": 0.2, "delta_low": 0.18, "delta_high": 0.23},
}
WIDTHS = (2, 8, 20, 40, 80)


def make_table(widths=WIDTHS, lengths=(4,), sources=10, d_in=2, sides=("input", "output"), factor=1.0) -> pd.DataFrame:
    """Errors that fall as 2^(-n/d_in), with a few sources out of reach."""
    index = pd.MultiIndex.from_product(
        [widths, lengths, range(sources), sides], names=["hidden", "length", "source", "side"]
    )
    table = index.to_frame(index=False).assign(d_in=d_in)
    error = factor * 2.0 ** (-table["hidden"] / d_in) * (1 + table["source"]) + 0.2 * (table["source"] == 7)
    return table.assign(error_mean=error, certificate=3 * error)


def make_hidden(candidates=(8, 16, 24), blocks=4) -> pd.DataFrame:
    """A language model's ticket whose error halves with each candidate and doubles with each block."""
    table = pd.MultiIndex.from_product([candidates, range(1, blocks + 1)], names=["candidates", "block"])
    table = table.to_frame(index=False)
    error = 2.0 ** (table["block"] - table["candidates"])
    gap = 0.1 * 2.0 ** -table["candidates"]
    table = table.assign(error=error, certificate=40 * error, norm=8.0 + table["block"])
    return table.assign(val_loss_target=1.5, val_loss_ticket=1.5 + gap, agreement=1 - gap)


def make_pruning(level):
    """The losses of a dense network and a ticket, with the steps of a pilot that are not shown."""
    table = pd.MultiIndex.from_product(
        [("dense", "ticket"), ("grid", "full"), (10, 20)], names=["run", "stage", "step"]
    )
    table = table.to_frame(index=False).assign(size="tiny", qk_scale=1.0, nonzero=1000)
    return table.assign(val_loss=level + table["step"] / 10 + (table["stage"] == "grid") * 100)


def make_files():
    """The files of a ticket and all that it stands beside."""
    masks, others = ("random", "magnitude", "snip", "grasp", "synflow"), ("dense_nonzero", "dense_bytes", "binary")
    rows = [(run, "trained", 1.1e6, 2.1 + i / 50) for i, run in enumerate(masks)]
    rows += [(run, "random", 1.3e5, 5.6 + i / 10) for i, run in enumerate(masks)]
    rows += [(run, "trained", 1e5 + 5e5 * i, 2.2 + i / 9) for i, run in enumerate((*others, "ternary", "dense"))]
    rows += [("rounding", "trained", 1.4e5 * bits, 1.9 + 4 / bits**2) for bits in (1, 2, 3, 4, 8)]
    rows += [("ticket", "random", 1.32e5, 2.1), ("grasp", "trained", np.nan, np.inf)]
    return pd.DataFrame(rows, columns=["run", "weights", "bytes", "val_loss"]).assign(size="tiny", stage="shipped")


def make_qk_scale(first):
    table = pd.MultiIndex.from_product([(0.02, 0.1), (1.0, 2.0), (first, first + 1)])
    table = table.set_names(["base_std", "qk_scale", "seed"]).to_frame(index=False)
    loss = table["base_std"] + table["qk_scale"] + table["seed"]
    return table.assign(run="ticket", val_loss=loss, logit_std_at_init=1.0, theory_scale=2.0)


def make_constant(n_prime):
    table = pd.DataFrame({"d": 2, "epsilon": [0.1, 0.3], "target": "unit", "n_prime": n_prime, "verdict": "suffices"})
    return pd.concat([table, table.assign(n_prime=1, verdict="fails"), table.assign(n_prime=99)])


def make_mixing(first):
    table = pd.MultiIndex.from_product([("mha", "mea"), (0.3, 0.5), (first, first + 1)])
    table = table.set_names(["variant", "keep", "seed"]).to_frame(index=False).assign(what="loss", hidden=8, length=64)
    table = table.assign(val_loss=table["keep"] + table["seed"], val_loss_dense=1.0, below_bigram=0.1, conclusive=True)
    return table.assign(difference=table["seed"], difference_low=-1.0, difference_high=1.0)


def make_speed(ratio):
    rows = {"what": "masks", "size": ["small", "large"], "peer": "topk", "ratio": [ratio, 2 * ratio]}
    times = [f"{who}_s{bound}" for who in ("ours", "peer") for bound in ("", "_low", "_high")]
    return pd.DataFrame(rows | dict.fromkeys(times, 1.0))


def make_depth(depths=(1, 2), widths=(16, 40, 72)):
    """Errors of transformers of several depths, the recursion's bound infinite for the narrow ones."""
    table = pd.MultiIndex.from_product([widths, depths, range(3)], names=["hidden", "depth", "source"])
    table = table.to_frame(index=False).assign(length=4, candidates_attention=lambda t: t["hidden"] // 2)
    error = (1 + table["source"]) * table["depth"] * 2.0 ** (-table["hidden"] / 8)
    bound = (50 * error).where(table["hidden"] > 20, np.inf)
    return table.assign(error_mean=error, error_max=3 * error, certificate=9 * error, certificate_recursion=bound)


def make_losses(variants, keeps=(0.3, 0.5), lengths=(16, 64)):
    """What mixing stores of these variants: losses near each other, and errors with constructed ones."""
    losses = pd.MultiIndex.from_product([variants, keeps, (0, 1)], names=["variant", "keep", "seed"])
    losses = losses.to_frame(index=False).assign(what="loss", hidden=8, length=64, conclusive=True)
    at = losses["variant"].map({name: i for i, name in enumerate(variants)})
    losses = losses.assign(val_loss=3 + 0.01 * at + 0.1 * losses["seed"], val_loss_dense=2.99 + 0.001 * at)
    losses = losses.assign(below_bigram=0.02, difference=0.01 * at, difference_low=-0.1, difference_high=0.1 * at)
    errors = pd.MultiIndex.from_product([variants, (8, 16, 32), lengths], names=["variant", "hidden", "length"])
    errors = errors.to_frame(index=False).assign(what="error", seed=0, keep=0.5, error_construct=np.nan)
    value = 1 / errors["hidden"] * (1 + 0.01 * errors["variant"].map({name: i for i, name in enumerate(variants)}))
    errors = errors.assign(error=value).assign(error_construct=value.where(errors["length"] == min(lengths)))
    return pd.concat([losses, errors], ignore_index=True)


def make_times(peers, sizes=(1, 2)):
    """What speed stores: one kind of each of its three panels."""
    rows = [
        {"what": what, "size": f"{what} {n}", "peer": peer, "ratio": 10.0**i, "ideal": None, column: scale * n}
        for what, column, scale in (
            ("subset_sum", "candidates", 8),
            ("selection", "scores", 1e6),
            ("route", "other", 1),
        )
        for i, peer in enumerate(peers)
        for n in sizes
    ]
    table = pd.DataFrame(rows).drop(columns="other")
    for who, seconds in (("ours", 1e-3), ("peer", 1e-3 * table["ratio"])):
        table = table.assign(**{f"{who}_s": seconds, f"{who}_s_low": 0.9 * seconds, f"{who}_s_high": 1.2 * seconds})
    return table


def legend_of(figure) -> list[str]:
    """Everything that is written in the legends."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def ends_of(axes) -> list[str]:
    """The labels at line ends."""
    return [text.get_text() for text in axes.texts if text.get_gid() == END]


def lines_of(axes):
    """The lines of the data: no samples before labels."""
    return [line for line in axes.get_lines() if line.get_gid() != END]


def words(figure) -> str:
    """All that is written in a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))
