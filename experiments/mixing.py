"""Compare tickets in different attentions with those in multi-head attention (MHA), at equal size and paired by seed.

For each variant, with MHA's number of parameters (or multiply-adds), there are four kinds of measurements:

errors    errors of its tickets for a random MHA as target, learned by edge-popup and, where possible, constructed;
losses    validation losses of its tickets in a small GPT-2, over keep and seeds, and of dense training;
spikes    how often the training loss jumps, over learning rates (defined in studies/mixing/spikes.py);
matrices  rank and entropy of the attention matrices, for variants whose facts state that they have one, and for MHLA
          with and without mixing.

In results.csv `what` is the kind of a row; `hidden` is the head width of an MHA of equal size and `width` the
variant's own. Parameters are those of the attention (errors, matrices) or of the whole network. A loss's `difference`
is to MHA's with the same keep and seed, with the 95 % bootstrap interval of its mean over seeds. seconds_per_step
includes the final evaluation.

With a folder `checkpoints`, an interrupted run resumes where it stopped, even within a training, and a run with more
variants, seeds, keeps, widths or lengths measures only what is missing.
"""

import time
from typing import Any

from slth import plots
from slth.experiments import lab
from slth.experiments.studies.mixing.config import Config
from slth.experiments.studies.mixing.jobs import measure
from slth.experiments.studies.mixing.tables import summarise, table_of
from slth.experiments.studies.mixing.variants import has_matrix
from slth.experiments.studies.mixing.verdicts import in_groups
from slth.threads import one_torch_thread

ex = lab.experiment("mixing", Config)  # Config is declared in the study, since its processes read it too
ex.add_named_config(
    "smoke",  # all kinds of measurements, in seconds, most of them for imports
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
    "quick",  # a full pass, too short and with too few seeds for conclusions
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
    "full",  # MHA beats the bigram model by 0.3 nats in each run, with five seeds, within three hours on two cores
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
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Measure all variants."""
    started = time.perf_counter()
    study = config.study
    config.resumable.begin()
    with one_torch_thread():  # two threads are not faster for such small matrices, and one keeps the order of sums
        table = table_of(study, measure(study))
        summary = summarise(study, table) | {"seconds": time.perf_counter() - started}
    if config.matrices and (without := [name for name in config.variants if not has_matrix(name)]):
        print(f"matrices: none of {', '.join(without)}, whose facts state no attention matrix")
    for line in in_groups(summary):
        print(line)
    lab.save(run, table, summary, plots.figures(table, summary))
    return summary


if __name__ == "__main__":
    lab.launch(ex)
