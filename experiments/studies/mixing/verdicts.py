"""What mixing.py has found: differences to multi-head attention, paired by seed, and what they are worth."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import scipy  # its parts load where they are used

from slth.weights import inits

BASE = "mha"  # what all are compared with
MARGIN = 0.3  # nat below the bigram model's loss, from where MHA counts as trained
ENOUGH = 5  # paired seeds that a conclusion needs
DRAWS = 10_000  # of the bootstrap
WORDS = {"better": "better than MHA", "worse": "worse than MHA", "cannot tell": "cannot tell"}
# differences by what they are of: where they lie in what is found of a variant, and their unit
KINDS: dict[str, tuple[Callable[[Mapping[str, Any]], Mapping[str, Any]], str]] = {
    "loss of tickets": (lambda found: found, " nat"),
    "loss of dense training": (lambda found: found.get("dense", {}), " nat"),
    "log2 of the error of tickets": (lambda found: found.get("log2_error", {}), ""),
}
LEVEL = 0.05  # at most this often is any of the corrected verdicts on a family of variants wrong by chance


def with_differences(table: pd.DataFrame, bigram: float, seed: int) -> pd.DataFrame:
    """With below_bigram (nat), difference (to MHA of the same keep and seed), its mean's interval, conclusive."""
    losses = table[table["what"] == "loss"]
    if losses.empty:
        return table
    table["below_bigram"] = bigram - table["val_loss"]
    table["below_bigram_dense"] = bigram - table["val_loss_dense"]
    for (keep, variant), rows in losses.groupby(["keep", "variant"], sort=False):
        difference = paired(losses[losses["keep"] == keep], "val_loss")[variant]
        found = compared(difference, seed)
        table.loc[rows.index, "difference"] = rows["seed"].map(difference)
        for bound in ("low", "high"):
            table.loc[rows.index, f"difference_{bound}"] = found[f"difference_{bound}"]
    table.loc[losses.index, "conclusive"] = conclusive(table, losses["seed"].nunique())
    return table


def conclusive(table: pd.DataFrame, seeds: int) -> bool:
    """Whether there are ENOUGH seeds, and MHA is below the bigram model by MARGIN in each run, ticket and dense."""
    base = table[(table["what"] == "loss") & (table["variant"] == BASE)]
    return seeds >= ENOUGH and bool((base[["below_bigram", "below_bigram_dense"]] >= MARGIN).all(axis=None))


