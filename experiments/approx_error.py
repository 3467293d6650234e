"""How fast the error of a ticket inside a random attention falls with the source's width, and how it is certified.

Figures 4 to 6 of arXiv 2511.04217: one target attention, many random sources, masks by exact subset sums.
hidden=64 draws the curve up to width 64, and the run says with which widths; hidden=[8,16,32] measures just these,
hidden=[64] this one. depth=[1,2,3,4] measures
transformers of so many blocks instead. method=edge_popup learns a mask of each source, too, and sets it beside the
construction: the same target, sources and test inputs, in the same table and figures.

In results.csv a learned ticket has method=edge_popup and side=free, since no factor's mask has a structure, and leaves
unreachable and candidates empty: no subset sum is solved. Its certificate is that of its merged matrices, for any
input of the same norm, though it was learned from inputs of the task. One mask serves all lengths; it is learned at
the shortest.
"""

import time
from dataclasses import asdict

from slth import plots
from slth.experiments import lab
from slth.experiments.studies.approximation import depth
from slth.experiments.studies.approximation import measure as approximation

ex = lab.experiment("approx_error")

ex.add_config(
    method="construction",  # construction, or edge_popup: masks learned, next to the construction
    hidden=None,  # the source's width per head: an int is the end of a curve of up to nine widths, a list is just
    # these, as in [64]; None: a curve that ends at 64, or where a coordinate has four units if d_in is above that
    lengths=4,  # points in an input, one or several; the regression token comes on top
    d_in=2,
    d_out=None,  # None: d_in/2 with a trained target, 1 with a random one, d_in with a depth
    heads=1,
    depth=None,  # None: an attention; an int or a list: transformers of so many blocks
    target=None,  # trained on the task, or random; None: trained, with a depth random
    target_hidden=8,
    target_norm=None,  # spectral norm of each of the target's factors; None: as trained, or 1 where random
    task="paper",  # paper, or learnable: a setting of the task that a target can learn
    source_init="theory",  # theory, or xavier
    sources=None,  # random sources, at every length or a list with one number for each; None: 100, with edge_popup 10
    samples=64,  # inputs, likewise
    side=None,  # where the structural mask lies: input (the paper's), output, auto (the better) or both; None: both,
    # with a depth input
    keep=0.5,  # edge_popup: the share of each factor's weights that is kept
    steps=500,  # edge_popup: of training the scores, with the best of the masks on the way taken
    lr=0.03,  # edge_popup: the highest learning rate
    batch=64,  # edge_popup: inputs a step
    seed=0,
)
ex.add_named_config("smoke", hidden=[4, 8, 12, 16], sources=5, samples=8, steps=20, lr=0.3)
ex.add_named_config("paper_width", hidden=[2, 4, 6, 8, 12, 16, 20, 30, 40, 60, 80, 100], lengths=4)
ex.add_named_config(
    "paper_length",
    hidden=[20, 40],
    lengths=[8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192],
    sources=[100] * 8 + [20] * 3,
    samples=[64] * 7 + [8] * 2 + [2] * 2,
)
ex.add_named_config(
    "theory_width",
    hidden=[4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60],
    target="random",
    target_norm=1.0,
    side="input",
)
ex.add_named_config(
    "wide", d_in=64, d_out=64, heads=8, hidden=[1024], target="random", sources=3, samples=8, lengths=16, side="input"
)
ex.add_named_config(
    "learned",
    method="edge_popup",
    hidden=[4, 8, 16, 24, 40, 64],
    lengths=[4, 16, 64, 256],
    sources=10,
    samples=[64, 64, 64, 16],
    steps=1000,
)
ex.add_named_config("learnable", task="learnable")
ex.add_named_config("paper_depth", depth=[1, 2, 3, 4], hidden=list(range(16, 73, 4)), target_norm=1.0)


def check(config):
    return approximation.study_of(config) if config["depth"] is None else depth.study_of(config)


@ex.main
def main(_config, _run):
    started = time.perf_counter()
    study = check(_config)
    if not isinstance(_config["hidden"], list | tuple) and len(study.hidden) > 1:
        widths, end = ", ".join(map(str, study.hidden)), study.hidden[-1]
        print(f"widths of the curve up to hidden={end}: {widths}; hidden=[{end}] measures this one alone")
    table, summary, figures = (attention if _config["depth"] is None else transformers)(study)
    summary |= {"alpha": study.alpha, "seconds": time.perf_counter() - started}
    lab.save(_run, table, summary, figures)
    return summary


def attention(study):
    target, report = approximation.make_target(study)
    table = approximation.measure(study, target)
    summary = approximation.summarise(table) | {"target_learned": report and asdict(report)}
    figures = {}
    if len(study.hidden) > 1 or len(study.lengths) == 1:
        figures["error_vs_width"] = plots.error_against_width(table, fits=summary["fits"])
    if len(study.lengths) > 1:
        figures["error_vs_length"] = plots.error_against_length(table)
    return table, summary, figures


def transformers(study):
    table = depth.measure(study, depth.make_target(study))
    summary = depth.summarise(table)
    return table, summary, {"error_vs_depth": plots.error_against_depth(table, fits=summary["fits"])}


if __name__ == "__main__":
    lab.launch(ex, check)
