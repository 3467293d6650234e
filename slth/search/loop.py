"""The one loop: train what has a gradient, scores or weights, measure, and never lose what was done.

Everything random in a step follows from the seed and the step's number, the learning rate and keep from the step and
the number of steps. So a run that was killed goes on from its checkpoint and ends with the same bits as one that was
not.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from slth import console, files
from slth.masking import Group
from slth.modules import check_module
from slth.numbers import as_float, as_int
from slth.resuming import Content
from slth.search import arguments, live, parallel
from slth.search import checkpoint as checkpoints
from slth.search import steps as steps_of
from slth.search.base import Search
from slth.search.batches import Feed, generator_seed
from slth.search.edge_popup import EdgePopup
from slth.search.methods import identity_of
from slth.search.origin import note_origin
from slth.search.precision import Precision, arithmetic, resolve
from slth.search.steps import Training
from slth.wrapping import check_there_still, handle, root, trained_densely, wrapped_nearby

Batch = TypeVar("Batch")
#: parameters -> optimiser, its learning rate the highest of the run.
Optimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
_FLOOR = 0.01  # of the learning rate, at the end of the cosine
_LOG = logging.getLogger(__name__)


@dataclass
class Fit:
    """What a search measured: `rows`, each with step (steps done) and either train_loss or what evaluate gave.

    seconds: of this process, evaluation included; resumed_at: the step it went on from, 0 for a fresh start.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    resumed_at: int = 0

    @property
    def last(self) -> dict[str, float]:
        """The last evaluation, without its step; empty where nothing was evaluated."""
        measured = [row for row in self.rows if "train_loss" not in row]
        return {name: value for name, value in measured[-1].items() if name != "step"} if measured else {}


