"""Baselines for a ticket as a file: other masks, smaller networks, quantised training, and rounding.

All are trained like the dense network: with its init, the same grid, and the same number of steps and batches. A row
has the bytes of the file, and the loss of the network that the file decodes to:

- ticket, and the masks of `slth.search.baselines` on random weights: the ticket's file, with entropy-coded masks.
- the same masks with weights trained under them: entropy-coded masks, and kept weights in float16.
- dense, and dense networks with the ticket's number of parameters or bytes: float16.
- binary and ternary: entropy-coded codes, and a float32 scale for each part of a matrix.
- rounding: the dense network at 1 to 8 bits, with entropy-coded codes, and a bfloat16 scale per 128 weights.

Everything else (biases, gains) is float16.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GPT2Config

import slth
from slth.experiments.studies.gpt2 import shipping
from slth.experiments.studies.gpt2.pruning import Pruning
from slth.experiments.studies.gpt2.training import (
    Source,
    Trained,
    Way,
    best_of_stds,
    nonzero,
    token_loss,
    val_loss,
)
from slth.masking.parameters import find
from slth.search import baselines, controls
from slth.wrapping import handle

if TYPE_CHECKING:
    from slth.experiments.studies.gpt2.prune import Study

NARROW = "dense_nonzero", "dense_bytes"
ROUNDING = "rounding"
NAMES = (*baselines.BASELINES, *NARROW, *baselines.QUANTISED, ROUNDING)
BITS = 1, 2, 3, 4, 8  # numbers of bits for rounding
_HALF = 2  # bytes of a float16
Row = dict[str, Any]


@dataclass(frozen=True)
class UnderMask:
    """Training weights under the mask of a baseline."""

    search: Pruning
    name: str
    batches: Callable[[int], torch.Tensor]
    seed: int
    method: None = None

    def masked(self, model: nn.Module) -> nn.Module:
        """Mask the model's random weights."""
        self.search.wrap(model)
        baselines.mask(model, self.name, self.batches, token_loss, self.seed)
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """Mask the model, with trainable weights."""
        controls.train_weights(self.masked(model))
        return model


@dataclass(frozen=True)
class Quantised:
    """Quantisation-aware training of the weights that a search would mask."""

    search: Pruning
    name: str
    method: None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        """Quantise the model, with trainable weights."""
        baselines.quantise(self.search.wrap(model), self.name)
        return model


def measure(study: Study, size: str, dense: Trained, plain: Source, tickets: Sequence[Row]) -> list[Row]:
    """Return rows of a size: the losses during training, and one row per file with the stage "shipped".

    dense: the dense network, from the source `plain`; tickets: the results of each ticket of this size.
    """
    with study.how.arithmetic.on(study.how.device):
        rows = [_ticket(study, size, ticket) for ticket in tickets]
        rows += _of_dense(study, size, dense, plain)
    for name in study.baselines:
        if name != ROUNDING:
            rows += _trained(study, size, name, tickets[0])
    return rows


def _ticket(study: Study, size: str, ticket: Row) -> Row:
    total = ticket["state_dict_bytes"] / 4  # float32
    about: Row = {"size": size, "run": "ticket", "qk_scale": ticket["qk_scale"], "nonzero": ticket["nonzero_ticket"]}
    about.update(ticket["ticket_point"])
    return about | _shipped(study, ticket["val_loss_ticket"], ticket["ticket_bytes"], total, "random")


def _of_dense(study: Study, size: str, dense: Trained, plain: Source) -> Iterator[Row]:
    """Yield the rows of the dense network in float16, and rounded if requested."""
    widths = [0, *BITS] if ROUNDING in study.baselines else [0]
    paths = [p.path for p in find(dense.model, study.search.patterns)]
    for width in widths:
        model = copy.deepcopy(dense.model)
        size_of = shipping.rounded(model, paths, width) if width else shipping.floats(model)
        about = {"size": size, "run": ROUNDING if width else "dense", "qk_scale": 1.0, "nonzero": nonzero(model)}
        yield about | _point(dense, plain) | _measured(study, model, size_of, "trained")


