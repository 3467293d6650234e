"""The training loop: train scores or weights, measure, and save checkpoints.

The random numbers of a step follow from the seed and the step's index; the learning rate and keep follow from the index
and the number of steps. So a run that was killed and resumed ends with the same bits as an uninterrupted one.
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
#: parameters -> optimiser, whose learning rate is the peak of the schedule.
Optimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
_FLOOR = 0.01  # the final learning rate of the cosine, as a share of the peak
_LOG = logging.getLogger(__name__)


@dataclass
class Fit:
    """The measurements of a run.

    rows: each has step (the number of steps done) and either train_loss or the results of evaluate. seconds: wall time
    of this process, evaluation included. resumed_at: the step at which it resumed, 0 for a fresh start.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    resumed_at: int = 0

    @property
    def last(self) -> dict[str, float]:
        """The last evaluation, without its step; empty if there was none."""
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
    """Train the parameters of a model that have requires_grad: scores if it is wrapped, weights if it is not.

    Args:
        model: changed in place; in eval mode afterwards.
        batches: step -> batch, a pure function; or an iterable (a DataLoader), restarted when it ends. Its use of
            torch's generator, to shuffle or to augment, follows from seed and step.
        loss: (model, batch) -> scalar tensor that depends on the trained parameters.
        steps: number of optimiser steps, an int >= 1.
        method: the search, for a wrapped model; None: :class:`EdgePopup`. Must be None for a plain model.
        lr: the peak learning rate, > 0, of AdamW without weight decay. A linear warm-up over the share `warmup` of the
            steps leads to it, then a cosine down to a hundredth of it.
        optimiser: parameters -> optimiser of these, instead of AdamW; its learning rates are then the peaks.
        clip: the maximal norm of the gradient, or None.
        accumulate: an int >= 1, the number of pieces into which a batch's rows are split. The pieces go through the
            model one after another, and each step uses the sum of their gradients; `loss` must then be a mean over
            rows.
        precision: of forward and backward passes and of evaluation: "float32", "tf32" (products on a GPU round
            float32 to TF32), "bf16" (torch's autocast); "auto": bf16 on a GPU that supports it, else float32. Scores
            and the optimiser stay in float32.
        graph: whether steps on a GPU are recorded as a CUDA graph after the first ones and replayed. "auto": if
            possible; True: also, but with a warning if not, and a ValueError without a CUDA device.
        evaluate: model -> numbers by name; called without gradients in eval mode after every `every` steps (0: only at
            the end).
        checkpoint: a file to save to after every `save_every` steps (0: ten times a run) and at the end; a relative
            path is resolved when fit is called. If the file exists, the run resumes from it, bit for bit, and logs
            this; the model must then be as it was before the first step.
        seed: of torch's own generator (dropout, shuffling), an int.
        progress: show a progress bar on a terminal, if tqdm is installed. Resuming is logged to "slth.search.loop", as
            a warning (which Python shows by default) if progress is true, else as info.
        log: (numbers by name, steps done) -> anything, for an experiment tracker: `wandb.log`, `mlflow.log_metrics`
            (more in `slth.search.live`). About a hundred times a run it gets train_loss, lr (of the optimiser's first
            group), keep (of a wrapped model: the share of weights kept now) and steps_per_s (since the last call,
            evaluation included), and at each evaluation the results of evaluate. Numbers of the same step come in one
            call; those from before a checkpoint are not repeated. Results and checkpoints do not depend on it.
        name: the label of the progress bar, log lines and errors.

    Scalars of numpy or torch are accepted as ints or floats. Rows count the steps done, from 1; errors name the step
    in which they occurred, from 0.

    On a GPU, with torch's AdamW, Adam or SGD, nothing is read back from a step. A loss or gradient that is not finite
    is then noticed up to 32 steps late, but reported with its own step, and the optimiser changes nothing from that
    step on. A graph replays what `loss` and the model did when it was recorded: a number that they take from outside
    the batch and change between steps must be a tensor on the device, or use graph=False. Steps run without a graph,
    which is logged once, for batches of another layout or with other objects in them, a loss that reads values back or
    draws random numbers on the host, a compiled wrapped model, a search with its own gates, and if memory runs out.

    In a wrapped model, other parameters with requires_grad (of a layer added after wrap, an unfrozen bias) are trained
    densely and stored whole in a ticket: a logged warning names them.

    If `torch.distributed` is initialised (torchrun, accelerate), every process calls this with the same model, batches
    and settings, and trains on its rows of each batch (`slth.search.parallel`): `loss` must be a mean over rows.
    Scores, masks and results are the same in all processes. Only the first one reads and writes the checkpoint, shows
    the bar and calls `log`. An error in one process ends the others with a connection error; over NCCL, and in the
    backward pass under DDP, only when that process ends or if torchrun supervises them.

    Raises:
        ValueError: for values outside the above; a method that would never act in so many steps; a model with a method
            but no scores to train, or without trainable parameters; masked weights (or one of several tied places)
            that were replaced or removed after wrap; scores that hold NaN; a wrong result of `optimiser`, `loss` or
            `evaluate`.
        CheckpointError: with nothing changed, for a checkpoint that is damaged or was written by another search; the
            message lists the differences.
        OSError: if the checkpoint cannot be read or written.
        FloatingPointError: if the loss or its gradient is not finite.
        RuntimeError: if `log` raises an error.
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
            settings["processes"] = parallel.size()  # each has its own generator for dropout
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
        elif path:  # fail before training if the file cannot be written
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
    """The state that all steps of a run share."""

    training: Training
    search: Search | None
    way: steps_of.Step
    feed: Feed
    rates: list[float]  # peak learning rates of the optimiser's groups
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
        """Return the learning rate of each of the optimiser's groups."""
        return [rate * _factor(step, self.steps, self.warmup) for rate in self.rates]


