"""What a comparison is: its settings, and its measurements one by one."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from slth.experiments.lab import BadConfig, as_bool, as_choice, as_float, as_int, as_int_list
from slth.experiments.studies.approximation.learning import Search as Learning
from slth.experiments.studies.gpt2.training import (
    Data,
    Search,
    Training,
    check_checkpoints,
    claim_checkpoints,
    data_of,
    floats_of,
    search_of,
    sizes_of,
    training_of,
)
from slth.experiments.studies.mixing.variants import LINEAR, STARTS, variants_of
from slth.experiments.studies.mixing.verdicts import BASE
from slth.models import gpt2
from slth.weights import inits

SPIKES = (BASE, "kha_linear", "kha_mlp", "mea")
MATRICES = (BASE, "mhla", LINEAR)
EQUAL = ("parameters", "compute")
WHICH = ("variants", "errors", "losses", "spikes", "seeds", "hidden", "lengths", "keep", "spike_lrs", "processes")


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
        """Its name, and that of its files; the place of a variant of the user's own is quoted as in a URL."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return " ".join(quote(v, safe=":") if k in ("what", "variant") else f"{k}={v}" for k, v in given.items())


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
    default = heads // 2 if heads % 2 == 0 else 1
    kv_heads = default if config["kv_heads"] is None else as_int(config, "kv_heads", 1)
    if heads % kv_heads:
        raise BadConfig("kv_heads", kv_heads, f"a divisor of heads={heads}")
    as_choice(config, "equal", EQUAL)
    for key in ("mixing_init", "dense_mixing_init"):
        as_choice(config, key, STARTS)
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
    check_checkpoints(claimed(config), study_of(config).data, free=WHICH)


def claim(study: Study) -> None:
    """Note in the folder of checkpoints which config they are of."""
    claim_checkpoints(claimed(study.config), study.data)


def claimed(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config each stored measurement depends on; which of them there are may change from run to run."""
    return {key: value for key, value in config.items() if key not in WHICH}
