"""A strong lottery ticket in a random GPT-2, beside everything it must be compared with.

Scores are trained, weights stay random. Dense training of the same network gets the same steps, batches and grid of
learning rates and init scales; a random mask, the ticket's own mask shuffled or on other weights, weights trained under
a random mask, and unigram and bigram models say what a loss is worth. The ticket is stored as ticket.safetensors.

Several sizes or scales of query and key draw the loss against the parameters that are not zero (Figure 7 of
arXiv 2511.04217). A folder `checkpoints` lets a run that was cut go on.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

import slth
from slth import plots
from slth.experiments import lab
from slth.experiments.lab import as_choice, as_float, as_int
from slth.experiments.studies.gpt2.training import (
    Data,
    Search,
    Source,
    Trained,
    Training,
    best_of_stds,
    check_checkpoints,
    claim_checkpoints,
    control_losses,
    data_of,
    floats_of,
    nonzero,
    qk_scales_of,
    search_of,
    sizes_of,
    sparse_training,
    state_dict_bytes,
    stds_of,
    training_of,
    val_loss,
)
from slth.models import gpt2

ex = lab.experiment("gpt2_prune")

ex.add_config(
    size="tiny",  # tiny, mini, small, medium, or one times a width as in mini*0.5; one or several
    data="stdlib",  # stdlib, installed, wikitext-103, or a path to any UTF-8 file
    vocabulary="bytes",  # bytes, or bpe:8192
    length=128,  # tokens a window
    method="edge_popup",  # edge_popup, iterand, biprop, frozen, bernoulli
    keep=0.5,
    policy="layer",  # layer, global
    schedule="constant",  # of keep: constant, linear, cubic
    masked="all",  # all weight matrices, or blocks: embeddings stay random and whole
    scores="kaiming_uniform",
    init="signed",  # of the ticket's source: gpt2, theory, signed
    dense_init="gpt2",  # of the dense network
    qk_scale=1.0,  # of the source's query and key: a number or theory, n^(1/4); one or several
    embedding_std=0.15,
    base_std=[0.04, 0.07],  # of the blocks: the grid of both sides, with
    position_std=None,  # of the positions, one for all or each with its base_std; None: 0.02 with one below 0.055,
    # 0.12 with one above; and
    lr=[0.003, 0.0045],
    pilot_steps=60,  # of training at every point of the grid, to choose the learning rate of each init
    steps=400,  # of each init at its own
    batch=16,  # windows
    warmup=0.1,
    clip=1.0,
    every=50,  # steps between measurements of the validation loss
    windows=64,  # of validation
    checkpoints=None,  # a folder, from which a run that was cut goes on; of this config alone
    device="auto",  # auto, cpu, cuda
    seed=0,
)
SMOKE = {"length": 32, "steps": 20, "pilot_steps": 4, "batch": 4, "every": 5, "windows": 8}
ex.add_named_config("smoke", size="tiny*0.25", lr=[0.003, 0.03], base_std=0.05, position_std=0.05, **SMOKE)
ex.add_named_config(
    "sizes", size=["tiny*0.25", "tiny*0.5", "tiny", "tiny*1.5"], qk_scale=[1.0, "theory"], pilot_steps=60
)
ex.add_named_config(
    "paper_figure7",  # as far as the paper says; it leaves out what is masked and the batch
    size=["mini*0.5", "mini", "small", "medium", "medium*2"],
    data="wikitext-103",
    vocabulary="bpe:50257",
    length=512,
    keep=0.3,
    init="gpt2",
    qk_scale=[1.0, "theory"],
    embedding_std=0.02,
    lr=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    base_std=0.02,
    position_std=0.02,
    pilot_steps=500,
    steps=11_350,
    batch=64,
    every=500,
    windows=256,
)


@dataclass(frozen=True)
class Study:
    """What a run does."""

    sizes: dict[str, gpt2.GPT2Config]
    qk_scales: list[float | str]
    search: Search
    how: Training
    stds: list[tuple[float, float]]  # of blocks and positions
    lrs: list[float]
    pilot_steps: int
    data: Data
    config: dict[str, Any]

    def source(self, size: str, init: str, qk_scale: float | str) -> Source:
        """A random network, its positions at the first of their scales."""
        stds = self.config["embedding_std"], self.stds[0][1]
        return Source(self.sizes[size], init, *stds, qk_scale, self.how.seed)

    @property
    def grid(self) -> list[tuple[float, float, float]]:
        """All (lr, base_std, position_std)."""
        return [(lr, *stds) for stds in self.stds for lr in self.lrs]


def check(config: dict[str, Any]) -> None:
    """All that can be refused before a text is read, or BadConfig."""
    training_of(config), search_of(config), stds_of(config), floats_of(config, "lr")
    as_int(config, "pilot_steps", 1)
    as_int(config, "windows", 1)
    as_float(config, "embedding_std", above=0.0)
    for key in ("init", "dense_init"):
        as_choice(config, key, tuple(gpt2.INITS))
    qk_scales_of(config)
    sizes_of(config, 256)
    check_checkpoints(config, data_of(config))


def study_of(config: dict[str, Any]) -> Study:
    """What a config says, the text read; BadConfig where :func:`check` would."""
    data = data_of(config)
    return Study(
        sizes_of(config, data.vocabulary),
        qk_scales_of(config),
        search_of(config),
        training_of(config),
        stds_of(config),
        floats_of(config, "lr"),
        as_int(config, "pilot_steps", 1),
        data,
        config,
    )


# ---------------------------------------------------------------- the run


def measure(study: Study) -> tuple[pd.DataFrame, list[dict[str, Any]], bytes]:
    """(measurements, what came of each ticket, the first ticket as a file)."""
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    first = b""
    for size in study.sizes:
        plain = study.source(size, study.config["dense_init"], 1.0)
        plain, dense, made = best_of_stds(
            plain, None, study.data, study.how, study.stds, study.lrs, f"{size} dense", study.pilot_steps
        )
        rows += [{"size": size, "run": "dense", "qk_scale": 1.0, "nonzero": nonzero(dense.model)} | row for row in made]
        for qk_scale in study.qk_scales:
            outcome, made, file = prune(study, size, qk_scale, dense, plain)
            rows += made
            found.append(outcome)
            first = first or file
    return pd.DataFrame(rows), found, first


def prune(study: Study, size: str, qk_scale: float | str, dense: Trained, plain: Source):
    """The ticket of one source and its controls: (what came of it, measurements, the ticket as a file).

    plain: the dense network's source, from which weights are also trained under a random mask, at its point.
    """
    source, search, data, how = study.source(size, study.config["init"], qk_scale), study.search, study.data, study.how
    label = f"{size} ticket" + (f" qk={qk_scale}" if len(study.qk_scales) > 1 else "")
    source, ticket, made = best_of_stds(source, search, data, how, study.stds, study.lrs, label, study.pilot_steps)
    file = slth.Ticket.of(ticket.model).to_bytes()
    left = nonzero(ticket.model)
    rows = [{"size": size, "run": "ticket", "qk_scale": qk_scale, "nonzero": left} | row for row in made]
    before = val_loss(ticket.model, data.validation)
    rebuilt = slth.Ticket.from_bytes(file).apply(source.build(ticket.base_std).to(how.device))
    if val_loss(rebuilt, data.validation) != before:
        raise AssertionError("the ticket gives another loss than the network it was taken from")
    losses = control_losses(ticket, data, how.seed)
    sparse, fit = sparse_training(plain, search, data, how, dense, label.replace("ticket", "sparse"))
    point = {"lr": dense.lr, "base_std": dense.base_std, "position_std": plain.position_std, "stage": "full"}
    rows += [
        {"size": size, "run": "sparse", "qk_scale": qk_scale, "nonzero": nonzero(sparse)} | point | row
        for row in fit.rows
    ]
    outcome = {
        "size": size,
        "qk_scale": qk_scale,
        "val_loss_ticket": ticket.val_loss,
        "val_loss_dense": dense.val_loss,
        "val_loss_random_mask": losses["random_mask"],
        "val_loss_shuffled_mask": losses["shuffled"],
        "val_loss_redrawn_weights": losses["redrawn_weights"],
        "val_loss_random_mask_trained_weights": fit.last["val_loss"],
        "recovered": recovered(data.unigram, dense.val_loss, ticket.val_loss),
        "recovered_shuffled": recovered(data.unigram, dense.val_loss, losses["shuffled"]),
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
    """The share of dense training's gain over the unigram model that a loss has; NaN where there is no gain."""
    return (unigram - loss) / (unigram - dense) if dense < unigram else math.nan