def paired(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column less that of MHA: (seeds, variants), means over all else that the rows differ in."""
    values = rows.groupby(["seed", "variant"], sort=False)[column].mean().unstack()
    return values.sub(values[BASE], axis=0)


def compared(differences: "pd.Series[float]", seed: int) -> dict[str, Any]:
    """Differences by seed, their mean, its 95 % intervals, the p of Student's paired t-test, and a verdict.

    difference_low, difference_high: percentiles of the bootstrap. With few seeds these are too narrow; so "better" and
    "worse" need ENOUGH seeds, and Student's interval to leave 0 out as well. p, two-sided, is NaN where there is one
    seed alone, or a difference that is no number.
    """
    values = differences.to_numpy(dtype=float)
    count, mean = len(values), float(np.mean(values))
    found = {"difference": mean, "difference_low": -math.inf, "difference_high": math.inf}
    found |= {"student_low": -math.inf, "student_high": math.inf, "p": math.nan}
    if count > 1 and np.isfinite(values).all():
        deviation = float(np.std(values, ddof=1)) / math.sqrt(count)
        half = float(scipy.stats.t.ppf(0.975, count - 1)) * deviation
        low, high = bootstrap(values, seed)
        found |= {"difference_low": low, "difference_high": high}
        found |= {"student_low": mean - half, "student_high": mean + half}
        found["p"] = 2 * float(scipy.stats.t.sf(abs(mean) / deviation, count - 1)) if deviation else float(mean == 0)
    verdict = "cannot tell"
    if count < ENOUGH:
        pass
    elif max(found["difference_high"], found["student_high"]) < 0:
        verdict = "better"
    elif min(found["difference_low"], found["student_low"]) > 0:
        verdict = "worse"
    return found | {"differences": values.tolist(), "verdict": verdict}


def correct(family: Mapping[str, dict[str, Any]]) -> None:
    """Add to comparisons, one for each variant, what is left of them as a family, and likewise to those inside them.

    p_corrected is by :func:`holm`; verdict_corrected is "better" or "worse" where the verdict is and p_corrected is at
    most LEVEL. A single verdict may be wrong by chance once in 20 times, and so one of nine about once in three.
    """
    for key in next(iter(family.values()), {}):
        if all(isinstance(found.get(key), dict) for found in family.values()):
            correct({name: found[key] for name, found in family.items()})
    if all("verdict" in found for found in family.values()):
        for found, p in zip(family.values(), holm([found["p"] for found in family.values()]), strict=True):
            found |= {"p_corrected": p, "verdict_corrected": found["verdict"] if p <= LEVEL else "cannot tell"}


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for how many they are; a NaN counts as 1.

    The k-th least, of m, is multiplied by m - k + 1, and is no less than those before it (Holm 1979, "A simple
    sequentially rejective multiple test procedure"). Whatever depends on what, the chance that any true null
    hypothesis has a corrected p of at most a is at most a.
    """
    values = np.nan_to_num(np.asarray(p, dtype=float), nan=1.0)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of the means of DRAWS samples, drawn with replacement."""
    dice = inits.uniform((DRAWS, len(values)), 1.0, seed=seed, name="mixing/bootstrap").double().numpy()
    drawn = values[((dice + 1.0) / 2.0 * len(values)).astype(int)]
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def of_variant(name: str, losses: pd.DataFrame, errors: pd.DataFrame, seed: int) -> dict[str, Any]:
    """One variant beside MHA; differences below 0 are to its favour."""
    found: dict[str, Any] = {}
    if len(losses):
        own = losses[losses["variant"] == name]
        gaps = losses.assign(gap=losses["val_loss"] - losses["val_loss_dense"])
        found |= compared(paired(losses, "val_loss")[name], seed)
        found |= {
            "val_loss": float(own["val_loss"].mean()),
            "val_loss_dense": float(own["val_loss_dense"].mean()),
            "dense": compared(paired(losses, "val_loss_dense")[name], seed),
            "gap_to_dense": compared(paired(gaps, "gap")[name], seed),
            "by_keep": {
                str(keep): compared(paired(rows, "val_loss")[name], seed) for keep, rows in losses.groupby("keep")
            },
            "width": int(own["width"].iloc[0]),
            "parameters": int(own["parameters"].iloc[0]),
            "seconds_per_step": float(own["seconds_per_step"].mean()),
            "seconds_per_step_dense": float(own["seconds_per_step_dense"].mean()),
        }
    if len(errors):
        own = errors[errors["variant"] == name]
        logs = errors.assign(log2_error=np.log2(errors["error"]))
        found["log2_error"] = compared(paired(logs, "log2_error")[name], seed)
        found["error"] = float(own["error"].median())
        found["by_hidden"] = [
            {
                "hidden": int(cast("int", at)),
                "width": int(rows["width"].iloc[0]),
                "parameters": int(rows["parameters"].iloc[0]),
            }
            for at, rows in own.groupby("hidden")
        ]
    return found


def spike_counts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Spikes and trainings that diverged by variant and learning rate, over the seeds."""
    counts = rows.groupby(["variant", "lr"], sort=False)
    found = counts.agg(spikes=("spikes", "sum"), diverged=("diverged", "sum"), train_loss=("train_loss", "mean"))
    return [{str(name): value for name, value in row.items()} for row in found.reset_index().to_dict("records")]


def in_words(name: str, found: dict[str, Any], summary: dict[str, Any]) -> str:
    """One line for people."""
    seeds = len(found["differences"])
    spread = f"{found['difference_low']:+.3f} to {found['difference_high']:+.3f} with 95 %, {seeds} paired seeds"
    if seeds == 1:
        spread = "one seed, which has no spread"
    words = {"better": "better tickets than MHA", "worse": "worse tickets than MHA", "cannot tell": "cannot tell"}
    dense, count = found["dense"], len(summary["variants"]) - 1
    line = (
        f"{name}: {words[found['verdict']]}: {found['difference']:+.3f} nat ({spread}); trained densely "
        f"{dense['difference']:+.3f} ({dense['verdict']}); corrected for {count} comparisons (Holm): "
        f"{found['verdict_corrected']} (p = {found['p_corrected']:.2g}), densely {dense['verdict_corrected']} "
        f"(p = {dense['p_corrected']:.2g})"
    )
    by_keep = [f"{keep} {one['difference']:+.3f} ({one['verdict']})" for keep, one in found["by_keep"].items()]
    return line if len(by_keep) < 2 else f"{line}; by keep: {', '.join(by_keep)}"


def in_groups(summary: Mapping[str, Any]) -> list[str]:
    """Lines for people: of losses what they are worth, and of each kind of difference one line for each verdict."""
    family = {name: found for name, found in summary["variants"].items() if name != BASE}
    seeds = len(summary["seeds"])
    means = f"means of {seeds} paired seeds" if seeds > 1 else "one seed, which has no spread"
    lines = [*summary.get("verdicts", ())[:1]]
    if family:
        corrected = f"verdicts corrected for {len(family)} comparisons (Holm)"
        lines.append(f"differences to MHA, {means}; {corrected}; intervals, p and each keep: summary.json")
    for kind, (part, unit) in KINDS.items():
        found = {name: part(one) for name, one in family.items()}
        for verdict in WORDS:
            held = [f"{name} {one['difference']:+.3f}" for name, one in found.items() if _corrected(one) == verdict]
            lines += [f"{kind}, {WORDS[verdict]}: {', '.join(held)}{unit}"] * bool(held)
    return lines


def _corrected(found: Mapping[str, Any]) -> str | None:
    verdict: str | None = found.get("verdict_corrected")
    return verdict


def caveat(summary: dict[str, Any]) -> str:
    """What the verdicts are worth."""
    count = len(summary["seeds"])
    ticket, dense = (-summary[key] for key in ("mha_below_bigram", "mha_below_bigram_dense"))
    seeds = "one seed" if count == 1 else f"{count} seeds"
    worst = (
        f"MHA's loss less a bigram model's is at most {ticket:+.3f} nat as a ticket, {dense:+.3f} dense, with {seeds}"
    )
    return worst + ("" if summary["conclusive"] else ": too short or too few for conclusions")
