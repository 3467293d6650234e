"""The config of mixing.py, and the study that it defines."""

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
    """Read shares of weights, none twice."""
    values: list[float] = keys.DISTINCT.read(key, value)
    for one in values:
        if one > 1.0:
            raise BadConfig(key, one, "a finite number > 0.0 and <= 1.0")
    return values


def start_of_mixing(default: str, what: str) -> Any:
    """Declare a key for the initialisation of mixing tensors."""
    return lab.choice(default, mixing.STARTS, help=f"initialisation of tensors that mix heads or features, in {what}")


@dataclass(frozen=True)
class Config(GPT2Options):
    """The attentions to compare, and the measurements."""

    variants: tuple[str, ...] = lab.key(
        "all", Kind(mixing.read, lambda: mixing.ALLOWED), help="attentions to compare; mha is always among them"
    )
    equal: str = lab.choice("parameters", EQUAL, help="the size that all variants share with MHA")
    errors: bool = lab.flag(True, help="measure errors of tickets against a random MHA")
    losses: bool = lab.flag(True, help="measure validation losses of tickets and dense training in GPT-2")
    spikes: bool = lab.flag(False, help="measure loss spikes of dense training, for all variants")
    matrices: bool = lab.flag(
        True, help="measure attention matrices, for variants whose facts state that they have one"
    )
    seeds: int = lab.seeds(3, help="each has its own target, weights, scores and batches, the same for all variants")
    heads: int = lab.integer(4, least=1, help="number of heads of all attentions")
    kv_heads: int | None = lab.integer(
        None, least=1, help="key and value heads of gqa and gta; None: half of the heads, or 1 if heads is odd"
    )
    block: int = lab.integer(8, least=1, help="tokens per block of mhla")
    mixing_init: str = start_of_mixing("identity_plus_random", "tickets")
    dense_mixing_init: str = start_of_mixing("natural", "dense training")
    d_in: int = lab.integer(8, least=1, help="errors: width of input vectors")
    hidden: list[int] = lab.integers([4, 8, 16, 32, 64], least=2, help="errors: widths per head of MHA as a source")
    lengths: list[int] = lab.integers([16, 64], least=2, help="errors: tokens per input")
    target_hidden: int = lab.integer(4, least=1, help="errors: the target's width per head")
    target_norm: float = lab.number(2.0, above=0.0, help="errors: spectral norm of each factor of the target")
    source_init: str = lab.choice(
        "kaiming_normal",
        tuple(inits.INITS),
        help="errors: initialisation of sources for learned masks; constructions use theory",
    )
    construct: bool = lab.flag(True, help="errors: also construct tickets, where possible")
    error_keep: float = lab.number(0.5, above=0.0, most=1.0, help="errors: share of the weights that is kept")
    error_steps: int = lab.integer(1000, least=1, help="errors: training steps of the scores")
    error_lr: float = lab.number(0.03, above=0.0, most=1e3, help="errors: peak learning rate")
    error_batch: int = lab.integer(32, least=1, help="errors: inputs per step")
    size: str = keys.size("tiny*0.5")
    data: str = keys.data()
    vocabulary: str = keys.vocabulary()
    length: int = keys.length(64)
    keep: list[float] = lab.key(
        [0.3, 0.5, 0.7],
        Kind(_shares, lambda: "a number > 0 and <= 1 or a list of them, none twice"),
        help="shares of the masked weights that are kept",
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
    lr: list[float] = keys.rates(0.01, "for tickets; pilots choose one of several for each")
    dense_lr: list[float] = keys.rates(0.003, "for dense training; pilots choose one of several")
    pilot_steps: int = keys.pilot_steps(100)
    steps: int = keys.steps(1200)
    batch: int = keys.batch(16)
    warmup: float = keys.warmup()
    clip: float = keys.clip()
    windows: int = keys.windows()
    spike_lrs: list[float] = keys.rates([0.003, 0.01, 0.03, 0.1], "spikes are measured at each of them")
    spike_steps: int = lab.integer(300, least=1, help="spikes: steps of each training")
    processes: int = lab.free(lab.integer(1, least=1, help="parallel processes, each on one core"))
    checkpoints: str | None = keys.checkpoints("with the same config or a larger one")
    saves: int = keys.saves()
    device: str = keys.device()
    seed: int = lab.seed()
    # keys that select measurements and do not change any of them
    free = ("variants", "errors", "losses", "spikes", "seeds", "hidden", "lengths", "keep", "spike_lrs", "processes")

    def check_keys(self) -> None:
        """Check the selected measurements, seeds, heads, initialisation of mixing tensors, and size."""
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
        """Return the steps of each kind of training of scores."""
        return super().searches if self.losses else []

    @property
    def parts(self) -> Sequence[str]:
        """Return the names of the measurements."""
        return [job.label for job in self.study.jobs]

    @property
    def _kv_heads(self) -> int:
        default = self.heads // 2 if self.heads % 2 == 0 else 1
        return default if self.kv_heads is None else self.kv_heads

    def _network(self, vocabulary: int) -> GPT2Config:
        """Return the GPT-2 config with these heads. Raises BadConfig."""
        model = self.model(self.size, vocabulary)
        if model.n_embd % self.heads:
            raise BadConfig("heads", self.heads, f"a divisor of the model's width {model.n_embd}")
        model.n_head = self.heads
        if model.n_embd // self.heads < 2:
            raise BadConfig("heads", self.heads, f"at most half of the model's width {model.n_embd}")
        return model

    @cached_property
    def study(self) -> Study:
        """Return the study."""
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