@parallel.talking()
def fit(
    model: nn.Module,
    batches: Callable[[int], Batch] | Iterable[Batch],
    loss: Callable[[nn.Module, Batch], torch.Tensor],
    steps: int,
    *,
    method: Search | None = None,
    lr: float = 0.01,
    optimiser: Optimiser | None = None,
    warmup: float = 0.1,
    clip: float | None = 1.0,
    accumulate: int = 1,
    precision: Precision = "auto",
    graph: bool | Literal["auto"] = "auto",
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    every: int = 0,
    checkpoint: str | Path | None = None,
    save_every: int = 0,
    seed: int = 0,
    progress: bool = True,
    log: live.Log | None = None,
    name: str = "fit",
) -> Fit:
    """Train a model's parameters that have a gradient: the scores of a wrapped one, the weights of a plain one.

    Args:
        model: changed in place; in eval mode afterwards.
        batches: step -> batch, a pure function; or an iterable (a DataLoader), begun anew when it ends. What it draws
            from torch's generator, to shuffle or to augment, follows from seed and step.
        loss: (model, batch) -> scalar tensor that depends on what is trained.
        steps: optimiser steps, an int >= 1.
        method: the search, for a wrapped model; None: :class:`EdgePopup`. A plain model has none. One that would never
            act in so many steps is refused.
        lr: the highest learning rate, > 0, of AdamW without weight decay; a linear warm-up over the share `warmup` of
            the steps leads to it, a cosine from it to a hundredth.
        optimiser: parameters -> optimiser of these, instead of AdamW; its own learning rates then are the highest.
        clip: the largest norm of the gradient, or None.
        accumulate: an int >= 1: so many pieces of a batch's rows go through the model one after another, and one step
            is taken with the sum of their gradients. `loss` must be a mean over rows then.
        precision: of forward and backward passes and of evaluation: "float32", "tf32" (a GPU's products of rounded
            float32), "bf16" (torch's autocast); "auto": bf16 on a GPU that has it, else float32. Scores and the
            optimiser stay in float32.
        graph: whether a GPU's steps are recorded as a CUDA graph after the first ones and replayed. "auto": where they
            can be; True: the same, with a warning where they cannot, and a ValueError without a CUDA device.
        evaluate: model -> numbers by name; called without gradients in eval mode after every `every` steps (0: only at
            the end).
        checkpoint: a file to save to after every `save_every` steps (0: ten times a run) and at the end; a relative
            path is one from the folder that is current when fit is called. Where the file exists the run goes on from
            it, bit for bit, and says so; the model must then be as it was before the first step.
        seed: of torch's own generator (dropout, shuffling), an int.
        progress: show a bar, where standard error is a terminal and tqdm installed; name: its label. That a run goes on
            from a checkpoint is logged to "slth.search.loop", as a warning with progress, which Python shows by itself,
            else as info.
        log: (numbers by name, steps done) -> anything, called as numbers are measured, for a tracker of experiments:
            `wandb.log`, `mlflow.log_metrics` (more in `slth.search.live`). Some hundred times a run it gets train_loss,
            lr (of the optimiser's first group), keep (of a wrapped model: the share of weights that is kept now) and
            steps_per_s (since the last time, evaluation included), and at each evaluation what evaluate gave. Numbers
            of the same step come together, those of before a checkpoint do not come again. Results and checkpoints do
            not depend on it.

    A scalar of numpy or torch does for an int or a float. Rows count the steps done, from 1; errors name the step they
    came in, from 0.

    On a GPU, for AdamW, Adam and SGD of torch, nothing is read back from a step: what is not finite is noticed up to 32
    steps late, is still reported with the step at which it was, and the optimiser changes nothing from that one on. A
    graph holds what `loss` and the model did in Python when it was recorded: a number that they take from outside the
    batch and change between steps must be a tensor on the device, or graph=False. Batches of another layout, or with
    objects in them, a loss that reads something back or draws on the host, a wrapped model that was compiled, a search
    with gates of its own and a want of memory make steps run without a graph, which is logged once.

    On a wrapped model, what has requires_grad beside the scores (a layer that was added after wrap, a bias that was
    unfrozen) is trained densely and stored whole in a ticket: a logged warning names it. A layer in the place of one
    whose weight was masked is refused.

    Where `torch.distributed` has been initialised (torchrun, accelerate), every process calls this with the same model,
    batches and settings, and trains on its rows of each batch (`slth.search.parallel`): `loss` must be a mean over
    rows. Scores, masks and what is returned are the same in all; the first alone reads and writes the checkpoint and
    shows the bar and calls `log`. What goes wrong in one process alone ends the others by an error of their connection;
    over NCCL, and in the backward pass under DDP, only as that process ends or torchrun watches them.

    Raises ValueError for values outside the above, a model with a method but no scores to train, one without anything
    to train, one whose masked weights (or one of several places that were tied) were replaced or removed after wrap,
    scores that hold NaN, and for an optimiser, a loss or an evaluation that is not what its function must give;
    CheckpointError, with nothing changed, for a checkpoint that is damaged or of another search, which it says the
    differences to; OSError where it cannot be read or written; FloatingPointError where the loss or its gradient is not
    finite; RuntimeError where `log` raises an error.
    """
    started = time.perf_counter()
    parallel.check_whole(batches)
    check_module(model, "model")
    arguments.check_functions(batches, loss, evaluate, log)
    steps, every, save_every = as_int("steps", steps, 1), as_int("every", every, 0), as_int("save_every", save_every, 0)
    lr, warmup = as_float("lr", lr, "(0, inf)"), as_float("warmup", warmup, "[0, 1)", "a share of the steps")
    accumulate = as_int("accumulate", accumulate, 1)
    clip, seed = None if clip is None else as_float("clip", clip, "(0, inf)"), as_int("seed", seed)
    path = arguments.path_of(checkpoint)
    check_there_still(model)
    search = _search(model, method, steps)
    if search:
        handle(model).check()  # before a batch is drawn
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{type(root(model)).__name__}: nothing to train, no parameter has requires_grad")
    device = parameters[0].device
    chosen = resolve(precision, device)
    steps_of.check_graph(graph, device)
    make = partial(torch.optim.AdamW, lr=lr, weight_decay=0.0) if optimiser is None else optimiser
    built = arguments.optimiser_of(make, parameters, model)
    highest = [group["lr"] for group in built.param_groups]
    held, first = None, parallel.rank() == 0
    if path or parallel.size() > 1:
        settings: dict[str, Any] = {"steps": steps, "warmup": warmup, "clip": clip, "seed": seed}
        if chosen != "float32":
            settings["precision"] = chosen
        if accumulate > 1:
            settings["accumulate"] = accumulate
        if parallel.size() > 1:
            settings["processes"] = parallel.size()  # each of which has a generator of its own for dropout
        identity = checkpoints.Identity.of(root(model), settings | _described(model, search, built))
        parallel.check_same(identity.digest)
    if path:
        held = parallel.from_first(partial(_held, path, identity))
        save = partial(checkpoints.save, path, root(model), built, identity)
    if search and first and (dense := trained_densely(model)):
        _LOG.warning("%s: trained densely beside the scores, stored whole in a ticket: %s", name, ", ".join(dense))
    result, origin = Fit(), None
    with _undone_by_errors(model):
        if search:
            search.prepare(model)
            origin = note_origin(model, search)
        if held:
            rest = checkpoints.restore(held, root(model), built)
            result.resumed_at, result.rows = rest["step"], rest["rows"]
        elif path:  # what cannot be written is better known now
            parallel.from_first(partial(save, _held_by(0, [], origin)))
        if held and search:
            search.restore(model, result.resumed_at)
    if held and first:
        message = "%s: goes on at step %d of %d, from checkpoint %s"
        _LOG.log(logging.WARNING if progress else logging.INFO, message, name, result.resumed_at, steps, path)
    save_every = save_every or max(1, steps // 10)
    training = Training(model, loss, built, parameters, math.inf if clip is None else clip, accumulate, chosen)
    way = steps_of.choose(training, handle(model) if _groups(model) else None, graph, name)
    loop = _Loop(training, search, way, Feed(batches, seed), highest, steps, warmup, seed)
    tracker = live.Tracker(log if first else None, name, result.resumed_at)
    bar = console.bar(steps, result.resumed_at, name) if progress and first else console.NoBar()
    with bar, torch.random.fork_rng(devices=_devices(parameters)):
        for step in range(result.resumed_at, steps):
            value = loop.take(step)
            done = step + 1
            ends = done == steps
            measures = evaluate is not None and (ends or (every > 0 and done % every == 0))
            saves = path is not None and (ends or done % save_every == 0)
            notes = ends or done % max(1, steps // 100) == 0
            if notes or measures or saves:
                way.settle()
            numbers: dict[str, float] = {}
            if notes:
                numbers = {"train_loss": float(value), "lr": float(loop.rates_at(step)[0])} | _keep_of(model)
                result.rows.append({"step": done, "train_loss": float(value)})
                bar.set_postfix(loss=f"{float(value):.4g}", refresh=False)
            bar.update()
            if search and ends:
                search.finish(model)
            if evaluate and measures:
                measured = _evaluated(training, evaluate)
                result.rows.append({"step": done} | measured)
                numbers |= measured
            if saves:
                parallel.from_first(partial(save, _held_by(done, result.rows, origin)))
            tracker.send(numbers, done)
    model.eval()
    result.seconds = time.perf_counter() - started
    return result


@dataclass(frozen=True)
class _Loop:
    """What every step of a run has in common."""

    training: Training
    search: Search | None
    way: steps_of.Step
    feed: Feed
    rates: list[float]  # of the optimiser's groups, the highest of the run
    steps: int
    warmup: float
    seed: int

    def take(self, step: int) -> float | torch.Tensor:
        """Take a step and return its loss."""
        model, optimiser = self.training.model, self.training.optimiser
        batch = self.feed.at(step)
        torch.manual_seed(generator_seed(self.seed, f"step/{rank}" if (rank := parallel.rank()) else "step", step))
        self.way.set_rates(self.rates_at(step))
        if self.search:
            self.search.before_step(model, step, self.steps, optimiser)
        value = self.way.take(batch, step)
        if self.search:
            self.search.after_step(model, step, self.steps, optimiser)
        return value

    def rates_at(self, step: int) -> list[float]:
        """The learning rate of each of the optimiser's groups."""
        return [rate * _factor(step, self.steps, self.warmup) for rate in self.rates]


def _held_by(step: int, rows: list[dict[str, float]], origin: str | None) -> dict[str, Any]:
    """What a checkpoint says beside tensors; the place of a search of the user's own is information."""
    return {"step": step, "rows": rows} | ({"method": origin} if origin else {})


@contextmanager
def _undone_by_errors(model: nn.Module) -> Iterator[None]:
    """If the block raises, restore the masks: their scores, buffers, gates and traits.

    Not restored: random weights, and what is trained beside the scores, once a checkpoint has been read into them.
    """
    masks = [masked for group in _groups(model) for masked, _ in group.members]
    before = [(m, m.__dict__ | {"_buffers": dict(m._buffers)}, m.scores.detach().clone()) for m in masks]
    try:
        yield
    except BaseException:
        for masked, attributes, scores in before:
            masked.__dict__.clear()
            masked.__dict__.update(attributes)
            masked.scores.data.copy_(scores)
        raise


def _held(path: Path, identity: checkpoints.Identity) -> Content | None:
    """What a checkpoint holds, None where there is none."""
    files.clear_leftovers(path)
    return checkpoints.read(path, identity) if path.exists() else None


@torch.no_grad()
def _evaluated(training: Training, evaluate: Callable[[nn.Module], Mapping[str, float]]) -> dict[str, float]:
    training.model.eval()
    with arithmetic(training.precision, training.device):
        return arguments.measured(evaluate(training.model))


def _factor(step: int, steps: int, warmup: float) -> float:
    """The share of the highest learning rate at a step."""
    rising = max(1.0, warmup * steps)
    if step + 1 < rising:
        return (step + 1) / rising
    falling = (step + 1 - rising) / (steps - rising or 1.0)
    return _FLOOR + (1.0 - _FLOOR) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, falling)))


