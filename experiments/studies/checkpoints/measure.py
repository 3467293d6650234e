"""Hide a checkpoint in random networks, and measure the difference of the merged networks from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from slth import theory
from slth.construct import Code, ModuleConstruction, module
from slth.construct.networks.maps import linear_maps, recorded
from slth.experiments.lab import progress
from slth.experiments.studies.checkpoints import codes
from slth.experiments.studies.checkpoints.texts import Texts

PRODUCT = "product"  # the code of tickets with one subset sum per entry
_BATCH = 32


@dataclass(frozen=True)
class Study:
    """The settings of the measurement: a network, its texts, and the tickets and codes to compare.

    bits, codes: structured and other codes, and their bits per weight; scale: "matrix" or "row", the scales of
    structured codes; group: weights per scale in other codes; candidates, exact: tickets of products; ticket: whether
    tickets are packed, which generates the whole source.
    """

    network: nn.Module
    texts: Texts
    mask: int | None
    special: list[int]
    bits: list[int]
    codes: list[str]
    scale: Literal["matrix", "row"]
    group: int
    candidates: list[int]
    exact: bool
    ticket: bool
    embeddings: bool
    seed: int


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network for the texts.

    Attributes:
        loss: mean loss of masked or next tokens, in nats per token; NaN for a network without a vocabulary.
        likely: (positions,), the most likely token at each predicted position.
        attention: attention matrices (texts, heads, T, T) of each layer, by batch.
        sentences: (texts, d), means of the last hidden states.
    """

    loss: float
    likely: torch.Tensor
    attention: list[torch.Tensor]
    sentences: torch.Tensor


@dataclass(frozen=True)
class Measured:
    """One row per network, and the construction and ticket of the last one; ticket is None if not requested."""

    table: pd.DataFrame
    construction: ModuleConstruction
    ticket: bytes | None


def measure(study: Study) -> Measured:
    """Measure one row for each code and number of bits, then one for each ticket of products, the exact one last."""
    expected = outputs(study, study.network)
    rows = [_coded(study, expected, code, bits) for code, bits in progress(_codes(study), "code")]
    settings = [{"candidates": n} for n in study.candidates] + [{"exact": True}] * study.exact
    for setting in progress(settings, "hide"):
        row, construction, ticket = _hidden(study, expected, setting)
        rows.append({"code": PRODUCT, "exact": "exact" in setting} | row)
    return Measured(pd.DataFrame(rows), construction, ticket)


def _codes(study: Study) -> list[tuple[str, int]]:
    return [(code, bits) for bits in study.bits for code in study.codes if codes.has(code, bits)]


def _coded(study: Study, expected: Outputs, code: str, bits: int) -> dict[str, Any]:
    """Measure the row of a structured or other code."""
    if code == codes.OURS:
        row, _, _ = _hidden(study, expected, {"code": Code(bits, scale=study.scale)})
    else:
        started = time.perf_counter()
        made = codes.decoded(study.network, code, bits, study.group, embeddings=study.embeddings)
        row = {"seconds_construct": time.perf_counter() - started}
        row |= _errors(study, made.errors, made.bits) | _compared(expected, outputs(study, made.network))
    return {"code": code, "exact": False} | row


def _hidden(
    study: Study, expected: Outputs, setting: dict[str, Any]
) -> tuple[dict[str, Any], ModuleConstruction, bytes | None]:
    """Return the row of a ticket, its construction, and the ticket itself if requested."""
    started = time.perf_counter()
    construction = module(study.network, embeddings=study.embeddings, seed=study.seed, **setting)
    row: dict[str, Any] = {"seconds_construct": time.perf_counter() - started}
    ticket = construction.ticket().to_bytes() if study.ticket else None
    row |= _errors(study, construction.errors, construction.bits)
    row |= _compared(expected, outputs(study, construction.network()))
    row |= {
        "candidates": construction.candidates,
        "unreachable": construction.unreachable,
        "spectral_max": max(construction.certificates.values()),
        "same_weights": construction.exact,
        "bytes_ticket": len(ticket) if ticket else None,
    }
    return row, construction, ticket


@torch.no_grad()
def outputs(study: Study, network: nn.Module) -> Outputs:
    """Compute a network's outputs for the texts, in batches."""
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
    """Return (predicted positions, bool (texts, T), their tokens): masked tokens, or next ones."""
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
        "loss_gap": got.loss - expected.loss,
        "positions": len(expected.likely),
        "agreement": float((expected.likely == got.likely).double().mean()) if len(expected.likely) else float("nan"),
        "attention_difference_max": float(torch.stack(attention).max()) if attention else float("nan"),
        "cosine_min": min(1.0, float(cosines.min())),
    }


def _errors(study: Study, errors: Mapping[str, torch.Tensor], bits: int) -> dict[str, Any]:
    """Return the mean over linear maps of decibels above the limit at the bits of all, and the largest weight error."""
    targets = {each.name: each for each in linear_maps(study.network, tables=study.embeddings)}
    entries = sum(error.numel() for error in errors.values())
    above = []
    for name, error in errors.items():
        each = targets[name]
        power = each.matrix(study.network.get_parameter(each.parameter).detach()).double().square().mean()
        if error.any() and power:
            above.append(theory.above_limit(float(error.square().mean() / power), bits / entries))
    return {
        "bits_per_weight": bits / entries,
        "entries": entries,
        "error_max": max(float(error.abs().max()) for error in errors.values()),
        "above_limit_db": sum(above) / len(above) if above else float("nan"),
        "bytes_bits": -(-bits // 8),
        "bytes_recorded": sum(tensor.nbytes for tensor in recorded(study.network, list(targets.values())).values()),
    }
