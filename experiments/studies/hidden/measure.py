"""Train a language model and construct its ticket in a random one, for hidden_lm.py."""

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from slth.attention.facts import PROJECTIONS
from slth.construct import TransformerConstruction, certify, language_model, pruned, record_scales
from slth.experiments.lab import Arithmetic, BadConfig, curves, progress
from slth.models.transformer import Block, LanguageModel, Product, Table, Transformer
from slth.search.steps import Training
from slth.tasks import text as task
from slth.ticket import Ticket
from slth.weights import inits


@dataclass(frozen=True)
class Study:
    """The settings of the measurement: one target, and its tickets at several numbers of candidates per entry."""

    corpus: task.Corpus
    embeddings: str
    norm: bool
    d: int
    blocks: int
    heads: int
    layers: int
    length: int
    vocabulary: int
    steps: int
    batch: int
    lr: float
    candidates: list[int]
    reach: str
    windows: int
    sample: int
    seed: int
    arithmetic: Arithmetic

    @cached_property
    def characters(self) -> task.Characters:
        """Return the vocabulary."""
        return task.Characters(self.corpus.text, self.vocabulary)

    @cached_property
    def tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return training and validation tokens."""
        return task.tokens_of(self.corpus, self.characters)

    @cached_property
    def validation(self) -> torch.Tensor:
        """Return validation windows (count, length + 1)."""
        return task.windows(self.tokens[1], self.length + 1, self.windows)


# ---------------------------------------------------------------- target


def train_target(study: Study) -> tuple[LanguageModel, dict[str, float]]:
    """Train the target; return it in float64, and its losses in nats per character."""
    model = _target(study)
    optimizer = torch.optim.AdamW(model.parameters(), lr=study.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, study.lr, total_steps=study.steps + 1, pct_start=0.1)
    tokens, _ = study.tokens
    training = Training(
        model,
        lambda _, rows: _losses(model, rows).mean(),
        optimizer,
        list(model.parameters()),
        accumulate=study.arithmetic.accumulate,
        precision=study.arithmetic.resolved(tokens.device),
    )
    before = _losses(model, study.validation).mean().item()
    if study.reach == "bound":
        _bound_norms(model, study)
    bar, log, begun = progress(range(study.steps), "train the target"), curves("target"), time.perf_counter()
    for step in bar:
        rows = task.batch(tokens, study.batch, study.length + 1, seed=study.seed, step=step, name="hidden_lm")
        optimizer.zero_grad()
        loss = 0.0
        for value in training.losses(rows):
            training.backward(value)
            loss += value.item()
        if not math.isfinite(loss):
            raise BadConfig("lr", study.lr, f"smaller: the target's training diverged at step {step}")
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % max(1, study.steps // 100) == 0:
            rate = (step + 1) / (time.perf_counter() - begun)
            log({"train_loss": loss, "lr": optimizer.param_groups[0]["lr"], "steps_per_s": rate}, step + 1)
        schedule.step()
        if study.reach == "bound":
            _bound_norms(model, study)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
    model = model.double().requires_grad_(False)
    return model, {"val_loss_untrained": before, "val_loss_target": _losses(model, study.validation).mean().item()}


def _target(study: Study) -> LanguageModel:
    d, size = study.d, len(study.characters)
    tables = [
        Table(rows, columns, std=std, seed=study.seed, name=f"target/{name}", dtype=torch.float32)
        for name, rows, columns, std in (
            ("embedding", size, d, 0.2),
            ("positions", study.length, d, 0.1),
            ("head", d, size, 0.05),
        )
    ]
    inner = Transformer(
        d,
        study.blocks,
        study.heads,
        d // study.heads,
        [d] * (study.layers - 1),
        norm=study.norm,
        init="xavier_uniform",
        seed=study.seed,
        prefix="target/",
    )
    if not study.norm:
        with torch.no_grad():  # small branches at first, otherwise the residual stream grows through the blocks
            for block in _blocks(inner):
                block.attention.output.mul_(0.3)
                block.feed_forward.layers[-1].mul_(0.3)
    return LanguageModel(tables[0], tables[1], inner, tables[2])


def _blocks(model: Transformer) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _losses(model: LanguageModel, rows: torch.Tensor) -> torch.Tensor:
    """Compute the cross entropy of each next token, in nats: rows (count, T + 1) -> (count * T,)."""
    logits = model(rows[:, :-1])
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def _bound_norms(model: LanguageModel, study: Study) -> None:
    """Rescale every factor to spectral norm at most 1, as the theorem assumes, and hidden tables to entries <= 1."""
    for block in _blocks(model.transformer):
        for weight in [getattr(block.attention, role) for role in PROJECTIONS] + list(block.feed_forward.layers):
            norm = torch.linalg.matrix_norm(weight, ord=2, keepdim=True)
            weight.div_(norm.clamp_min(1.0))
    if study.embeddings == "random":
        for table in (model.embedding, model.positions, model.head):
            table.get_parameter("weight").clamp_(-1.0, 1.0)


# ---------------------------------------------------------------- tickets


def make_source(study: Study, candidates: int) -> LanguageModel:
    """Make a random language model with this many candidates per entry; `hide` fills in its tables."""
    d, size = study.d, len(study.characters)
    hidden, network = d * candidates, 2 * d * candidates
    inner = Transformer(
        d,
        study.blocks,
        study.heads,
        hidden,
        [network if i % 2 == 0 else d for i in range(2 * study.layers - 1)],
        norm=study.norm,
        seed=study.seed,
        prefix="transformer.",
    )
    shapes = {"embedding": (size, d), "positions": (study.length, d), "head": (d, size)}
    parts: dict[str, Table | Product] = {}
    for name, (rows, columns) in shapes.items():
        if study.embeddings == "random":
            inside = min(rows, columns) * candidates
            parts[name] = Product(rows, columns, inside, seed=study.seed, name=name, dtype=torch.float32)
        else:
            parts[name] = Table(rows, columns, std=1.0, seed=study.seed, name=name, dtype=torch.float32)
    return LanguageModel(parts["embedding"], parts["positions"], inner, parts["head"])


def hide(study: Study, target: LanguageModel) -> tuple[pd.DataFrame, dict[str, str], Ticket]:
    """Construct and measure a ticket for each number of candidates.

    Returns rows per (candidates, block), sample texts, and the ticket with the most candidates.
    """
    rows: list[dict[str, Any]] = []
    texts = {"target": _sample(study, target)}
    for candidates in progress(study.candidates, "hide"):
        source = make_source(study, candidates).double()
        _share_tables(target, source)
        if study.reach == "scale":
            record_scales(target, source)
        started = time.perf_counter()
        construction = language_model(target, source)
        seconds = time.perf_counter() - started
        found = pruned(source, construction.masks)
        rows += _measure(study, target, found, construction, candidates, seconds)
        texts[f"ticket, {candidates} candidates"] = _sample(study, found)
    return pd.DataFrame(rows), texts, construction.ticket()


@torch.no_grad()
def _share_tables(target: LanguageModel, source: LanguageModel) -> None:
    for name in ("embedding", "positions", "head"):
        table = getattr(source, name)
        if isinstance(table, Table):
            table.weight.copy_(getattr(target, name).matrix())


@torch.no_grad()
def _measure(
    study: Study,
    target: LanguageModel,
    found: LanguageModel,
    construction: TransformerConstruction,
    candidates: int,
    seconds: float,
) -> list[dict[str, Any]]:
    windows = study.validation
    inputs = windows[:, :-1]
    x, x_found = target.embed(inputs), found.embed(inputs)
    drift = _largest(x_found - x)
    certificate = certify(target.transformer, construction, x, target.causal, drift=drift)
    shared = {
        "candidates": candidates,
        "val_loss_target": _losses(target, windows).mean().item(),
        "val_loss_ticket": _losses(found, windows).mean().item(),
        "agreement": (target(inputs).argmax(-1) == found(inputs).argmax(-1)).double().mean().item(),
        "error_embedding": drift,
        "unreachable": construction.unreachable,
        "entries": construction.entries,
        "keep": construction.keep,
        "bits": construction.weights,
        "candidates_least": construction.candidates,
        "scales": _recorded_scales(found),
        "exact_weights": _is_exact(make_source(study, candidates), found, construction.masks),
        "seconds_construct": seconds,
    }
    rows = []
    for b, (block, hidden) in enumerate(zip(_blocks(target.transformer), _blocks(found.transformer), strict=True)):
        x, x_found = block(x, target.causal), hidden(x_found, target.causal)
        rows.append(
            shared
            | {
                "block": b + 1,
                "error": _largest(x_found - x),
                "norm": _largest(x),
                "certificate": certificate.blocks[b],
                "certificate_recursion": certificate.recursion[b],
            }
        )
    return rows


def _largest(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dim=-1).max())


def _recorded_scales(found: LanguageModel) -> int:
    """Count the recorded scales that differ from 1, which are the floats of the ticket."""
    return sum(int((buffer != 1).sum()) for name, buffer in found.named_buffers() if "scale" in name)


def _is_exact(fresh: LanguageModel, found: LanguageModel, masks: dict[str, torch.Tensor]) -> bool:
    """Tell whether pruned weights are 0, kept ones equal a fresh source bit for bit, and all random ones have masks."""
    random = {n for n, _ in fresh.named_parameters() if "blocks." in n or n.endswith((".first", ".second"))}
    return random == set(masks) and all(
        torch.equal(_bits(found.get_parameter(name)), _bits(fresh.get_parameter(name)) * mask)
        for name, mask in masks.items()
    )


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """Return the bits of weights as float32; weights that no float32 equals become -1, which no weight has."""
    single = weight.detach().float()
    return torch.where(single.to(weight.dtype) == weight, single.view(torch.int32), -1)


@torch.no_grad()
def _sample(study: Study, model: LanguageModel) -> str:
    """Generate text from the start of the first validation window, with the same random numbers for every model."""
    tokens = study.validation[0, : study.length // 4]
    uniforms = 0.5 + 0.5 * inits.uniform((study.sample,), 1.0, seed=study.seed, name="hidden_lm/sample").double()
    for uniform in uniforms:
        shares = torch.softmax(model(tokens[-study.length :])[-1], dim=-1).cumsum(-1)
        following = torch.searchsorted(shares, uniform).clamp(max=len(study.characters) - 1)
        tokens = torch.cat((tokens, following[None]))
    return study.characters.decode(tokens)


# ---------------------------------------------------------------- summary


def summarise(study: Study, table: pd.DataFrame, learned: dict[str, float]) -> dict[str, Any]:
    """Summarise the ticket with the most candidates, and the loss gap at each number of candidates."""
    last = table.iloc[-1]
    gap = table.drop_duplicates("candidates")
    keys = ("val_loss_ticket", "agreement", "certificate", "certificate_recursion", "error", "error_embedding")
    counts = ("bits", "scales", "candidates_least", "unreachable", "entries")
    return {
        **learned,
        **{key: float(last[key]) for key in (*keys, "keep", "seconds_construct")},
        **{key: int(last[key]) for key in counts},
        "loss_gap": float(last["val_loss_ticket"] - last["val_loss_target"]),
        "exact_weights": bool(table["exact_weights"].all()),
        "certificate_violations": int((~(table["error"] <= table["certificate"])).sum()),
        "tokens_compared": study.validation[:, 1:].numel(),
        "candidates": gap["candidates"].tolist(),
        "loss_gaps": (gap["val_loss_ticket"] - gap["val_loss_target"]).tolist(),
        "disagreements": (1.0 - gap["agreement"]).tolist(),
        "corpus": study.corpus.name,
        "corpus_digest": study.corpus.digest,
        "corpus_characters": len(study.corpus.text),
    }
