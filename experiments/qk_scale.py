"""When the paper's scale of query and key helps: a ticket's loss against it, at several base standard deviations.

Figure 8 of arXiv 2511.04217 multiplies the random query and key weights by 1 to 5 and finds the least loss near
theory's n^(1/4), n being a head's width. What the scale sets is how far apart the attention logits of the random
network lie. The base standard deviation of the weights sets it, too: both are varied here, and the standard deviation
of the logits at init stands beside every loss.
"""

import dataclasses
import itertools
import math
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd
import scipy  # its parts load where they are used

from slth import plots
from slth.experiments import lab
from slth.experiments.lab import BadConfig, as_bool, as_choice, as_float, as_int
from slth.experiments.studies.gpt2.training import (
    Data,
    Search,
    Source,
    Training,
    best_of,
    check_checkpoints,
    claim_checkpoints,
    data_of,
    floats_of,
    qk_scales_of,
    search_of,
    sizes_of,
    training_of,
)
from slth.models import gpt2
from slth.threads import one_torch_thread

ex = lab.experiment("qk_scale")

ex.add_config(
    size="tiny*0.5",  # tiny, mini, small, medium, or one times a width
    data="stdlib",  # stdlib, installed, wikitext-103, or a path to any UTF-8 file
    vocabulary="bytes",  # bytes, or bpe:8192
    length=64,  # tokens a window
    qk_scale=[1.0, 1.5, "theory", 3.5, 5.0],  # of query and key: numbers, or theory, n^(1/4); one or several
    base_std=[0.02, 0.05, 0.1],  # of the blocks' weights; one or several
    seeds=3,  # how many, from seed on: each has its own weights, scores and batches, the same at every scale
    dense=False,  # also train the weights of the same networks
    method="edge_popup",  # edge_popup, iterand, biprop, frozen, bernoulli
    keep=0.5,
    policy="layer",  # layer, global
    schedule="constant",  # of keep: constant, linear, cubic
    masked="all",  # all weight matrices, or blocks: embeddings stay random and whole
    scores="kaiming_uniform",
    init="gpt2",  # gpt2, theory, signed
    embedding_std=0.15,
    position_std=0.02,
    lr=0.03,  # one or several: every point takes the best by its own pilots
    pilot_steps=40,  # of each, where there are several
    steps=300,
    batch=8,  # windows
    warmup=0.1,
    clip=1.0,
    windows=64,  # of validation
    checkpoints=None,  # a folder, from which a run that was cut goes on; of this config alone
    device="auto",  # auto, cpu, cuda
    seed=0,
)
ex.add_named_config(
    "smoke",
    size="tiny*0.25",
    length=32,
    qk_scale=[1.0, "theory"],
    base_std=[0.02, 0.1],
    seeds=2,
    steps=5,
    batch=4,
    windows=8,
)
ex.add_named_config(
    "paper_figure8",  # as far as the paper says; it leaves out what is masked and the batch
    size="mini",
    data="wikitext-103",
    vocabulary="bpe:50257",
    length=512,
    qk_scale=[1.0, 1.5, 2.0, 2.5, "theory", 3.0, 3.5, 4.0, 5.0],
    base_std=0.02,
    seeds=3,
    keep=0.3,
    embedding_std=0.02,
    lr=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    pilot_steps=500,
    steps=11_350,
    batch=64,
    windows=256,
)

AT = ["run", "base_std", "qk_scale", "seed"]  # what names a measurement


@dataclass(frozen=True)
class Study:
    """What a run does."""

    model: gpt2.GPT2Config
    qk_scales: list[float]
    base_stds: list[float]
    seeds: range
    runs: list[str]  # ticket, and dense where it is asked for
    lrs: list[float]
    pilot_steps: int
    search: Search
    how: Training
    data: Data
    config: dict[str, Any]

    @property
    def theory(self) -> float:
        """n^(1/4)."""
        return theory_of(self.model)


