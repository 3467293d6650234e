"""Train random GPT-2s on a text: dense training, tickets, and controls of both.

`gpt2_prune.py`, `qk_scale.py` and `mixing.py` share this. Every training is `slth.fit` with warm-up, cosine schedule,
clipping, and batches that depend on seed and step alone. Both sides of a comparison get the best of the same grid.
"""

import contextlib
import hashlib
import logging
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config

import slth
from slth.experiments.lab import Arithmetic, curves, sharing
from slth.experiments.studies.gpt2.data import Data
from slth.experiments.studies.gpt2.pruning import Pruning
from slth.models import gpt2
from slth.search import CheckpointError, Fit, controls
from slth.search import Search as Method
from slth.tasks import text as texts
from slth.wrapping import effective, handle

_LOG = logging.getLogger(__name__)
MOST_WINDOWS, MOST_LOGITS = 32, 1 << 27  # most of validation at once; these logits take 0.5 GB


@dataclass(frozen=True)
class Training:
    """The training settings of a model, except lr and base_std, which the grid varies."""

    steps: int
    batch: int
    length: int
    warmup: float
    clip: float
    every: int
    seed: int
    device: torch.device
    folder: Path | None  # of checkpoints
    saves: int  # of each training
    arithmetic: Arithmetic
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW

    def batches(self, data: Data) -> Callable[[int], torch.Tensor]:
        """Return step -> windows (batch, length) of the training text, which is moved to the device once."""
        tokens = data.training.to(self.device)

        def batch(step: int) -> torch.Tensor:
            return texts.batch(tokens, self.batch, self.length, seed=self.seed, step=step, name="gpt2/batches")

        return batch

    def log(self, label: str) -> Callable[[dict[str, float], int], None]:
        """Return a function that logs the curves of a training for `slth.fit`, including tokens per second."""
        log = curves(label)

        def with_tokens(numbers: dict[str, float], step: int) -> None:
            rate = numbers.get("steps_per_s")
            log(numbers | ({} if rate is None else {"tokens_per_s": rate * self.batch * self.length}), step)

        return with_tokens

    def tokens_per_s(self, fit: Fit) -> float:
        """Return tokens per second, with evaluation, over the steps of this process; NaN if it did none."""
        done = self.steps - fit.resumed_at
        return done * self.batch * self.length / fit.seconds if done else math.nan


@dataclass(frozen=True)
class Source:
    """A random GPT-2 without its base std, which is chosen later."""

    config: GPT2Config
    init: str
    embedding_std: float
    position_std: float
    qk_scale: float | str
    seed: int

    def build(self, base_std: float) -> nn.Module:
        """Build the model with this standard deviation of the blocks' weights."""
        return gpt2.build(
            self.config,
            init=self.init,
            base_std=base_std,
            embedding_std=self.embedding_std,
            position_std=self.position_std,
            qk_scale=self.qk_scale,
            seed=self.seed,
        )


class Way(Protocol):
    """A way to train a model other than densely."""

    @property
    def method(self) -> Method | None:
        """The search method of scores; None: weights are trained."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Prepare the model in place, and return it."""


@dataclass(frozen=True)
class Trained:
    """A trained model, its measurements, and its grid point."""

    model: nn.Module
    fit: Fit
    lr: float
    base_std: float
    logit_std: float  # at init

    @property
    def val_loss(self) -> float:
        """The validation loss, in nats per token."""
        return self.fit.last["val_loss"]


# ---------------------------------------------------------------- training


