"""The config of mixing.py, and the study that it asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import GPT2Config

from slth.experiments import lab
from slth.experiments.lab import BadConfig
from slth.experiments.lab.methods import Method
from slth.experiments.lab.options import Kind
from slth.experiments.studies.approximation.learning import Learning
from slth.experiments.studies.gpt2 import keys
from slth.experiments.studies.gpt2.options import GPT2Options
from slth.experiments.studies.mixing import variants as mixing
from slth.experiments.studies.mixing.networks import require_drawn
from slth.experiments.studies.mixing.study import Study
from slth.weights import inits

EQUAL = ("parameters", "compute")
KINDS = ("errors", "losses", "spikes", "matrices")


def _shares(key: str, value: Any) -> list[float]:
    """Shares of weights, none twice."""
    values: list[float] = keys.DISTINCT.read(key, value)
    for one in values:
        if one > 1.0:
            raise BadConfig(key, one, "a finite number > 0.0 and <= 1.0")
    return values


def start_of_mixing(default: str, what: str) -> Any:
    """How what mixes begins."""
    return lab.choice(default, mixing.STARTS, help=f"of what mixes, in {what}")


@dataclass(frozen=True)
class Config(GPT2Options):
    """What is compared, what of it is measured, and how."""

    variants: tuple[str, ...] = lab.key(
        "all", Kind(mixing.read, lambda: mixing.ALLOWED), help="attentions to compare; mha is always among them"
    )
    equal: str = lab.choice("parameters", EQUAL, help="what is the same for all, MHA's at its own width")
    errors: bool = lab.flag(True, help="measure errors")
    losses: bool = lab.flag(True, help="measure losses")
    spikes: bool = lab.flag(False, help="measure spikes, of all variants")
    matrices: bool = lab.flag(True, help="measure matrices, of the variants whose facts state one")
    seeds: int = lab.seeds(3, help="each has its own target, weights, scores and batches, the same for all variants")
    heads: int = lab.integer(4, least=1, help="of all attentions")
    kv_heads: int | None = lab.integer(
        None, least=1, help="of gqa and gta; None: half of the heads, or one where they are odd"
    )
    block: int = lab.integer(8, least=1, help="tokens of a block of mhla")
    mixing_init: str = start_of_mixing("identity_plus_random", "tickets")
    dense_mixing_init: str = start_of_mixing("natural", "dense training")
    d_in: int = lab.integer(8, least=1, help="errors: width of an input vector")
    hidden: list[int] = lab.integers([4, 8, 16, 32, 64], least=2, help="errors: MHA's widths per head")
    lengths: list[int] = lab.integers([16, 64], least=2, help="errors: points in an input")
    target_hidden: int = lab.integer(4, least=1, help="errors: the target's width per head")
    target_norm: float = lab.number(2.0, above=0.0, help="errors: spectral norm of each of the target's factors")
    source_init: str = lab.choice(
        "kaiming_normal", tuple(inits.INITS), help="errors: of what is learned from; constructions take theory's"
    )
    construct: bool = lab.flag(True, help="errors: construct tickets, too, where it can be done")
    error_keep: float = lab.number(0.5, above=0.0, most=1.0, help="errors: share of the weights that is kept")
    error_steps: int = lab.integer(1000, least=1, help="errors: of training the scores")
    error_lr: float = lab.number(0.03, above=0.0, most=1e3, help="errors: the highest learning rate")
    error_batch: int = lab.integer(32, least=1, help="errors: inputs a step")
    size: str = keys.size("tiny*0.5")
    data: str = keys.data()
    vocabulary: str = keys.vocabulary()
    length: int = keys.length(64)
    keep: list[float] = lab.key(
        [0.3, 0.5, 0.7],
        Kind(_shares, lambda: "a number > 0 and <= 1 or a list of them, none twice"),
        help="share of the weights that is kept",
    )
    method: Method = keys.method()
    policy: str = keys.policy()
    schedule: str = keys.schedule()
    masked: str = keys.masked()
    scores: str = keys.scores()
    init: str = keys.init("signed", "tickets")
    base_std: float = keys.std(0.07, "the blocks in tickets")
    position_std: float = keys.std(0.12, "the positions in tickets")
    dense_init: str = keys.init("gpt2", "dense training")
    dense_base_std: float = keys.std(0.04, "the blocks in dense training")
    dense_position_std: float = keys.std(0.02, "the positions in dense training")
    embedding_std: float = keys.std(0.15, "the embeddings")
    lr: list[float] = keys.rates(0.01, "of tickets: each takes the best by its own pilots")
    dense_lr: list[float] = keys.rates(0.003, "of dense training, likewise")
    pilot_steps: int = keys.pilot_steps(100)
    steps: int = keys.steps(1200)
    batch: int = keys.batch(16)
    warmup: float = keys.warmup()
    clip: float = keys.clip()
    windows: int = keys.windows()
    spike_lrs: list[float] = keys.rates([0.003, 0.01, 0.03, 0.1], "spikes: at each of them")
    spike_steps: int = lab.integer(300, least=1, help="spikes: of each training")
    processes: int = lab.free(lab.integer(1, least=1, help="that work side by side, each on one core"))
    checkpoints: str | None = keys.checkpoints("or a larger one")
    saves: int = keys.saves()
    device: str = keys.device()
    seed: int = lab.seed()
    # keys that say which measurements there are, and nothing of what each is
    free = ("variants", "errors", "losses", "spikes", "seeds", "hidden", "lengths", "keep", "spike_lrs", "processes")

    def check_keys(self) -> None:
        """What is measured, seeds, heads, how what mixes begins, and the size."""
        if not any(getattr(self, kind) for kind in KINDS):
            left = "True where losses, spikes and matrices are False: nothing is left to measure"
            raise BadConfig("errors", False, left)
        lab.seeds_from(self.seed, self.seeds)
        if self.heads % self._kv_heads:
            raise BadConfig("kv_heads", self._kv_heads, f"a divisor of heads={self.heads}")
        mixing.require_start(self.variants, "mixing_init", self.mixing_init)
        mixing.require_start(self.variants, "dense_mixing_init", self.dense_mixing_init)
        self.require_pilots(self.lr, self.dense_lr)
        self._network(256)

    @property
    def searches(self) -> list[int]:
        """The steps of each kind of training in which scores are searched."""
        return super().searches if self.losses else []

    @property
    def parts(self) -> Sequence[str]:
        """The measurements."""
        return [job.label for job in self.study.jobs]

    @property
    def _kv_heads(self) -> int:
        default = self.heads // 2 if self.heads % 2 == 0 else 1
        return default if self.kv_heads is None else self.kv_heads

    def _network(self, vocabulary: int) -> GPT2Config:
        """The GPT-2, with so many heads, or BadConfig."""
        model = self.model(self.size, vocabulary)
        if model.n_embd % self.heads:
            raise BadConfig("heads", self.heads, f"a divisor of the model's width {model.n_embd}")
        model.n_head = self.heads
        if model.n_embd // self.heads < 2:
            raise BadConfig("heads", self.heads, f"at most half of the model's width {model.n_embd}")
        return model

    @cached_property
    def study(self) -> Study:
        """What is measured."""
        study = Study(
            variants=self.variants,
            seeds=lab.seeds_from(self.seed, self.seeds),
            keeps=sorted(self.keep),
            hidden=sorted(self.hidden),
            lengths=sorted(self.lengths),
            d=self.d_in,
            heads=self.heads,
            kv_heads=self._kv_heads,
            learning=Learning(self.error_keep, self.error_steps, self.error_lr, self.error_batch),
            model=self._network(self.tokens.vocabulary),
            search=self.search(max(self.keep)),
            how=self.training(self.steps),
            data=self.tokens,
            lrs={"ticket": self.lr, "dense": self.dense_lr},
            spike_lrs=sorted(self.spike_lrs),
            config=self,
        )
        if self.losses and self.masked == "all" and study.search.method.redraws:
            require_drawn(study)
        return study