def _devices(parameters: list[nn.Parameter]) -> list[torch.device]:
    return sorted({p.device for p in parameters if p.device.type == "cuda"}, key=str)


def _groups(model: nn.Module) -> list[Group]:
    try:
        return handle(model).groups
    except ValueError:  # not wrapped
        return []


def _keep_of(model: nn.Module) -> dict[str, float]:
    """The share of the masked weights that is kept now; nothing of a plain model."""
    groups = _groups(model)
    return {"keep": handle(model).kept() / sum(group.size for group in groups)} if groups else {}


def _search(model: nn.Module, method: Search | None, steps: int) -> Search | None:
    if method is not None and not isinstance(method, Search):
        raise ValueError(f"method={method!r}: must be a search, as slth.search.IteRand()")
    groups = _groups(model)
    if any(masked.scores.requires_grad for group in groups for masked, _ in group.members):
        return (method or EdgePopup()).for_steps(steps)
    if method is not None:
        if not groups and (nearby := wrapped_nearby(model, "must be given instead")):
            raise ValueError(f"method={method}: {type(root(model)).__name__} {nearby}")
        raise ValueError(f"method={method}: {type(root(model)).__name__} has no scores to train, there must be none")
    return None


def _described(model: nn.Module, search: Search | None, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Search, optimiser, groups and kinds of masks, as JSON that differs where they do."""
    options = [{k: repr(v) for k, v in group.items() if k != "params"} for group in optimiser.param_groups]
    groups = _groups(model)
    masked = handle(model).weights if groups else {}
    kinds = {path: str(weight.form.kind) for path, weight in masked.items() if not weight.form.prunes}
    described: dict[str, Any] = {
        "method": list(identity_of(search)) if search else None,
        "optimiser": [type(optimiser).__name__, options],
        "groups": [[group.name, group.keep] for group in groups],
    }
    return described | ({"kinds": kinds} if kinds else {})  # checkpoints of before there were kinds go on
