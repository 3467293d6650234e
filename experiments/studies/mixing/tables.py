"""The table of all measurements, and their summary in numbers and words."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from slth.experiments.studies.comparing import correct
from slth.experiments.studies.mixing.spikes import SPIKE
from slth.experiments.studies.mixing.study import Job, Study
from slth.experiments.studies.mixing.verdicts import (
    BASE,
    MARGIN,
    caveat,
    in_words,
    of_variant,
    spike_counts,
    with_differences,
)


def table_of(study: Study, done: dict[Job, dict[str, Any]]) -> pd.DataFrame:
    """Return all measurements; what is error, loss, spikes or matrix, and hidden the width of an MHA of equal size."""
    rows = []
    for job, found in done.items():
        row = {key: value for key, value in asdict(job).items() if key != "what"}
        if job.what == "error":
            rows.append({"what": "error"} | row | {"keep": study.learning.keep} | found)
        elif job.what == "ticket":
            dense = done[Job("dense", job.variant, job.seed)]
            rows.append({"what": "loss"} | row | _at(study) | found | _of_dense(dense))
        elif job.what == "spikes":
            rows.append({"what": "spikes"} | row | _at(study) | found)
        elif job.what == "matrix":
            rows.append({"what": "matrix", "where": "random, not causal"} | row | found)
        elif "matrix" in found:
            row |= _at(study) | {name: found[name] for name in ("width", "parameters")}
            rows.append({"what": "matrix", "where": "trained, causal"} | row | found["matrix"])
    columns = ["what", "variant", "keep", "hidden", "length", "seed", "error", "error_construct", "val_loss"]
    columns += ["val_loss_dense", "parameters", "seconds_per_step"]
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*columns, *table.columns.difference(columns, sort=False)])
    return with_differences(table, study.data.bigram, study.config.seed)


def _at(study: Study) -> dict[str, int]:
    return {"hidden": study.model.n_embd // study.heads, "length": study.how.length}


def _of_dense(found: dict[str, Any]) -> dict[str, Any]:
    return {f"{key}_dense": found.get(key) for key in ("val_loss", "seconds_per_step", "lr")}


def summarise(study: Study, table: pd.DataFrame) -> dict[str, Any]:
    """Summarise the measurements in numbers and words, with the origin of the data."""
    losses, errors = (table[table["what"] == what] for what in ("loss", "error"))
    variants = {name: of_variant(name, losses, errors, study.config.seed) for name in study.variants}
    correct({name: found for name, found in variants.items() if name != BASE})
    summary: dict[str, Any] = {
        "variants": variants,
        "seeds": list(study.seeds),
        "steps": study.how.steps,
        "equal": study.config.equal,
        "val_loss_unigram": study.data.unigram,
        "val_loss_bigram": study.data.bigram,
        "device": str(study.how.device),
        "corpus": {"name": study.data.corpus.name, "digest": study.data.corpus.digest},
    }
    if len(losses):
        base = losses[losses["variant"] == BASE]
        beaten = losses[["below_bigram", "below_bigram_dense"]] >= MARGIN
        summary |= {
            "conclusive": bool(losses["conclusive"].all()),
            "mha_below_bigram": float(base["below_bigram"].min()),
            "mha_below_bigram_dense": float(base["below_bigram_dense"].min()),
            "runs_below_bigram": f"{int(beaten['below_bigram'].sum())} of {len(beaten)} tickets",
            "runs_below_bigram_dense": f"{int(beaten['below_bigram_dense'].sum())} of {len(beaten)}, dense",
            "verdicts": [in_words(name, one, summary) for name, one in summary["variants"].items() if name != BASE],
        }
        summary["verdicts"] = [caveat(summary), *summary["verdicts"]]
    if study.config.spikes:
        summary |= {"spike": SPIKE, "spikes": spike_counts(table[table["what"] == "spikes"])}
    if study.config.matrices:
        matrices = table[table["what"] == "matrix"].groupby(["where", "length", "variant"])
        means = matrices[["rank", "effective_rank", "entropy"]].mean().reset_index()
        summary["matrices"] = means.to_dict("records")
    return summary
