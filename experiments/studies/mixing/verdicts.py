"""Findings of mixing.py: differences to multi-head attention, paired by seed, with verdicts."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from slth.experiments.studies.comparing import ENOUGH, compared

BASE = "mha"  # the variant that all are compared with
MARGIN = 0.3  # MHA counts as trained if its loss is this many nats below the bigram model's
WORDS = {"better": "better than MHA", "worse": "worse than MHA", "cannot tell": "cannot tell"}
# kind of difference -> (function that selects it from a variant's findings, unit)
KINDS: dict[str, tuple[Callable[[Mapping[str, Any]], Mapping[str, Any]], str]] = {
    "loss of tickets": (lambda found: found, " nat"),
    "loss of dense training": (lambda found: found.get("dense", {}), " nat"),
    "log2 of the error of tickets": (lambda found: found.get("log2_error", {}), ""),
}


def with_differences(table: pd.DataFrame, bigram: float, seed: int) -> pd.DataFrame:
    """Add the columns below_bigram (nats), difference (to MHA at equal keep and seed), its interval, conclusive."""
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
    """Tell whether there are ENOUGH seeds, and MHA beats the bigram model by MARGIN in every run, ticket and dense."""
    base = table[(table["what"] == "loss") & (table["variant"] == BASE)]
    return seeds >= ENOUGH and bool((base[["below_bigram", "below_bigram_dense"]] >= MARGIN).all(axis=None))


def paired(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column minus that of MHA: (seeds, variants), as means over all other settings."""
    values = rows.groupby(["seed", "variant"], sort=False)[column].mean().unstack()
    return values.sub(values[BASE], axis=0)


def of_variant(name: str, losses: pd.DataFrame, errors: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Compare one variant with MHA; differences below 0 are in its favour."""
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
    """Count spikes and diverged trainings by variant and learning rate, over seeds."""
    counts = rows.groupby(["variant", "lr"], sort=False)
    found = counts.agg(spikes=("spikes", "sum"), diverged=("diverged", "sum"), train_loss=("train_loss", "mean"))
    return [{str(name): value for name, value in row.items()} for row in found.reset_index().to_dict("records")]


def in_words(name: str, found: dict[str, Any], summary: dict[str, Any]) -> str:
    """Describe the findings of a variant in one line."""
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
    """Describe the findings in lines: the reliability of losses, and one line per kind of difference and verdict."""
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
    """Describe how reliable the verdicts are."""
    count = len(summary["seeds"])
    ticket, dense = (-summary[key] for key in ("mha_below_bigram", "mha_below_bigram_dense"))
    seeds = "one seed" if count == 1 else f"{count} seeds"
    worst = (
        f"MHA's loss less a bigram model's is at most {ticket:+.3f} nat as a ticket, {dense:+.3f} dense, with {seeds}"
    )
    return worst + ("" if summary["conclusive"] else ": too short or too few for conclusions")
