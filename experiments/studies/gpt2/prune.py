"""Find tickets in random GPT-2s and compare them with dense training and controls, for gpt2_prune.py."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from transformers import GPT2Config

import slth
from slth.experiments.studies.gpt2 import beside
from slth.experiments.studies.gpt2.data import Data
from slth.experiments.studies.gpt2.parts import Scoring
from slth.experiments.studies.gpt2.pruning import Pruning
from slth.experiments.studies.gpt2.training import (
    Source,
    Trained,
    Training,
    best_of_stds,
    control_losses,
    nonzero,
    sparse_training,
    state_dict_bytes,
    val_loss,
)


@dataclass(frozen=True)
class Study:
    """The settings of the measurement."""

    sizes: dict[str, GPT2Config]
    init: str  # of tickets
    dense_init: str
    qk_scales: list[float | str]
    embedding_std: float
    search: Pruning
    how: Training
    stds: list[tuple[float, float]]  # of blocks and positions
    lrs: list[float]
    pilot_steps: int
    data: Data
    scoring: Scoring  # of the text's own parts
    controls: bool  # whether tickets are compared with other masks and with weights trained under one
    baselines: list[str]  # of `beside`

    def source(self, size: str, init: str, qk_scale: float | str) -> Source:
        """Return a random network, with the first scale of its positions."""
        return Source(self.sizes[size], init, self.embedding_std, self.stds[0][1], qk_scale, self.how.seed)

    @property
    def grid(self) -> list[tuple[float, float, float]]:
        """All points (lr, base_std, position_std)."""
        return [(lr, *stds) for stds in self.stds for lr in self.lrs]


def measure(study: Study) -> tuple[pd.DataFrame, list[dict[str, Any]], bytes]:
    """Return (measurements, the results of each ticket, the first ticket as a file)."""
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    first = b""
    for size in study.sizes:
        plain = study.source(size, study.dense_init, 1.0)
        plain, dense, made = best_of_stds(
            plain, None, study.data, study.how, study.stds, study.lrs, f"{size} dense", study.pilot_steps
        )
        rows += [{"size": size, "run": "dense", "qk_scale": 1.0, "nonzero": nonzero(dense.model)} | row for row in made]
        with study.how.arithmetic.on(study.how.device):
            scores = study.scoring.of(dense.model, study.data, "dense")
        for qk_scale in study.qk_scales:
            outcome, made, file = prune(study, size, qk_scale, dense, plain)
            rows += made
            found.append(outcome | scores)
            first = first or file
        if study.baselines:
            tickets = [outcome for outcome in found if outcome["size"] == size]
            rows += beside.measure(study, size, dense, plain, tickets)
    return pd.DataFrame(rows), found, first


def prune(
    study: Study, size: str, qk_scale: float | str, dense: Trained, plain: Source
) -> tuple[dict[str, Any], list[dict[str, Any]], bytes]:
    """Find the ticket of one source and its controls; return (results, measurements, the ticket as a file).

    plain: the dense network's source, whose weights are also trained under a random mask, at the dense grid point.
    """
    source, search, data, how = study.source(size, study.init, qk_scale), study.search, study.data, study.how
    label = f"{size} ticket" + (f" qk={qk_scale}" if len(study.qk_scales) > 1 else "")
    source, ticket, made = best_of_stds(source, search, data, how, study.stds, study.lrs, label, study.pilot_steps)
    file = slth.Ticket.of(ticket.model).to_bytes()
    left = nonzero(ticket.model)
    rows = [{"size": size, "run": "ticket", "qk_scale": qk_scale, "nonzero": left} | row for row in made]
    rebuilt = slth.Ticket.from_bytes(file).apply(source.build(ticket.base_std).to(how.device))
    with how.arithmetic.on(how.device):
        if val_loss(rebuilt, data.validation) != val_loss(ticket.model, data.validation):
            raise AssertionError("the ticket gives another loss than the network it was taken from")
        scores = study.scoring.of(rebuilt, data, "ticket")
    losses = {}
    if study.controls:
        with how.arithmetic.on(how.device):
            losses = control_losses(ticket, data, how.seed)
        sparse, fit = sparse_training(plain, search, data, how, dense, label.replace("ticket", "sparse"))
        losses["random_mask_trained_weights"] = fit.last["val_loss"]
        point = {"lr": dense.lr, "base_std": dense.base_std, "position_std": plain.position_std, "stage": "full"}
        about = {"size": size, "run": "sparse", "qk_scale": qk_scale, "nonzero": nonzero(sparse)}
        rows += [about | point | row for row in fit.rows]
    shuffled = losses.get("shuffled_mask")
    outcome = {
        "size": size,
        "qk_scale": qk_scale,
        "val_loss_ticket": ticket.val_loss,
        "val_loss_dense": dense.val_loss,
        **{f"val_loss_{name}": loss for name, loss in losses.items()},
        **scores,
        "recovered": recovered(data.unigram, dense.val_loss, ticket.val_loss),
        **({} if shuffled is None else {"recovered_shuffled": recovered(data.unigram, dense.val_loss, shuffled)}),
        "ticket_point": {"lr": ticket.lr, "base_std": ticket.base_std, "position_std": source.position_std},
        "dense_point": {"lr": dense.lr, "base_std": dense.base_std, "position_std": plain.position_std},
        "logit_std_at_init_ticket": ticket.logit_std,
        "logit_std_at_init_dense": dense.logit_std,
        "nonzero_ticket": left,
        "nonzero_dense": nonzero(dense.model),
        "ticket_bytes": len(file),
        "state_dict_bytes": state_dict_bytes(rebuilt),
        "tokens_per_s": how.tokens_per_s(ticket.fit),
        "tokens_per_s_dense": how.tokens_per_s(dense.fit),
    }
    return outcome, rows, file


def recovered(unigram: float, dense: float, loss: float) -> float:
    """Return the share of dense training's gain over the unigram model at a loss; NaN if there is no gain."""
    return (unigram - loss) / (unigram - dense) if dense < unigram else math.nan


def summarise(study: Study, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the first ticket, then all tickets, the baselines, and the origin of the data."""
    data, first = study.data, found[0]
    losses = {"val_loss_unigram": data.unigram, "val_loss_bigram": data.bigram}
    perplexities = {
        name.replace("val_loss", "perplexity"): math.exp(min(value, 700.0))
        for name, value in (first | losses).items()
        if name.startswith("val_loss")
    }
    corpus = {"name": data.corpus.name, "digest": data.corpus.digest, "packages": list(data.corpus.packages)}
    if data.corpus.test is not None:
        corpus["test_digest"] = hashlib.sha256(data.corpus.test).hexdigest()
    return (
        first
        | losses
        | perplexities
        | {
            "models": found,
            "grid": [{"lr": lr, "base_std": base, "position_std": at} for lr, base, at in study.grid],
            "steps": study.how.steps,
            "training_tokens": len(data.training),
            "corpus": corpus,
            "device": device_name(study.how.device),
        }
    )


def shipped(table: pd.DataFrame) -> pd.DataFrame:
    """Return the bytes and loss of each network's file in a run with baselines, the smallest first."""
    columns = ["size", "run", "weights", "bytes", "bits_per_weight", "nonzero", "val_loss", "bits_per_byte", "lr"]
    files: pd.DataFrame = table.loc[table["stage"] == "shipped", columns]
    return files.sort_values("bytes", ignore_index=True, kind="stable")


def device_name(device: torch.device) -> str:
    """Return the name of the device that models ran on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