def _trained(study: Study, size: str, name: str, ticket: Row) -> list[Row]:
    """Train a baseline over the grid and return its rows; for a mask also those of the file with random weights.

    A baseline that diverges at all points has a row without bytes and with infinite loss.
    """
    source, data, how = study.source(size, study.dense_init, 1.0), study.data, study.how
    way: Way | None = None
    if name in baselines.BASELINES:
        way = UnderMask(study.search.plain, name, how.batches(data), how.seed + 1)
    elif name in baselines.QUANTISED:
        way = Quantised(study.search.plain, name)
    else:
        count = ticket["nonzero_ticket"] if name == "dense_nonzero" else ticket["ticket_bytes"] / _HALF
        source = replace(source, config=narrowed(source.config, count))
    about = {"size": size, "run": name, "qk_scale": 1.0}
    try:
        found = best_of_stds(source, way, data, how, study.stds, study.lrs, f"{size} {name}", study.pilot_steps)
    except FloatingPointError:
        return [about | _shipped(study, math.inf, math.nan, math.nan, "trained")]
    source, best, rows = found
    about |= _point(best, source)
    with how.arithmetic.on(how.device):
        shipped = []
        if isinstance(way, UnderMask):
            shipped.append(_with_random_weights(study, way, source, best))
        bytes_ = _file(best.model, name)
        shipped.append({"nonzero": nonzero(best.model)} | _measured(study, best.model, bytes_, "trained"))
    return [about | {"nonzero": shipped[-1]["nonzero"]} | row for row in rows] + [about | row for row in shipped]


def _with_random_weights(study: Study, way: UnderMask, source: Source, best: Trained) -> Row:
    model = way.masked(source.build(best.base_std).to(study.how.device))
    size = len(slth.Ticket.of(model).to_bytes())
    slth.unwrap(model)
    return {"nonzero": nonzero(model)} | _measured(study, model, size, "random")


def _file(model: nn.Module, name: str) -> int:
    """Return the bytes of a trained network's file, and replace the model by the plain one that the file decodes to."""
    if name in NARROW:
        return shipping.floats(model)
    masked = handle(model).weights
    parts = {path: each.parts for path, each in masked.items()}
    slth.unwrap(model)
    if name in baselines.BASELINES:
        return shipping.sparse(model, parts)
    views = {path: [part.of(model.get_parameter(path)) for part in own] for path, own in parts.items()}
    return shipping.levels(model, views, 2 if name == "binary" else 3)


def narrowed(config: GPT2Config, parameters: float) -> GPT2Config:
    """Return the config, with the same heads, at the width with the nearest number of parameters, at most its own."""
    widths = range(config.n_head, config.n_embd + 1, config.n_head)
    found = copy.deepcopy(config)
    found.n_embd = min(widths, key=lambda d: abs(parameters_of(config, d) - parameters))
    return found


def parameters_of(config: GPT2Config, d: int) -> int:
    """Return the number of parameters of a GPT-2 of this config at width d, with a tied head."""
    block = 12 * d * d + 13 * d  # four matrices of attention, two of 4 d; their biases, two normalisations
    return (config.vocab_size + config.n_positions) * d + config.n_layer * block + 2 * d


def _point(best: Trained, source: Source) -> Row:
    return {"lr": best.lr, "base_std": best.base_std, "position_std": source.position_std}


def _measured(study: Study, model: nn.Module, size: int, weights: str) -> Row:
    total = sum(p.numel() for p in model.parameters())
    return _shipped(study, val_loss(model, study.data.validation), size, total, weights)


def _shipped(study: Study, loss: float, size: float, parameters: float, weights: str) -> Row:
    return {
        "stage": "shipped",
        "step": study.how.steps,
        "weights": weights,
        "val_loss": loss,
        "bits_per_byte": loss / math.log(2) / study.data.bytes_per_token,
        "bytes": size,
        "bits_per_weight": 8 * size / parameters,
    }