def token_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Compute the mean cross entropy of the next token, in nats, over windows (count, length)."""
    logits = model(tokens).logits  # (count, length, vocabulary)
    return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def val_loss(model: nn.Module, windows: torch.Tensor) -> float:
    """Compute the loss in nats per token over windows (count, length), in eval mode and in batches of windows."""
    model.eval()
    windows, config = windows.to(next(model.parameters()).device), cast("GPT2Config", model.config)
    pieces = windows.split(windows_at_once(windows.shape[1], config.vocab_size))
    with torch.no_grad():
        losses = torch.stack([token_loss(model, piece) for piece in pieces]).tolist()
    return math.fsum(loss * len(piece) for loss, piece in zip(losses, pieces, strict=True)) / len(windows)


def windows_at_once(length: int, vocabulary: int) -> int:
    """Return the number of windows to evaluate at a time, so that their logits fit in memory."""
    return max(1, min(MOST_WINDOWS, MOST_LOGITS // (length * vocabulary)))


def train(
    model: nn.Module,
    data: Data,
    how: Training,
    lr: float,
    steps: int,
    label: str,
    method: Method | None = None,
    shared: Path | None = None,
) -> Fit:
    """Train all trainable parameters; measure the validation loss during training if `steps` is the full number.

    `shared` is a file from which a finished training is taken, or which is left for others; the folder of checkpoints
    is not used then.
    """
    checkpoint = shared or (how.folder / f"{label}.checkpoint" if how.folder else None)
    return slth.fit(
        model.to(how.device),
        how.batches(data),
        token_loss,
        steps,
        method=method,
        lr=lr,
        optimiser=partial(torch.optim.AdamW, lr=lr, weight_decay=0.0, betas=how.betas),
        warmup=how.warmup,
        clip=how.clip,
        evaluate=lambda m: {"val_loss": val_loss(m, data.validation)},
        every=how.every if steps == how.steps else 0,
        checkpoint=checkpoint,
        save_every=steps if shared else max(1, steps // how.saves),
        seed=how.seed,
        log=how.log(label),
        name=label,
        **vars(how.arithmetic),
    )


def trained(
    source: Source,
    search: Way | None,
    data: Data,
    how: Training,
    point: tuple[float, float],
    steps: int,
    label: str,
) -> Trained:
    """Train a model of the source at a grid point (lr, base_std): its ticket, or densely without a search."""
    lr, base_std = point
    model = source.build(base_std)
    logits = gpt2.logit_std(model.to(how.device), data.validation[:8].to(how.device))
    if search:
        search.wrap(model)
        fit = train(model, data, how, lr, steps, label, search.method)
    else:
        fit = _trained_once(model, source, data, how, point, steps, label)
    made = Trained(model, fit, lr, base_std, logits)
    if not math.isfinite(made.val_loss):
        raise FloatingPointError(f"{label}: the validation loss is {made.val_loss}: a lower learning rate may help")
    return made


def _trained_once(
    model: nn.Module, source: Source, data: Data, how: Training, point: tuple[float, float], steps: int, label: str
) -> Fit:
    """Train the source's model densely, or take the training from another run of the sweep that had the same.

    If the shared file cannot be written or read, train without it.
    """
    if sharing.FOLDER is not None and how.folder is None:  # in a sweep, without checkpoints of its own
        identity = dense_identity(source, data, how, point, steps)
        try:
            return _shared_fit(model, identity, data, how, point[0], steps, label)
        except (OSError, CheckpointError) as error:
            _LOG.warning("%s: trained without sharing: %s", label, error)
        model.load_state_dict(source.build(point[1]).state_dict())  # the training that failed may have changed it
    return train(model, data, how, point[0], steps, label)


def _shared_fit(
    model: nn.Module, identity: dict[str, Any], data: Data, how: Training, lr: float, steps: int, label: str
) -> Fit:
    with sharing.shared(identity) as file:
        fit = train(model, data, how, lr, steps, label, shared=file)
    if fit.resumed_at == steps:
        log = how.log(label)
        for row in fit.rows:
            log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
    return fit


def dense_identity(source: Source, data: Data, how: Training, point: tuple[float, float], steps: int) -> dict[str, Any]:
    """Return all that dense training depends on besides the code: the network, text, settings, and machine."""
    validation = data.validation.numpy()
    text = {"corpus": data.corpus.digest, "vocabulary": data.vocabulary, "training": len(data.training)}
    text |= {"validation": [*validation.shape, hashlib.sha256(validation.tobytes()).hexdigest()]}
    settings = {key: value for key, value in vars(how).items() if key not in ("folder", "saves")}
    network = vars(source) | {"config": source.config.to_dict()}
    machine = [platform.node(), torch.get_num_threads()]  # whose sums may have another last bit
    return {"network": network, "text": text, "how": settings, "point": point, "steps": steps, "machine": machine}


def best_of(
    source: Source,
    search: Way | None,
    data: Data,
    how: Training,
    grid: Sequence[tuple[float, float]],
    label: str,
    pilot_steps: int,
) -> tuple[Trained, list[dict[str, Any]]]:
    """Train at the grid point that is best in short pilots; also return rows of the pilots' losses.

    Points at which training diverges are excluded; if the best pilot's point diverges later, the next best is used.
    Raises FloatingPointError if all diverge.
    """
    rows: list[dict[str, Any]] = []
    names = {point: f"{label} lr={point[0]} std={point[1]}" for point in grid}
    for lr, base_std in grid if len(grid) > 1 else ():
        point = lr, base_std
        try:
            pilot = trained(source, search, data, how, point, pilot_steps, f"{names[point]} pilot")
            loss = pilot.val_loss
        except FloatingPointError:
            loss = math.inf
        rows.append({"stage": "grid", "lr": lr, "base_std": base_std, "step": pilot_steps, "val_loss": loss})
    losses = [row["val_loss"] for row in rows] or [0.0]
    for _, point in sorted((loss, point) for loss, point in zip(losses, grid, strict=True) if math.isfinite(loss)):
        try:
            best = trained(source, search, data, how, point, how.steps, names[point])
        except FloatingPointError:
            continue
        rows += [{"stage": "full", "lr": best.lr, "base_std": best.base_std} | row for row in best.fit.rows]
        return best, rows
    raise FloatingPointError(f"{label}: training diverged at every point of the grid; try lower learning rates")


def best_of_stds(
    source: Source,
    search: Way | None,
    data: Data,
    how: Training,
    stds: Sequence[tuple[float, float]],
    lrs: Sequence[float],
    label: str,
    pilot_steps: int,
) -> tuple[Source, Trained, list[dict[str, Any]]]:
    """Train over (base_std, position_std) in full; return the best source, its model, and all losses.

    Pilots choose the learning rate of each init, but inits are compared by full trainings, since they rank differently
    early in training: a mask cannot enlarge a weight, so small weights help tickets early and limit them later. Raises
    FloatingPointError if all diverge.
    """
    tried: list[tuple[Source, Trained, list[dict[str, Any]]]] = []
    for base_std, position_std in stds:
        there = replace(source, position_std=position_std)
        name = f"{label} positions={position_std}" if len(stds) > 1 else label
        with contextlib.suppress(FloatingPointError):
            tried.append((there, *best_of(there, search, data, how, [(lr, base_std) for lr in lrs], name, pilot_steps)))
    if not tried:
        raise FloatingPointError(f"{label}: training diverged at every point of the grid; try lower learning rates")
    chosen = min(range(len(tried)), key=lambda i: tried[i][1].val_loss)
    rows = [
        row | {"position_std": there.position_std} | ({} if i == chosen else {"stage": "grid"})
        for i, (there, _, made) in enumerate(tried)
        for row in made
    ]
    return *tried[chosen][:2], rows


# ---------------------------------------------------------------- controls


def sparse_training(
    source: Source, search: Pruning, data: Data, how: Training, dense: Trained, label: str
) -> tuple[nn.Module, Fit]:
    """Train the dense network's weights under a random plain mask with the ticket's keep, at the dense grid point."""
    model = search.plain.wrap(source.build(dense.base_std))
    controls.random_mask(model, how.seed + 1)
    controls.train_weights(model)
    return model, train(model, data, how, dense.lr, how.steps, label)


def control_losses(ticket: Trained, data: Data, seed: int) -> dict[str, float]:
    """Return validation losses of the ticket's mask shuffled, of a random mask, and of its mask on other weights.

    Afterwards ticket.model has its own mask and other weights.
    """
    wrapped = handle(ticket.model)
    masks = wrapped.multipliers()
    losses = {}
    for name, change in (("shuffled_mask", controls.shuffled_mask), ("random_mask", controls.random_mask)):
        wrapped.set_masks(masks)
        change(ticket.model, seed + 1)
        losses[name] = val_loss(ticket.model, data.validation)
    wrapped.set_masks(masks)
    controls.redrawn_weights(ticket.model, seed + 1)
    losses["redrawn_weights"] = val_loss(ticket.model, data.validation)
    return losses


def nonzero(model: nn.Module) -> int:
    """Count the nonzero parameters, of a wrapped model after masking."""
    try:
        shown = effective(model)
        learned = {id(t) for m in handle(model).weights.values() for t in (m.scores, m.factors)}
    except ValueError:
        shown, learned = {}, set()
    rest = (p for name, p in model.named_parameters() if id(p) not in learned and not name.endswith(".original"))
    return sum(int(t.count_nonzero()) for t in (*shown.values(), *rest))


def state_dict_bytes(model: nn.Module) -> int:
    """Return the bytes of the plain model in its own dtype, tied weights once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
