"""The constant of Lemma 7, measured: with how many candidates are all entries of a target met?

Lemma 7 of arXiv 2511.04217 asks for n >= d1 C log(d1 d2 / epsilon) hidden units and leaves C open. Here n' = n / d
candidates an entry are counted up until, with probability at least 1 - epsilon, every entry of a d x d target is met
within epsilon / d^2; C = n' / log(d^2 / epsilon), the logarithm being natural.
"""

import time

from slth import plots
from slth.experiments import lab
from slth.experiments.studies.constant.measure import measure, study_of, summarise

ex = lab.experiment("constant")

ex.add_config(
    d=[2, 4, 8, 16],  # width of the target, in and out; one or several
    epsilon=[0.3, 0.1, 0.03],  # one or several
    target=["uniform", "unit"],  # entries uniform in [-1, 1], or all |w| = 1; one or both
    effort=10_000,  # trials of a cell (d, epsilon, target): effort / (d epsilon), fixed before the first is drawn
    seed=0,
)
ex.add_named_config("smoke", d=[2, 4], epsilon=[0.3, 0.1], effort=400)


@ex.main
def main(_config, _run):
    started = time.perf_counter()
    table = measure(study_of(_config))
    summary = {**summarise(table), "seconds": time.perf_counter() - started}
    lab.save(_run, table, summary, {"constant": plots.constant(table)})
    return summary


if __name__ == "__main__":
    lab.launch(ex, study_of)
