"""Find a strong lottery ticket in a random GPT-2, and compare it with dense training and controls.

Scores are trained, and weights stay random. Dense training of the same network has the same steps, batches and grid of
learning rates and init scales. Controls are a random mask, the ticket's mask shuffled or on other weights, weights
trained under a random mask, and unigram and bigram models. The ticket is stored as ticket.safetensors.

The default has the masks and the optimiser of the best recipe of 1 bit a weight that recipe.py found: blocks are
pruned, and embeddings are kept with signs and levels. `with plain` prunes all weights alike, which all search methods
support.

`with all_baselines` compares the loss and file size of the ticket with those of other masks (random, magnitude, SNIP,
GraSP, SynFlow; with random and trained weights), smaller dense networks, binary and ternary training, and rounding.

With several sizes or scales of query and key, the loss is drawn against the number of nonzero parameters (Figure 7 of
arXiv 2511.04217). With a folder `checkpoints`, an interrupted run can be resumed.
"""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from slth import plots
from slth.experiments import lab
from slth.experiments.lab import BadConfig
from slth.experiments.lab.methods import Method
from slth.experiments.studies.gpt2 import keys
from slth.experiments.studies.gpt2.beside import NAMES as BASELINES
from slth.experiments.studies.gpt2.options import FORMER, GPT2Options
from slth.experiments.studies.gpt2.parts import Scoring
from slth.experiments.studies.gpt2.prune import Study, measure, shipped, summarise
from slth.experiments.studies.gpt2.pruning import Masks
from slth.masking.kinds import Kind