def _held_by(step: int, rows: list[dict[str, float]], origin: str | None) -> dict[str, Any]:
    """The manifest of a checkpoint; the place of a user's own search is for information only."""
    return {"step": step, "rows": rows} | ({"method": origin} if origin else {})


@contextmanager
def _undone_by_errors(model: nn.Module) -> Iterator[None]:
    """If the block raises, restore the masks: their scores, buffers, gates and traits.

    Random weights, and other trained parameters, are not restored once a checkpoint has been loaded into them.
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
    """Read a checkpoint; None if the file does not exist."""
    files.clear_leftovers(path)
    return checkpoints.read(path, identity) if path.exists() else None


@torch.no_grad()
def _evaluated(training: Training, evaluate: Callable[[nn.Module], Mapping[str, float]]) -> dict[str, float]:
    training.model.eval()
    with arithmetic(training.precision, training.device):
        return arguments.measured(evaluate(training.model))


def _factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate at a step, as a share of the peak."""
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
    """The share of masked weights kept now, as {"keep": share}; {} for a plain model."""
    groups = _groups(model)
    return {"keep": handle(model).kept() / sum(group.size for group in groups)} if groups else {}


def _search(model: nn.Module, method: Search | None, steps: int) -> Search | None:
    arguments.check_method(method)
    groups = _groups(model)
    if any(masked.scores.requires_grad for group in groups for masked, _ in group.members):
        return (method or EdgePopup()).for_steps(steps)
    if method is not None:
        if not groups and (nearby := wrapped_nearby(model, "must be given instead")):
            raise ValueError(f"method={method}: {type(root(model)).__name__} {nearby}")
        raise ValueError(f"method={method}: {type(root(model)).__name__} has no scores to train, there must be none")
    return None


def _described(model: nn.Module, search: Search | None, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The search, optimiser, groups and kinds of masks as JSON, for comparison with a checkpoint."""
    options = [{k: repr(v) for k, v in group.items() if k != "params"} for group in optimiser.param_groups]
    groups = _groups(model)
    masked = handle(model).weights if groups else {}
    kinds = {path: str(weight.form.kind) for path, weight in masked.items() if not weight.form.prunes}
    described: dict[str, Any] = {
        "method": list(identity_of(search)) if search else None,
        "optimiser": [type(optimiser).__name__, options],
        "groups": [[group.name, group.keep] for group in groups],
    }
    return described | ({"kinds": kinds} if kinds else {})  # nothing if all only prune, as in older checkpoints