def check(config: dict[str, Any]) -> None:
    """BadConfig for what cannot be run."""
    check_checkpoints(config, study_of(config).data)


def study_of(config: dict[str, Any]) -> Study:
    """What a config says, the text read, or BadConfig."""
    how, search = training_of(config | {"every": config["steps"]}), search_of(config)
    base_stds, lrs = floats_of(config, "base_std"), floats_of(config, "lr")
    pilot_steps = as_int(config, "pilot_steps", 1)
    seeds = range(config["seed"], config["seed"] + as_int(config, "seeds", 1, 2**32 - config["seed"]))
    runs = ["ticket", "dense"] if as_bool(config, "dense") else ["ticket"]
    as_choice(config, "init", tuple(gpt2.INITS))
    for key in ("embedding_std", "position_std"):
        as_float(config, key, above=0.0)
    if not isinstance(config["size"], str):
        raise BadConfig("size", config["size"], "one size")
    qk_scales = numbers_of(config, theory_of(sizes_of(config, 256)[config["size"]]))
    data = data_of(config)
    model = sizes_of(config, data.vocabulary)[config["size"]]
    return Study(model, qk_scales, base_stds, seeds, runs, lrs, pilot_steps, search, how, data, config)


def theory_of(model: gpt2.GPT2Config) -> float:
    """n^(1/4), n the width of a head."""
    return math.sqrt(math.sqrt(model.n_embd // model.n_head))


def numbers_of(config: dict[str, Any], theory: float) -> list[float]:
    """The scales of query and key as numbers in order, or BadConfig."""
    scales = sorted(theory if scale == "theory" else float(scale) for scale in qk_scales_of(config))
    if len(set(scales)) < len(scales):
        raise BadConfig("qk_scale", config["qk_scale"], f"theory (here {theory}) or numbers > 0, none twice")
    return scales


# ---------------------------------------------------------------- the run


def measure(study: Study) -> pd.DataFrame:
    """One row per network, base std, scale and seed; the loss of a training that diverges is infinite."""
    points = list(itertools.product(study.seeds, study.base_stds, study.qk_scales, study.runs))
    rows = [row_of(study, *point) for point in lab.progress(points, "networks")]
    return pd.DataFrame(rows).sort_values(AT, ignore_index=True, ascending=[False, True, True, True])


def row_of(study: Study, seed: int, base_std: float, qk_scale: float, run: str) -> dict[str, Any]:
    """What came of one network, trained at the best learning rate."""
    how, config = dataclasses.replace(study.how, seed=seed), study.config
    search = dataclasses.replace(study.search, seed=seed) if run == "ticket" else None
    stds = config["embedding_std"], config["position_std"]
    source = Source(study.model, config["init"], *stds, qk_scale, seed)
    label = f"{run} std={base_std} qk={qk_scale} seed={seed}"
    row: dict[str, Any] = {"run": run, "base_std": base_std, "qk_scale": qk_scale, "seed": seed}
    grid = [(lr, base_std) for lr in study.lrs]
    try:
        best, _ = best_of(source, search, study.data, how, grid, label, study.pilot_steps)
        row |= {"val_loss": best.val_loss, "logit_std_at_init": best.logit_std, "lr": best.lr}
    except FloatingPointError:
        logits = gpt2.logit_std(source.build(base_std), study.data.validation[:8])
        row |= {"val_loss": math.inf, "logit_std_at_init": logits, "lr": math.nan}
    keep = config["keep"] if search else 1.0
    rest = {"size": config["size"], "init": config["init"], "steps": how.steps, "theory_scale": study.theory}
    return row | {"keep": keep} | rest


# ---------------------------------------------------------------- what it shows


def findings(table: pd.DataFrame, theory: float) -> list[dict[str, Any]]:
    """For every base std: the best scale, and what theory's does beside 1."""
    return [finding(rows, float(base_std), theory) for base_std, rows in table.groupby("base_std")]


def finding(rows: pd.DataFrame, base_std: float, theory: float) -> dict[str, Any]:
    """What the losses at one base std say; differences are theory's scale less 1, paired by seed."""
    losses = rows.pivot(index="seed", columns="qk_scale", values="val_loss")  # (seeds, scales)
    logits = rows.groupby("qk_scale")["logit_std_at_init"].mean()
    means = losses.mean()
    best = float(means.idxmin())
    found = {
        "base_std": base_std,
        "best_scale": best,
        "val_loss_at_best": means[best],
        "val_loss_at_1": means.get(1.0),
        "val_loss_at_theory": means.get(theory),
        "logit_std_at_init_at_best": logits[best],
        "logit_std_at_init_at_1": logits.get(1.0),
        "logit_std_at_init_at_theory": logits.get(theory),
    }
    if not {1.0, theory} <= set(losses.columns):
        return found | {"verdict": "not asked: needs the scales 1 and theory"}
    return found | compared(losses[theory] - losses[1.0])


def compared(differences: "pd.Series[float]") -> dict[str, Any]:
    """Differences by seed, their mean with its 95 % interval (Student's t), and a verdict.

    "helps" and "harms" need an interval that leaves 0 out.
    """
    count, mean, std = len(differences), float(differences.mean()), float(differences.std())  # NaN for one seed
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * std / math.sqrt(count) if count > 1 else math.inf
    verdict = "cannot tell"
    if abs(mean) > half:
        verdict = "helps" if mean < 0 else "harms"
    return {
        "difference": mean,
        "difference_std": std,
        "difference_low": mean - half,
        "difference_high": mean + half,
        "differences": differences.tolist(),
        "verdict": verdict,
    }


def in_words(found: dict[str, Any], theory: float) -> str:
    """One line for people."""
    start = f"base std {found['base_std']:g}: "
    best = f"least loss {found['val_loss_at_best']:.3f} at scale {found['best_scale']:.3g}"
    if "difference" not in found:
        return start + best
    seeds = len(found["differences"])
    verdict = f"the scale n^(1/4) = {theory:.3g} " + {"cannot tell": "cannot be told from 1"}.get(
        found["verdict"], found["verdict"]
    )
    spread = f"{found['difference_low']:+.3f} to {found['difference_high']:+.3f} with 95 %, {seeds} seeds"
    if seeds == 1:
        spread = "one seed, which has no spread"
    logits = f"{found['logit_std_at_init_at_1']:.2g} to {found['logit_std_at_init_at_theory']:.2g}"
    return f"{start}{verdict}: {found['difference']:+.3f} nat ({spread}), logit std at init {logits}; {best}"


def summarise(study: Study, table: pd.DataFrame) -> dict[str, Any]:
    """What theory's scale does at every base std, in numbers and words, and where the numbers come from."""
    found = {run: findings(rows, study.theory) for run, rows in table.groupby("run", sort=False)}
    corpus = study.data.corpus
    return {
        "theory_scale": study.theory,
        "verdicts": [in_words(one, study.theory) for one in found["ticket"]],
        "by_base_std": found["ticket"],
        "dense_by_base_std": found.get("dense", []),
        "seeds": list(study.seeds),
        "lr": study.lrs,
        "steps": study.how.steps,
        "val_loss_unigram": study.data.unigram,
        "val_loss_bigram": study.data.bigram,
        "corpus": {"name": corpus.name, "digest": corpus.digest, "packages": list(corpus.packages)},
    }


@ex.main
def main(_config, _run):
    started = time.perf_counter()
    study = study_of(_config)
    claim_checkpoints(_config, study.data)
    with one_torch_thread():  # such small matrices are no faster on two, and sums come in one order
        table = measure(study)
    summary = summarise(study, table) | {"seconds": time.perf_counter() - started}
    for line in summary["verdicts"]:
        print(line)
    lab.save(_run, table, summary, {"loss_vs_qk_scale": plots.loss_against_qk_scale(table)})
    return summary


if __name__ == "__main__":
    lab.launch(ex, check)