@dataclass(frozen=True)
class Config(GPT2Options):
    """The models, the search, the grid of ticket and dense training, and the training."""

    size: str | list[str] = keys.sizes("tiny")
    data: str = keys.data()
    vocabulary: str = keys.vocabulary()
    length: int = keys.length(128)
    method: Method = keys.method()
    keep: float = keys.keep(0.33)
    policy: str = keys.policy()
    schedule: str = keys.schedule()
    masked: str = keys.masked()
    kind: Kind = keys.kind()
    scale: str | None = keys.scale()
    embedding_kind: Kind | None = keys.embedding_kind("signed(levels=2)")
    embedding_keep: float | None = keys.embedding_keep(0.8)
    scores: str = keys.scores()
    init: str = keys.init("signed", "the ticket's source")
    dense_init: str = keys.init("gpt2", "the dense network")
    qk_scale: list[float | str] = keys.qk_scale(1.0)
    embedding_std: float = keys.std(0.12, "the embeddings")
    base_std: list[float] = lab.key(
        [0.07, 0.11],
        keys.POSITIVE,
        help="standard deviations of the blocks' weights, which ticket and dense training choose from",
    )
    position_std: list[float] | None = lab.key(
        None,
        keys.POSITIVE,
        help="standard deviation of the position embeddings, one for all or one per base_std; None: 0.02 if base_std "
        "is below 0.055, else 0.12",
    )
    lr: list[float] = keys.rates([0.0045, 0.006], "ticket and dense training choose from these")
    pilot_steps: int = lab.integer(
        60, least=1, help="steps of the pilots at every point of the grid, which choose the learning rate of each init"
    )
    steps: int = lab.integer(400, least=1, help="training steps of each init at its chosen learning rate")
    batch: int = keys.batch(16)
    warmup: float = keys.warmup()
    clip: float = keys.clip()
    beta1: float = keys.beta1(0.8)
    beta2: float = keys.beta2(0.99)
    every: int = lab.integer(50, least=1, help="steps between evaluations of the validation loss")
    windows: int = keys.windows()
    stride: int | None = keys.stride()
    documents: str = keys.documents()
    controls: bool = lab.flag(
        True,
        help="also evaluate a ticket's mask shuffled and on other weights, a random mask, and weights trained under it",
    )
    baselines: list[str] | None = lab.choices(
        None, BASELINES, help="baselines for the ticket's file size and loss: see studies/gpt2/beside.py"
    )
    checkpoints: str | None = keys.checkpoints()
    saves: int = keys.saves()
    device: str = keys.device()
    seed: int = lab.seed()
    free = ("stride", "documents", "baselines")  # training does not depend on them

    def check_keys(self) -> None:
        """Check sizes, and the pairs of standard deviations."""
        _ = self.stds
        if self.stride is not None and self.stride > self.length:
            raise BadConfig("stride", self.stride, f"at most length={self.length}")
        self.require_masks(*self.models(self.size, 256).values())

    @property
    def masks(self) -> Masks:
        """The masks of blocks and embeddings."""
        return Masks(self.kind, self.scale, self.embedding_kind, self.embedding_keep)

    @property
    def stds(self) -> list[tuple[float, float]]:
        """Return the pairs (base_std, position_std) of the grid. Raises BadConfig."""
        base, position = self.base_std, self.position_std
        if position is None:
            position = [0.02 if std < 0.055 else 0.12 for std in base]
        if len(position) == 1:
            position = position * len(base)
        if len(position) != len(base):
            allowed = f"one number > 0, or {len(base)} of them as base_std has"
            raise BadConfig("position_std", self.values()["position_std"], allowed)
        pairs = list(zip(base, position, strict=True))
        if len(set(pairs)) < len(pairs):
            allowed = "a number > 0 or a list of them, no pair with position_std twice"
            raise BadConfig("base_std", self.values()["base_std"], allowed)
        return pairs

    @cached_property
    def study(self) -> Study:
        """Return the study."""
        return Study(
            sizes=self.models(self.size, self.tokens.vocabulary),
            init=self.init,
            dense_init=self.dense_init,
            qk_scales=self.qk_scale,
            embedding_std=self.embedding_std,
            search=self.search(self.keep),
            how=replace(self.training(self.every), betas=(self.beta1, self.beta2)),
            stds=self.stds,
            lrs=self.lr,
            pilot_steps=self.pilot_steps,
            data=self.tokens,
            scoring=self.scoring,
            controls=self.controls,
            baselines=self.baselines or [],
        )

    @property
    def scoring(self) -> Scoring:
        """Return how the text's own validation and test parts are scored. Raises BadConfig."""
        scoring = Scoring(self.length, self.stride or max(1, self.length // 2), self.documents)
        scoring.check(self.tokens)
        if not self.tokens.parts:
            self.require_defaults(["stride", "documents"], "where the text has no validation and test parts of its own")
        return scoring


ex = lab.experiment("gpt2_prune", Config)
#: Every weight is pruned or kept as it is, which all search methods support; Adam's default betas.
PLAIN = FORMER
SMOKE: dict[str, Any] = {"length": 32, "steps": 20, "pilot_steps": 4, "batch": 4, "every": 5, "windows": 8}
#: The networks and masks of the paper's figure 7.
FIGURE7: dict[str, Any] = {
    **PLAIN,
    "keep": 0.3,
    "init": "gpt2",
    "qk_scale": [1.0, "theory"],
    "embedding_std": 0.02,
    "base_std": 0.02,
    "position_std": 0.02,
}
ex.add_named_config("plain", keep=0.5, embedding_std=0.15, base_std=[0.04, 0.07], lr=[0.003, 0.0045], **PLAIN)
ex.add_named_config("smoke", size="tiny*0.25", lr=[0.003, 0.03], base_std=0.05, position_std=0.05, **SMOKE)
ex.add_named_config("sizes", size=["tiny*0.25", "tiny*0.5", "tiny", "tiny*1.5"], qk_scale=[1.0, "theory"])
ex.add_named_config(
    "paper_figure7",  # as far as the paper tells; it does not state what is masked and the batch size
    **FIGURE7,
    size=["mini*0.5", "mini", "small", "medium", "medium*2"],
    data="wikitext-103",
    vocabulary="bpe:50257",
    length=512,
    lr=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    pilot_steps=500,
    steps=11_350,
    batch=64,
    every=500,
    windows=256,
)
ex.add_named_config("all_baselines", baselines=[*BASELINES])
# Figure 7 on one CPU core, some 12 minutes per seed. Several seeds in parallel:
# python experiments/sweep.py with experiment=gpt2_prune named=cpu_figure7 grid.seed=[0,1,2]
ex.add_named_config(
    "cpu_figure7",
    **FIGURE7,
    size=["tiny", "mini*0.5"],
    lr=[0.003, 0.01],
    pilot_steps=30,
    steps=200,
    batch=8,
    every=50,
    controls=False,
)
# Figure 7 within 8 minutes on one H100. A step of 16,384 tokens took 57 ms dense and 79 ms masked for mini, 125 and
# 187 ms for small, on an H200 with steps launched from Python one by one (bf16; with the paper's vocabulary, which is
# slower than bytes). With mini as an upper bound for its half, a step of all nine trainings takes 2 * (57 + 2 * 79) +
# 125 + 2 * 187 = 929 ms: 223 s for 240 steps, 46 s for pilots of 25 steps at two rates. Reading the text, building,
# storing and drawing take some 90 s. The sum is 359 s, three quarters of the 8 minutes.
ex.add_named_config(
    "gpu_figure7",
    **FIGURE7,
    size=["mini*0.5", "mini", "small"],
    data="installed",
    length=512,
    lr=[0.001, 0.006],
    pilot_steps=25,
    steps=240,
    batch=32,
    every=60,
    controls=False,
    saves=1,
)


@ex.main
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Train, search and compare."""
    started = time.perf_counter()
    study = config.study
    config.resumable.begin()
    points = ", ".join(f"(lr {lr:g}, std {base:g}, of positions {at:g})" for lr, base, at in study.grid)
    print(f"grid of both sides, {study.pilot_steps} steps each, then every init in full at its best: {points}")
    table, found, ticket = measure(study)
    summary = summarise(study, found) | {"seconds": time.perf_counter() - started}
    for one in found:
        gained = f"{one['recovered']:.1%} of dense training's gain over unigrams"
        if math.isnan(one["recovered"]):
            gained = "dense training has no gain over unigrams"
        print(
            f"{one['size']}, query and key x {one['qk_scale']}: dense {one['val_loss_dense']:.4f}, ticket "
            f"{one['val_loss_ticket']:.4f} ({gained}), "
            + (f"shuffled {one['val_loss_shuffled_mask']:.4f}; " if config.controls else "")
            + f"{one['ticket_bytes']:,} bytes for {one['state_dict_bytes']:,}"
        )
        for part in config.tokens.parts:
            bits = {who: one[f"{part}_bits_per_byte_{who}"] for who in ("dense", "ticket")}
            print(f"  {part}, bits a byte: " + ", ".join(f"{who} {value:.4f}" for who, value in bits.items()))
    if config.baselines:
        files = shipped(table)
        lab.show(files.astype({"bytes": "Int64", "nonzero": "Int64"}), None)
        summary["baselines"] = files.to_dict("records")
    lab.save(run, table, summary, plots.figures(table, summary), {"ticket.safetensors": ticket})
    return summary


if __name__ == "__main__":
    lab.launch(ex)
