"""Measure losses of tickets over scales of query and key, and compare scales, for qk_scale.py."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import scipy  # its parts load where they are used
from transformers import GPT2Config

from slth.experiments import lab
from slth.experiments.studies.gpt2.data import Data
from slth.experiments.studies.gpt2.pruning import Pruning
from slth.experiments.studies.gpt2.training import Source, Training, best_of
from slth.models import gpt2

AT = ["run", "base_std", "qk_scale", "seed"]  # the columns that identify a measurement


@dataclass(frozen=True)
class Study:
    """The settings of the measurement."""

    size: str
    model: GPT2Config
    init: str
    embedding_std: float
    position_std: float
    qk_scales: list[float]
    base_stds: list[float]
    seeds: range
    runs: list[str]  # ticket, and dense if requested
    lrs: list[float]
    pilot_steps: int
    search: Pruning
    how: Training
    data: Data

    @property
    def theory(self) -> float:
        """n^(1/4)."""
        return theory_of(self.model)


def theory_of(model: GPT2Config) -> float:
    """Return n^(1/4), with n the width of a head."""
    return math.sqrt(math.sqrt(model.n_embd // model.n_head))


# ---------------------------------------------------------------- the run


def measure(study: Study) -> pd.DataFrame:
    """Return one row per network, base std, scale and seed; the loss of a training that diverges is infinite."""
    points = list(itertools.product(study.seeds, study.base_stds, study.qk_scales, study.runs))
    rows = [row_of(study, *point) for point in lab.progress(points, "networks")]
    return pd.DataFrame(rows).sort_values(AT, ignore_index=True, ascending=[False, True, True, True])


def row_of(study: Study, seed: int, base_std: float, qk_scale: float, run: str) -> dict[str, Any]:
    """Return the row of one network, trained at the best learning rate."""
    how = dataclasses.replace(study.how, seed=seed)
    search = dataclasses.replace(study.search, seed=seed) if run == "ticket" else None
    source = Source(study.model, study.init, study.embedding_std, study.position_std, qk_scale, seed)
    label = f"{run} std={base_std} qk={qk_scale} seed={seed}"
    row: dict[str, Any] = {"run": run, "base_std": base_std, "qk_scale": qk_scale, "seed": seed}
    grid = [(lr, base_std) for lr in study.lrs]
    try:
        best, _ = best_of(source, search, study.data, how, grid, label, study.pilot_steps)
        row |= {"val_loss": best.val_loss, "logit_std_at_init": best.logit_std, "lr": best.lr}
    except FloatingPointError:
        logits = gpt2.logit_std(source.build(base_std), study.data.validation[:8])
        row |= {"val_loss": math.inf, "logit_std_at_init": logits, "lr": math.nan}
    keep = search.keep if search else 1.0
    rest = {"size": study.size, "init": study.init, "steps": how.steps, "theory_scale": study.theory}
    return row | {"keep": keep} | rest


# ---------------------------------------------------------------- findings


def findings(table: pd.DataFrame, theory: float) -> list[dict[str, Any]]:
    """Return for every base std the best scale, and a comparison of theory's scale with 1."""
    return [finding(rows, float(cast("float", std)), theory) for std, rows in table.groupby("base_std")]


def finding(rows: pd.DataFrame, base_std: float, theory: float) -> dict[str, Any]:
    """Compare the losses at one base std; differences are theory's scale minus scale 1, paired by seed."""
    losses = rows.pivot(index="seed", columns="qk_scale", values="val_loss")  # (seeds, scales)
    logits = rows.groupby("qk_scale")["logit_std_at_init"].mean()
    means = losses.mean()
    best = float(cast("float", means.idxmin()))
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
    """Return differences by seed, their mean with its 95 % interval (Student's t), and a verdict.

    "helps" and "harms" require an interval that excludes 0.
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
    """Describe a finding in one line."""
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
    """Summarise the effect of theory's scale at every base std, in numbers and words, and the origin of the data."""
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
