"""Which attention hides the best tickets: the measurements of mixing.py.

Every variant is set beside multi-head attention (MHA) of as many parameters, or of as much computing: the width of
its heads is solved for. A measurement is a :class:`Job`, done from its own seed and no other: so jobs can be stored
one by one, done on several processes, and what is compared is paired by seed (the same target, batches and dice).

A ticket's tensors that mix heads or features start as mixing_init says, by default at their paper's constant with a
random part added to it, which alone is masked; dense training starts as the papers do. The paper's lambda of
differential attention stays as it is drawn in a ticket. M_c of MHLA is clipped to be positive in dense training.
"""

import copy
import functools
import itertools
import json
import math
import multiprocessing
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from lab import BadConfig, as_bool, as_choice, as_float, as_int, as_int_list, progress, write
from learning import Examples, prune_wrapped, relative_error
from learning import Search as Learning
from pruning import (
    Data,
    Search,
    Training,
    check_checkpoints,
    claim_checkpoints,
    data_of,
    floats_of,
    search_of,
    sizes_of,
    token_loss,
    train,
    training_of,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from verdicts import BASE, MARGIN, caveat, correct, in_words, of_variant, spike_counts, with_differences

import slth
from slth import inits
from slth.attention import ATTENTIONS, MIXING_INITS, Attention, MultiHeadAttention, MultiHeadLinearAttention, mhla
from slth.construct import variants as construct
from slth.models import gpt2
from slth.models.gpt2_attention import InGPT2, with_attention
from slth.tasks import text as texts

LINEAR = "linear"  # MHLA whose M_c stays 1 everywhere: plain linear attention
SPIKES = (BASE, "kha_linear", "kha_mlp", "mea")
NORMED = ("mea", "differential")  # whose heads have a norm that can be left out
MATRICES = (BASE, "mhla", LINEAR)
EQUAL = ("parameters", "compute")
WHICH = ("variants", "errors", "losses", "spikes", "seeds", "hidden", "lengths", "keep", "spike_lrs", "processes")
TRAINING, VALIDATION, TEST = 1024, 64, 128  # inputs that scores are trained, masks are chosen and errors measured on
WINDOW, JUMP, SPREADS = 20, 0.2, 6.0  # of what a spike is
SPIKE = (
    f"a training loss that is above the median of the {WINDOW} before it by more than {JUMP} nat and by more than "
    f"{SPREADS:g} of their standard deviations, estimated from their median absolute deviation; neighbours count once"
)
RANK = 1e-3  # share of the largest singular value from where one counts


@dataclass(frozen=True)
class Job:
    """A measurement: what (error, ticket, dense, spikes or matrix), of which variant, from which seed, and at what."""

    what: str
    variant: str
    seed: int
    keep: float | None = None
    hidden: int | None = None
    length: int | None = None
    lr: float | None = None

    @property
    def label(self) -> str:
        """Its name, and that of its files."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return " ".join(str(v) if k in ("what", "variant") else f"{k}={v}" for k, v in given.items())


@dataclass(frozen=True)
class Study:
    """What is measured."""

    variants: tuple[str, ...]
    seeds: range
    keeps: list[float]
    hidden: list[int]
    lengths: list[int]
    d: int
    heads: int
    kv_heads: int
    learning: Learning
    model: gpt2.GPT2Config
    search: Search
    how: Training
    data: Data
    lrs: dict[str, list[float]]  # of tickets and of dense training
    spike_lrs: list[float]
    config: dict[str, Any]

    @property
    def jobs(self) -> list[Job]:
        """All that is to be done, seed by seed, so that what is done first is paired."""
        return [job for seed in self.seeds for job in self._of_seed(seed)]

    def _of_seed(self, seed: int) -> Iterator[Job]:
        config = self.config
        trained = (*self.variants, LINEAR) if config["matrices"] and "mhla" in self.variants else self.variants
        if config["errors"]:
            for hidden, length, variant in itertools.product(self.hidden, self.lengths, self.variants):
                yield Job("error", variant, seed, hidden=hidden, length=length)
        if config["losses"]:
            yield from (Job("dense", variant, seed) for variant in trained)
            for keep, variant in itertools.product(self.keeps, self.variants):
                yield Job("ticket", variant, seed, keep=keep)
        if config["spikes"]:
            for lr, variant in itertools.product(self.spike_lrs, (v for v in SPIKES if v in self.variants)):
                yield Job("spikes", variant, seed, lr=lr)
        if config["matrices"]:
            for length, variant in itertools.product(self.lengths, (v for v in MATRICES if v in trained)):
                yield Job("matrix", variant, seed, hidden=self.hidden[0], length=length)


# ---------------------------------------------------------------- what a config says


def study_of(config: dict[str, Any]) -> Study:
    """What a config says, the text read, or BadConfig."""
    for key in ("errors", "losses", "spikes", "matrices", "construct"):
        as_bool(config, key)
    if not any(config[key] for key in ("errors", "losses", "spikes", "matrices")):
        raise BadConfig("errors", False, "True where losses, spikes and matrices are False: nothing is left to measure")
    how = training_of(config | {"every": config["steps"]})
    keeps = floats_of(config, "keep")
    search = search_of(config | {"keep": max(keeps)})
    seeds = range(config["seed"], config["seed"] + as_int(config, "seeds", 1, 2**32 - config["seed"]))
    variants, heads = variants_of(config), as_int(config, "heads", 1)
    kv_heads = as_int(config, "kv_heads", 1)
    if heads % kv_heads:
        raise BadConfig("kv_heads", kv_heads, f"a divisor of heads={heads}")
    as_choice(config, "equal", EQUAL)
    for key in ("mixing_init", "dense_mixing_init"):
        as_choice(config, key, [name for name in MIXING_INITS if name in mhla.STARTS])
    for key in ("init", "dense_init"):
        as_choice(config, key, tuple(gpt2.INITS))
    as_choice(config, "source_init", tuple(inits.INITS))
    for key in ("embedding_std", "base_std", "dense_base_std", "position_std", "dense_position_std", "target_norm"):
        as_float(config, key, above=0.0)
    for key in ("target_hidden", "block", "processes", "pilot_steps", "spike_steps"):
        as_int(config, key, 1)
    lrs = {"ticket": floats_of(config, "lr"), "dense": floats_of(config, "dense_lr")}
    model_of(config, heads, 256)  # before a text is read
    hidden, lengths, d = as_int_list(config, "hidden", 2), as_int_list(config, "lengths", 2), as_int(config, "d_in", 1)
    learning = Learning(
        keep=as_float(config, "error_keep", above=0.0, maximum=1.0),
        steps=as_int(config, "error_steps", 1),
        lr=as_float(config, "error_lr", above=0.0, maximum=1e3),
        batch=as_int(config, "error_batch", 1),
    )
    spike_lrs = floats_of(config, "spike_lrs")
    data = data_of(config)
    model = model_of(config, heads, data.vocabulary)
    return Study(
        variants,
        seeds,
        sorted(keeps),
        sorted(hidden),
        sorted(lengths),
        d,
        heads,
        kv_heads,
        learning,
        model,
        search,
        how,
        data,
        lrs,
        sorted(spike_lrs),
        config,
    )


def variants_of(config: dict[str, Any]) -> tuple[str, ...]:
    """The variants in the order of ATTENTIONS, BASE always among them, or BadConfig."""
    given = config["variants"]
    names = [given] if isinstance(given, str) else given
    names = list(ATTENTIONS) if given == "all" else names
    for name in names if isinstance(names, list | tuple) else [None]:
        if not isinstance(name, str) or name not in ATTENTIONS:
            raise BadConfig("variants", name or given, f"all, or one or several of {', '.join(ATTENTIONS)}")
    return tuple(name for name in ATTENTIONS if name in names or name == BASE)


def model_of(config: dict[str, Any], heads: int, vocabulary: int) -> gpt2.GPT2Config:
    """The GPT-2, with so many heads, or BadConfig."""
    if not isinstance(config["size"], str):
        raise BadConfig("size", config["size"], "one size")
    (model,) = sizes_of(config, vocabulary).values()
    if model.n_embd % heads:
        raise BadConfig("heads", heads, f"a divisor of the model's width {model.n_embd}")
    model.n_head = heads
    if model.n_embd // heads < 2:
        raise BadConfig("heads", heads, f"at most half of the model's width {model.n_embd}")
    return model


def check(config: dict[str, Any]) -> None:
    """BadConfig for what cannot be run."""
    check_checkpoints(claimed(config), study_of(config).data)


def claim(study: Study) -> None:
    """Note in the folder of checkpoints which config they are of."""
    claim_checkpoints(claimed(study.config), study.data)


def claimed(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config each stored measurement depends on; which of them there are may change from run to run."""
    return {key: value for key, value in config.items() if key not in WHICH}


# ---------------------------------------------------------------- networks of equal size


def options_of(study: Study, variant: str, length: int, mixing_init: str) -> dict[str, Any]:
    """The options of a mechanism's own, for inputs of so many tokens."""
    if variant in ("gqa", "gta"):
        return {"kv_heads": study.kv_heads}
    if variant in ("mhla", LINEAR):
        mixing_init = "uniform" if variant == LINEAR else mixing_init
        return {"length": length, "block": min(study.config["block"], length), "mixing_init": mixing_init}
    return {"mixing_init": mixing_init} if variant in ("kha_linear", "kha_mlp", "mea", "talking_heads") else {}


def attention_of(variant: str) -> type[Attention]:
    """The class of a variant."""
    return ATTENTIONS["mhla" if variant == LINEAR else variant]


def width_of(study: Study, variant: str, d: int, hidden: int, length: int) -> int:
    """The width of a head with which a variant costs the nearest to what MHA does with `hidden`."""
    equal = study.config["equal"]

    @functools.cache
    def cost(variant: str, width: int) -> int:
        options = options_of(study, variant, length, "natural")
        module = attention_of(variant)(d, d, study.heads, width, causal=True, **options)
        return parameters(module) if equal == "parameters" else multiply_adds(module, length)

    step = 2 if variant == "differential" else 1  # it has halves
    widths = range(step, 8 * hidden + 1, step)
    wanted = cost(BASE, hidden)
    i = bisect_left(widths, wanted, key=lambda width: cost(variant, width))
    return min(widths[max(i - 1, 0) : i + 1], key=lambda width: abs(cost(variant, width) - wanted))


def parameters(module: nn.Module) -> int:
    """How many there are, tied ones once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def multiply_adds(module: Attention, length: int) -> int:
    """Those of matrix products while a causal attention decodes so many tokens, in its own factors, not merged."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module.step(torch.zeros(1, length, module.d_in), module.start())
    return int(counter.get_total_flops()) // 2


# ---------------------------------------------------------------- the error against a target


def measure_error(study: Study, job: Job) -> dict[str, Any]:
    """How far tickets of a variant, learned and where it can be constructed, are from a random MHA."""
    target = target_of(study, job.seed)
    training, validation, test = (
        examples(target, count, job, split)
        for split, count in (("training", TRAINING), ("validation", VALIDATION), ("test", TEST))
    )
    width = width_of(study, job.variant, study.d, job.hidden, job.length)
    mixing_init, init = study.config["mixing_init"], study.config["source_init"]
    options = options_of(study, job.variant, job.length, mixing_init)
    source = attention_of(job.variant)(study.d, study.d, study.heads, width, init=init, seed=job.seed, **options)
    learn(source, training, validation, study.learning, job.seed)
    with torch.no_grad():
        error = float(relative_error(source, test))
    found = {"error": error, "width": width, "parameters": parameters(source)}
    if study.config["construct"]:
        found["error_construct"] = constructed_error(study, job, width, target, test)
    return found


def target_of(study: Study, seed: int) -> MultiHeadAttention:
    """A random MHA whose factors have the spectral norm that the config says, float32."""
    width = study.config["target_hidden"]
    target = MultiHeadAttention(
        study.d, study.d, study.heads, width, init="xavier_uniform", seed=seed, prefix="target/"
    ).requires_grad_(False)
    for weight in target.parameters():
        weight.mul_(study.config["target_norm"] / torch.linalg.matrix_norm(weight, ord=2, keepdim=True))
    return target


@torch.no_grad()
def examples(target: MultiHeadAttention, count: int, job: Job, split: str) -> Examples:
    """Standard normal tokens (count, length, d), and what the target makes of them."""
    inputs = inits.normal((count, job.length, target.d_in), 1.0, seed=job.seed, name=f"mixing/{split}/{job.length}")
    return Examples(inputs, target(inputs))


def learn(source: Attention, training: Examples, validation: Examples, search: Learning, seed: int) -> None:
    """Prune a source, in place, by the mask of edge-popup that does best on validation inputs; mixing tensors, too."""
    slth.wrap(source, keep=search.keep, seed=seed)
    prune_wrapped(source, training, validation, search, every=max(1, search.steps // 50))


def constructed_error(study: Study, job: Job, width: int, target: MultiHeadAttention, test: Examples) -> float:
    """That of a ticket by subset sums, in float64 and without the norms that the theory cannot pass.

    NaN where the theory excludes the variant, or its heads are too narrow.
    """
    options = options_of(study, job.variant, job.length, study.config["mixing_init"])
    if job.variant in NORMED:
        options |= {"norm": False}
    source = attention_of(job.variant)(study.d, study.d, study.heads, width, seed=job.seed, **options).double()
    target = copy.deepcopy(target).double()
    for weight in (target.value, target.output):  # theory wants W_VO of norm 1, and relative errors know no scale
        weight.div_(study.config["target_norm"])
    try:
        ticket = construct.variant(target, source)
    except ValueError:
        return math.nan
    ticket.prune(source)
    inputs = test.inputs.double()
    with torch.no_grad():
        return float(relative_error(source, Examples(inputs, target(inputs))))


# ---------------------------------------------------------------- losses of language models


def network(study: Study, variant: str, seed: int, *, ticket: bool) -> tuple[nn.Module, int]:
    """A random GPT-2 with this attention, as a ticket's source or for dense training; and the width of its heads."""
    config, model, dense = study.config, study.model, "" if ticket else "dense_"
    init, base_std = config[f"{dense}init"], config[f"{dense}base_std"]
    plain = gpt2.build(
        model,
        init=init,
        base_std=base_std,
        embedding_std=config["embedding_std"],
        position_std=config[f"{dense}position_std"],
        seed=seed,
    )
    width = width_of(study, variant, model.n_embd, model.n_embd // model.n_head, study.how.length)
    options = options_of(study, variant, study.how.length, config[f"{dense}mixing_init"])
    name = "mhla" if variant == LINEAR else variant
    made = with_attention(plain, name, init=init, base_std=base_std, hidden=width, seed=seed, options=options)
    if not ticket:
        for inner in attentions(made):
            if variant == LINEAR:
                inner.mixing.requires_grad_(False)
            elif variant == "mhla" and options["mixing_init"] != "identity_plus_random":
                inner.register_forward_pre_hook(lambda inner, _: inner.clip_mixing_())
    return made, width


def attentions(model: nn.Module) -> list[Attention]:
    """Those of a network's blocks."""
    return [module.inner for module in model.modules() if isinstance(module, InGPT2)]


def measure_ticket(study: Study, job: Job) -> dict[str, Any]:
    """The validation loss of a variant's ticket."""
    search = replace(study.search, keep=job.keep, seed=job.seed)

    def make() -> nn.Module:
        return search.wrap(network(study, job.variant, job.seed, ticket=True)[0])

    model, width = network(study, job.variant, job.seed, ticket=True)
    return trained(study, job, make, search)[1] | {"width": width, "parameters": parameters(model)}


def measure_dense(study: Study, job: Job) -> dict[str, Any]:
    """The validation loss of a variant whose weights are trained, and what its attention matrices have become."""
    model, width = network(study, job.variant, job.seed, ticket=False)
    size = {"width": width, "parameters": parameters(model)}
    model, found = trained(study, job, lambda: network(study, job.variant, job.seed, ticket=False)[0], None)
    found |= size
    if study.config["matrices"] and job.variant in MATRICES:
        found["matrix"] = trained_matrices(model, study.data.validation[:4])
    return found


def trained(
    study: Study, job: Job, make: Callable[[], nn.Module], search: Search | None
) -> tuple[nn.Module, dict[str, Any]]:
    """A model at the learning rate whose pilot does best, and its loss: infinite where training diverges."""
    how = replace(study.how, seed=job.seed)
    kind, method = "ticket" if search else "dense", search.method if search else None

    def run(lr: float, steps: int, label: str) -> tuple[nn.Module, dict[str, Any]]:
        model = make()
        try:
            fit = train(model, study.data, how, lr, steps, label, method)
        except FloatingPointError:
            return model, {"val_loss": math.inf, "lr": lr}
        done = max(1, steps - fit.resumed_at)
        return model, {"val_loss": fit.last["val_loss"], "lr": lr, "seconds_per_step": fit.seconds / done}

    lrs, pilots = study.lrs[kind], study.config["pilot_steps"]
    lr = lrs[0]
    if len(lrs) > 1:
        lr = min(lrs, key=lambda lr: run(lr, pilots, f"{job.label} pilot lr={lr}")[1]["val_loss"])
    return run(lr, how.steps, job.label)


# ---------------------------------------------------------------- spikes


def measure_spikes(study: Study, job: Job) -> dict[str, Any]:
    """How often the training loss of a variant jumps in dense training at a learning rate."""
    model, width = network(study, job.variant, job.seed, ticket=False)
    how, losses = study.how, []

    def loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        value = token_loss(model, tokens)
        losses.append(float(value.detach()))
        return value

    def batches(step: int) -> torch.Tensor:
        drawn = texts.batch(study.data.training, how.batch, how.length, seed=job.seed, step=step, name="gpt2/batches")
        return drawn.to(how.device)

    diverged = False
    try:
        slth.fit(
            model.to(how.device),
            batches,
            loss,
            study.config["spike_steps"],
            lr=job.lr,
            warmup=how.warmup,
            clip=how.clip,
            seed=job.seed,
            name=job.label,
        )
    except FloatingPointError:
        diverged = True
    last = float(np.mean(losses[-WINDOW:]))
    found = {"spikes": count_spikes(losses), "diverged": diverged, "train_loss": last}
    return found | {"width": width, "parameters": parameters(model)}


def count_spikes(losses: list[float]) -> int:
    """The spikes, as SPIKE says, in the losses of a training, step by step; the first WINDOW are none."""
    high = [False] * len(losses)
    for step in range(WINDOW, len(losses)):
        before = np.array(losses[step - WINDOW : step])
        middle = np.median(before)
        spread = 1.4826 * np.median(np.abs(before - middle))
        high[step] = not losses[step] <= middle + max(JUMP, SPREADS * spread)  # not a number is one, too
    return sum(now and not before for before, now in itertools.pairwise([False, *high]))


# ---------------------------------------------------------------- attention matrices


def measure_matrix(study: Study, job: Job) -> dict[str, Any]:
    """What the matrices of a random attention, not causal, of standard normal tokens are like."""
    width = width_of(study, job.variant, study.d, job.hidden, job.length)
    options = options_of(study, job.variant, job.length, "natural")
    init = study.config["source_init"]
    module = attention_of(job.variant)(study.d, study.d, study.heads, width, init=init, seed=job.seed, **options)
    x = inits.normal((8, job.length, study.d), 1.0, seed=job.seed, name=f"mixing/matrix/{job.length}")
    return statistics(matrix_of(module, x)) | {"width": width, "parameters": parameters(module)}


@torch.no_grad()
def trained_matrices(model: nn.Module, tokens: torch.Tensor) -> dict[str, float]:
    """The means over the blocks of a network, at tokens (batch, T)."""
    seen: list[dict[str, float]] = []
    hooks = [
        inner.register_forward_pre_hook(lambda inner, given: seen.append(statistics(matrix_of(inner, given[0]))))
        for inner in attentions(model)
    ]
    try:
        model(tokens.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: float(np.mean([one[name] for one in seen])) for name in seen[0]}


@torch.no_grad()
def matrix_of(module: Attention, x: torch.Tensor) -> torch.Tensor:
    """What tokens (..., T, d) attend with: (..., heads, T, T)."""
    if isinstance(module, MultiHeadLinearAttention):
        return module.effective_matrix(x)
    x = x.unsqueeze(-3)
    logits = (x @ module.query) @ (x @ module.key).mT / math.sqrt(module.hidden)
    if module.causal:
        ahead = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        logits = logits.masked_fill(ahead, -math.inf)
    return logits.softmax(-1)


def statistics(matrix: torch.Tensor) -> dict[str, float]:
    """Of matrices (..., T, T) with rows that sum to 1, the means of:

    rank: singular values above RANK times the largest. effective_rank: exp of the entropy of the singular values as
    shares of their sum (Roy & Vetterli 2007). entropy: of a row, in nats.
    """
    matrix = matrix.double().cpu()
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum(-1, keepdim=True)
    rows = matrix.clamp_min(0.0)
    return {
        "rank": float((values > RANK * values[..., :1]).double().sum(-1).mean()),
        "effective_rank": float(torch.special.entr(shares).sum(-1).exp().mean()),
        "entropy": float(torch.special.entr(rows).sum(-1).mean()),
    }


# ---------------------------------------------------------------- doing the jobs

MEASURES: dict[str, Callable[[Study, Job], dict[str, Any]]] = {
    "error": measure_error,
    "ticket": measure_ticket,
    "dense": measure_dense,
    "spikes": measure_spikes,
    "matrix": measure_matrix,
}


def measure(study: Study) -> pd.DataFrame:
    """Do what is not stored yet, store it, and return all as a table: one row per measurement."""
    jobs = study.jobs
    done = {job: held for job in jobs if (held := _held(study, job)) is not None}
    left = [job for job in jobs if job not in done]
    for job, found in zip(left, progress(_all(study, left), "jobs", total=len(left)), strict=True):
        done[job] = found
    return table_of(study, {job: done[job] for job in jobs})


def _all(study: Study, jobs: list[Job]) -> Iterable[dict[str, Any]]:
    """What comes of the jobs, in their order."""
    if study.config["processes"] == 1 or len(jobs) < 2:
        return (_done(study, job) for job in jobs)
    return _on_processes(study, jobs)


def _on_processes(study: Study, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(study.config["processes"], context, _begin, (dict(study.config),)) as pool:
        try:
            yield from pool.map(_done_here, jobs)
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(config: dict[str, Any]) -> None:
    """Read the config in a process of its own."""
    global _study
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _study = study_of(config)


def _end_with_parent() -> None:
    """A run that was cut leaves no process behind."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _done_here(job: Job) -> dict[str, Any]:
    return _done(_study, job)


def _done(study: Study, job: Job) -> dict[str, Any]:
    """Measure, and store at once."""
    found = MEASURES[job.what](study, job)
    _keep(study, job, found)
    return found


def _held(study: Study, job: Job) -> dict[str, Any] | None:
    """A measurement that was stored, None where there is none."""
    folder = study.how.folder
    try:
        return dict(json.loads((folder / f"{job.label}.json").read_text())) if folder else None
    except FileNotFoundError:
        return None


def _keep(study: Study, job: Job, found: dict[str, Any]) -> None:
    """Store a measurement, and forget the checkpoints that led to it."""
    folder = study.how.folder
    if folder:
        write(folder, {f"{job.label}.json": json.dumps(found).encode()})
        for checkpoint in folder.glob(f"{job.label}*.checkpoint"):
            if checkpoint.name == f"{job.label}.checkpoint" or checkpoint.name.startswith(f"{job.label} pilot "):
                checkpoint.unlink(missing_ok=True)


def table_of(study: Study, done: dict[Job, dict[str, Any]]) -> pd.DataFrame:
    """All measurements, what: error, loss, spikes or matrix; hidden is the width of the MHA that is as large."""
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
    return with_differences(table, study.data.bigram, study.config["seed"])


def _at(study: Study) -> dict[str, int]:
    return {"hidden": study.model.n_embd // study.heads, "length": study.how.length}


def _of_dense(found: dict[str, Any]) -> dict[str, Any]:
    return {f"{key}_dense": found.get(key) for key in ("val_loss", "seconds_per_step", "lr")}


# ---------------------------------------------------------------- what it shows


def summarise(study: Study, table: pd.DataFrame) -> dict[str, Any]:
    """What the measurements say, in numbers and words, and where they come from."""
    losses, errors = (table[table["what"] == what] for what in ("loss", "error"))
    variants = {name: of_variant(name, losses, errors, study.config["seed"]) for name in study.variants}
    correct({name: found for name, found in variants.items() if name != BASE})
    summary: dict[str, Any] = {
        "variants": variants,
        "seeds": list(study.seeds),
        "steps": study.how.steps,
        "equal": study.config["equal"],
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
    if study.config["spikes"]:
        summary |= {"spike": SPIKE, "spikes": spike_counts(table[table["what"] == "spikes"])}
    if study.config["matrices"]:
        matrices = table[table["what"] == "matrix"].groupby(["where", "length", "variant"])
        means = matrices[["rank", "effective_rank", "entropy"]].mean().reset_index()
        summary["matrices"] = means.to_dict("records")
    return summary