def summarise(study: Study, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The first ticket's figures, then all of them, what they are measured against, and where they come from."""
    data, first = study.data, found[0]
    losses = {"val_loss_unigram": data.unigram, "val_loss_bigram": data.bigram}
    perplexities = {
        name.replace("val_loss", "perplexity"): math.exp(min(value, 700.0))
        for name, value in (first | losses).items()
        if name.startswith("val_loss")
    }
    corpus = {"name": data.corpus.name, "digest": data.corpus.digest, "packages": list(data.corpus.packages)}
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


def device_name(device: torch.device) -> str:
    """What the models ran on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@ex.main
def main(_config, _run):
    started = time.perf_counter()
    study = study_of(_config)
    claim_checkpoints(_config, study.data)
    points = ", ".join(f"(lr {lr:g}, std {base:g}, of positions {at:g})" for lr, base, at in study.grid)
    print(f"grid of both sides, {study.pilot_steps} steps each, then every init in full at its best: {points}")
    table, found, ticket = measure(study)
    summary = summarise(study, found) | {"seconds": time.perf_counter() - started}
    figures = {"loss": plots.loss_against_steps(table, summary)}
    if len(found) > 1:
        figures["loss_vs_parameters"] = plots.loss_against_parameters(table, summary)
    for one in found:
        gained = f"{one['recovered']:.1%} of dense training's gain over unigrams"
        print(
            f"{one['size']}, query and key x {one['qk_scale']}: dense {one['val_loss_dense']:.4f}, ticket "
            f"{one['val_loss_ticket']:.4f} ({'no gain over unigrams' if math.isnan(one['recovered']) else gained}), "
            f"shuffled {one['val_loss_shuffled_mask']:.4f}; {one['ticket_bytes']:,} bytes for "
            f"{one['state_dict_bytes']:,}"
        )
    lab.save(_run, table, summary, figures, {"ticket.safetensors": ticket})
    return summary


if __name__ == "__main__":
    lab.launch(ex, check)
