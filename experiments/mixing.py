"""Which attention hides better tickets than multi-head attention (MHA): a comparison at equal size, paired by seed.

For each variant, at as many parameters as MHA has (or as much computing), four things can be measured:

errors    how far its tickets are from a random MHA, learned by edge-popup and, where it can be done, constructed;
losses    the validation loss of its tickets in a small GPT-2, over keep and seeds, beside dense training;
spikes    how often the training loss of MHA, KHA and MEA jumps, over learning rates (mixtures/spikes.py says when);
matrices  rank and entropy of the attention matrices of MHLA, beside plain linear and softmax attention.

In results.csv `what` says which of them a row is of; `hidden` is the width of the heads of an MHA that is as large,
`width` the variant's own; parameters are the attention's (errors, matrices) or the whole network's. A loss's
`difference` is to MHA's of the same keep and seed, with the 95 % bootstrap interval of its mean over seeds beside it.
seconds_per_step has the evaluation at the end in it.

With a folder `checkpoints`, what is done stays done: a run that was cut goes on where it was, even within a training,
and one with more variants, seeds, keeps, widths or lengths measures what is missing.
"""

import time

from slth import plots
from slth.experiments import lab
from slth.experiments.studies.mixing.jobs import measure
from slth.experiments.studies.mixing.study import check, claim, study_of
from slth.experiments.studies.mixing.tables import summarise, table_of
from slth.threads import one_torch_thread

ex = lab.experiment("mixing")

ex.add_config(
    variants="all",  # or one or several of slth.attention.ATTENTIONS; mha is always among them
    equal="parameters",  # parameters, compute: what is the same for all, MHA's at its own width
    errors=True,
    losses=True,
    spikes=False,
    matrices=True,
    seeds=3,  # how many, from seed on: each has its own target, weights, scores and batches, the same for all variants
    heads=4,
    kv_heads=None,  # of gqa and gta; None: half of the heads, or one where they are odd
    block=8,  # tokens of a block of mhla
    mixing_init="identity_plus_random",  # of what mixes, in tickets: natural, random, identity_plus_random
    dense_mixing_init="natural",
    # errors
    d_in=8,
    hidden=[4, 8, 16, 32, 64],  # MHA's
    lengths=[16, 64],
    target_hidden=4,
    target_norm=2.0,  # spectral norm of each of the target's factors
    source_init="kaiming_normal",  # of what is learned from; constructions take theory's
    construct=True,
    error_keep=0.5,
    error_steps=1000,
    error_lr=0.03,
    error_batch=32,
    # losses
    size="tiny*0.5",  # tiny, mini, small, medium, or one times a width
    data="stdlib",  # stdlib, installed, wikitext-103, or a path to any UTF-8 file
    vocabulary="bytes",  # bytes, or bpe:8192
    length=64,  # tokens a window
    keep=[0.3, 0.5, 0.7],
    method="edge_popup",  # edge_popup, iterand, biprop, frozen, bernoulli
    policy="layer",  # layer, global
    schedule="constant",  # of keep: constant, linear, cubic
    masked="all",  # all weight matrices, or blocks: embeddings stay random and whole
    scores="kaiming_uniform",
    init="signed",  # of tickets: gpt2, theory, signed
    base_std=0.07,
    position_std=0.12,
    dense_init="gpt2",
    dense_base_std=0.04,
    dense_position_std=0.02,
    embedding_std=0.15,
    lr=0.01,  # of tickets, one or several: each takes the best by its own pilots
    dense_lr=0.003,
    pilot_steps=100,  # of each, where there are several
    steps=1200,
    batch=16,  # windows
    warmup=0.1,
    clip=1.0,
    windows=64,  # of validation
    # spikes
    spike_lrs=[0.003, 0.01, 0.03, 0.1],
    spike_steps=300,
    processes=1,  # that work side by side, each on one core
    checkpoints=None,  # a folder, from which a run that was cut goes on, or a larger one
    device="auto",  # auto, cpu, cuda
    seed=0,
)
ex.add_named_config(
    "smoke",  # that all kinds of measurements run, in seconds, of which most are spent on imports
    seeds=1,
    spikes=True,
    hidden=[8],
    lengths=[8],
    error_steps=3,
    size="tiny*0.25",
    length=16,
    keep=0.5,
    steps=2,
    batch=2,
    windows=4,
    spike_lrs=[0.01],
    spike_steps=2,
)
ex.add_named_config(
    "quick",  # that everything runs: too short and too few for conclusions
    seeds=2,
    spikes=True,
    hidden=[8, 32],
    lengths=[16],
    error_steps=200,
    keep=[0.3, 0.5],
    steps=60,
    batch=8,
    spike_lrs=[0.003, 0.03],
    spike_steps=60,
    processes=2,
)
ex.add_named_config(
    "full",  # that MHA beats the bigram model by 0.3 nat in each run, at five seeds, within three hours of two cores
    seeds=5,
    spikes=True,
    hidden=[8, 16, 32, 64],
    error_steps=300,
    length=32,
    keep=[0.45, 0.5, 0.6],
    lr=0.015,
    steps=1200,
    processes=2,
)


@ex.main
def main(_config, _run):
    started = time.perf_counter()
    study = study_of(_config)
    claim(study)
    with one_torch_thread():  # such small matrices are no faster on two, and sums come in one order
        table = table_of(study, measure(study))
        summary = summarise(study, table) | {"seconds": time.perf_counter() - started}
    for line in summary.get("verdicts", ()):
        print(line)
    lab.save(_run, table, summary, plots.mixing_figures(table))
    return summary


if __name__ == "__main__":
    lab.launch(ex, check)
