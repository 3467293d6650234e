"""A trained language model hidden in a random network: train it, then find it by pruning alone.

A character-level transformer is trained on real text; then its ticket is constructed inside a wider random
transformer, exactly, by subset sums. candidates=24 counts what every subset sum may choose from, after the ReLU's
split into halves; candidates=[8,12,16,20,24] draws the loss gap against it.
"""

import time

from slth import plots
from slth.experiments import lab
from slth.experiments.studies.hidden.measure import hide, study_of, summarise, train_target
from slth.threads import one_torch_thread

ex = lab.experiment("hidden_lm")

ex.add_config(
    data="stdlib",  # the standard library's source text, or a path to any UTF-8 file
    embeddings="shared",  # shared: embedding, positions and head are the target's; random: they are pruned too
    norm=True,  # layer normalisation, without affine part
    d=64,
    blocks=4,
    heads=None,  # None: 4, or the most below that divide d
    layers=2,  # of the target's feed-forward networks; the source has twice as many
    length=128,  # tokens a window
    vocabulary=128,  # the most common characters; the last stands for all others
    steps=2000,  # of the target's training
    batch=16,
    lr=0.004,
    candidates=24,  # per entry, one or several
    reach="scale",  # scale: a recorded scale per source matrix; bound: train under the norm bound; none: neither
    windows=200,  # validation windows
    sample=400,  # characters of text from target and ticket
    seed=0,
)
SMALL = {"d": 16, "blocks": 2, "heads": 2, "length": 32, "steps": 40, "windows": 10, "sample": 80}
ex.add_named_config("smoke", **SMALL, candidates=[8, 12])
ex.add_named_config("sweep", candidates=[8, 12, 16, 20, 24])


@ex.main
def main(_config, _run):
    started = time.perf_counter()
    study = study_of(_config)
    with one_torch_thread():  # such small matrices are no faster on two, and sums come in one order
        target, learned = train_target(study)
        table, texts = hide(study, target)
    summary = summarise(study, table, learned) | {"texts": texts}
    figures = {"error_vs_block": plots.error_against_block(table)}
    if len(study.candidates) > 1:
        figures["gap_vs_candidates"] = plots.gap_against_candidates(table)
    for name, text in texts.items():
        print(f"--- {name}\n{text}")
    summary["seconds"] = time.perf_counter() - started
    lab.save(_run, table, summary, figures)
    return summary


if __name__ == "__main__":
    lab.launch(ex, study_of)
