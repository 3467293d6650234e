"""Which attention hides better tickets than multi-head attention (MHA): a comparison at equal size, paired by seed.

For each variant, at as many parameters as MHA has (or as much computing), four things can be measured:

errors    how far its tickets are from a random MHA, learned by edge-popup and, where it can be done, constructed;
losses    the validation loss of its tickets in a small GPT-2, over keep and seeds, beside dense training;
spikes    how often the training loss jumps, over learning rates (studies/mixing/spikes.py says when);
matrices  rank and entropy of the attention matrices, of variants whose facts state one; MHLA beside plain linear
          attention.

In results.csv `what` says which of them a row is of; `hidden` is the width of the heads of an MHA that is as large,
`width` the variant's own; parameters are the attention's (errors, matrices) or the whole network's. A loss's
`difference` is to MHA's of the same keep and seed, with the 95 % bootstrap interval of its mean over seeds beside it.
seconds_per_step has the evaluation at the end in it.

With a folder `checkpoints`, what is done stays done: a run that was cut goes on where it was, even within a training,
and one with more variants, seeds, keeps, widths or lengths measures what is missing.
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

ex = lab.experiment("mixing", Config)  # whose keys are declared beside the study: its processes read them, too
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
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Measure all variants."""
    started = time.perf_counter()
    study = config.study
    config.resumable.begin()
    with one_torch_thread():  # such small matrices are no faster on two, and sums come in one order
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
