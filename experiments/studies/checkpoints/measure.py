"""A checkpoint hidden in random networks, and how far the merged networks are from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from slth.construct import ModuleConstruction, module
from slth.experiments.lab import progress
from slth.experiments.studies.checkpoints.texts import Texts

_BATCH = 32


@dataclass(frozen=True)
class Study:
    """A network, what it reads, and the tickets to make of it: numbers of candidates, and whether an exact one."""

    network: nn.Module
    texts: Texts
    mask: int | None
    special: list[int]
    candidates: list[int]
    exact: bool
    embeddings: bool
    seed: int


@dataclass(frozen=True)
class Outputs:
    """What a network makes of the texts.

    loss: mean, in nats, of masked tokens, or of next ones, NaN for a network without a vocabulary; likely (positions,):
    the most likely token where it is asked for; attention: matrices (texts, heads, T, T) of each layer by batch;
    sentences (texts, d): mean of the last hidden states.
    """

    loss: float
    likely: torch.Tensor
    attention: list[torch.Tensor]
    sentences: torch.Tensor


def measure(study: Study) -> tuple[pd.DataFrame, ModuleConstruction]:
    """A row for each ticket, the exact one last, and the construction of the last."""
    expected = outputs(study, study.network)
    rows, settings = [], [{"candidates": n} for n in study.candidates] + [{"exact": True}] * study.exact
    for setting in progress(settings, "hide"):
        started = time.perf_counter()
        construction = module(study.network, embeddings=study.embeddings, seed=study.seed, **setting)
        seconds = time.perf_counter() - started
        rows.append(_row(construction, setting) | _compared(expected, outputs(study, construction.network())))
        rows[-1]["seconds_construct"] = seconds
    return pd.DataFrame(rows), construction


@torch.no_grad()
def outputs(study: Study, network: nn.Module) -> Outputs:
    """What a network makes of the texts, in batches."""
    tokens, present, asked = study.texts.tokens, study.texts.present, None
    if study.mask is not None:
        tokens, asked = study.texts.masked(study.special, study.mask, study.seed)
    losses, likely, attention, sentences = [], [], [], []
    for rows in torch.arange(len(tokens)).split(_BATCH):
        seen = present[rows]
        out = network(
            input_ids=tokens[rows], attention_mask=seen.long(), output_attentions=True, output_hidden_states=True
        )
        pairs = seen[:, None, :, None] & seen[:, None, None, :]
        attention += [torch.where(pairs, matrix, 0.0) for matrix in out.attentions]
        sentences.append((out.hidden_states[-1] * seen[..., None]).sum(1) / seen.sum(1, keepdim=True))
        logits = getattr(out, "logits", None)
        if logits is not None:
            there, truth = _asked(study.texts.tokens[rows], seen, None if asked is None else asked[rows])
            losses.append(cross_entropy(logits[there], truth, reduction="none"))
            likely.append(logits[there].argmax(-1))
    none = torch.empty(0, dtype=torch.int64)
    loss = float(torch.cat(losses).double().mean()) if losses else float("nan")
    return Outputs(loss, torch.cat(likely) if likely else none, attention, torch.cat(sentences))


def _asked(
    tokens: torch.Tensor, present: torch.Tensor, masked: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(where a token is asked for, bool (texts, T), the tokens): masked ones, or those that follow."""
    if masked is not None:
        return masked, tokens[masked]
    there = torch.zeros_like(present)
    there[:, :-1] = present[:, 1:]
    return there, tokens.roll(-1, 1)[there]


def _compared(expected: Outputs, got: Outputs) -> dict[str, Any]:
    attention = [(a - b).abs().max() for a, b in zip(expected.attention, got.attention, strict=True)]
    cosines = cosine_similarity(expected.sentences.double(), got.sentences.double(), dim=-1)
    return {
        "loss_target": expected.loss,
        "loss_ticket": got.loss,
        "positions": len(expected.likely),
        "agreement": float((expected.likely == got.likely).double().mean()) if len(expected.likely) else float("nan"),
        "attention_difference_max": float(torch.stack(attention).max()) if attention else float("nan"),
        "cosine_min": min(1.0, float(cosines.min())),
    }


def _row(construction: ModuleConstruction, setting: Mapping[str, Any]) -> dict[str, Any]:
    largest = max(float(error.abs().max()) for error in construction.errors.values())
    return {
        "candidates": construction.candidates,
        "exact": bool(setting.get("exact", False)),
        "bits_per_weight": construction.bits / construction.entries,
        "entries": construction.entries,
        "unreachable": construction.unreachable,
        "error_max": largest,
        "spectral_max": max(construction.certificates.values()),
        "same_weights": construction.exact,
        "bytes_bits": construction.bits // 8,
        "bytes_recorded": construction.recorded_bytes,
    }
