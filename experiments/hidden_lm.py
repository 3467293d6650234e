"""Train a language model, and then hide it in a random network by pruning alone.

A character-level transformer is trained on text. Its ticket is then constructed in a wider random transformer by exact
subset sums. candidates=24 is the number of candidates of every subset sum, after the ReLU has split them into halves;
candidates=[8,12,16,20,24] draws the loss gap against it.
"""

import os
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slth import plots
from slth.experiments import lab
from slth.experiments.lab import BadConfig
from slth.experiments.studies.hidden.measure import Study, hide, summarise, train_target
from slth.tasks import text
from slth.threads import one_torch_thread


@dataclass(frozen=True)
class Config(lab.TrainingOptions):
    """The target, its training, and the source."""

    data: str | os.PathLike[str] = lab.anything(
        "stdlib",
        allowed="stdlib or a path to a UTF-8 text file",
        help="the text: stdlib, the source text of Python's standard library, or a path to a UTF-8 file",
    )
    embeddings: str = lab.choice(
        "shared",
        ("shared", "random"),
        help="embedding, positions and head; shared: the source has the target's; random: they are hidden as well",
    )
    norm: bool = lab.flag(True, help="use layer normalisation, without affine part")
    d: int = lab.integer(64, least=1, help="width of the residual stream")
    blocks: int = lab.integer(4, least=1, help="number of blocks of target and source")
    heads: int | None = lab.integer(None, least=1, help="number of heads; None: the most up to 4 that divide d")
    layers: int = lab.integer(
        2, least=1, help="layers of the target's feed-forward networks; the source has twice as many"
    )
    length: int = lab.integer(128, least=2, help="tokens (characters) per window")
    vocabulary: int = lab.integer(
        128, least=2, most=4096, help="number of tokens: the most common characters, and one for all others"
    )
    steps: int = lab.integer(2000, least=0, help="training steps of the target")
    batch: int = lab.integer(16, least=1, help="windows per step")
    lr: float = lab.number(0.004, above=0.0, help="peak learning rate of the target's training")
    candidates: list[int] = lab.integers(24, least=1, help="candidates per entry, that is per subset sum")
    reach: str = lab.choice(
        "scale",
        ("scale", "bound", "none"),
        help="how target entries stay within reach; scale: a recorded scale per source matrix; bound: the target is "
        "trained under the theorem's norm bound; none: neither",
    )
    windows: int = lab.integer(200, least=1, help="number of validation windows")
    sample: int = lab.integer(400, least=0, help="characters of text to generate with target and ticket")
    seed: int = lab.seed()

    def check(self) -> None:
        """Raise BadConfig for values that do not fit together, and for a text that cannot be read."""
        self.check_arithmetic(self.batch)
        if self.heads is not None and self.d % self.heads:
            raise BadConfig("heads", self.heads, f"a divisor of d={self.d}, for target heads of width d/heads")
        least = 20 * (self.length + 1)
        if len(self.study.corpus.text) < least:
            raise BadConfig("data", self.data, f"a text of at least {least} characters, 20 windows")

    @cached_property
    def study(self) -> Study:
        """Return the study, with its text."""
        return Study(
            corpus=self._corpus(),
            embeddings=self.embeddings,
            norm=self.norm,
            d=self.d,
            blocks=self.blocks,
            heads=self.heads or next(n for n in (4, 3, 2, 1) if self.d % n == 0),
            layers=self.layers,
            length=self.length,
            vocabulary=self.vocabulary,
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            candidates=sorted(self.candidates),
            reach=self.reach,
            windows=self.windows,
            sample=self.sample,
            seed=self.seed,
            arithmetic=self.arithmetic,
        )

    def _corpus(self) -> text.Corpus:
        if not isinstance(self.data, str | os.PathLike):
            raise BadConfig("data", self.data, "stdlib or a path to a text file")
        try:
            return text.corpus("stdlib" if self.data == "stdlib" else f"path:{self.data}")
        except ValueError as error:
            allowed = f"stdlib or a UTF-8 text file that is not empty ({error})"
            raise BadConfig("data", self.data, allowed) from error


ex = lab.experiment("hidden_lm", Config)
SMALL: dict[str, Any] = {"d": 16, "blocks": 2, "heads": 2, "length": 32, "steps": 40, "windows": 10, "sample": 80}
ex.add_named_config("smoke", **SMALL, candidates=[8, 12])
ex.add_named_config("sweep", candidates=[8, 12, 16, 20, 24])


@ex.main
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Train the target, hide it and compare."""
    started = time.perf_counter()
    study = config.study
    with one_torch_thread():  # two threads are not faster for such small matrices, and one keeps the order of sums
        target, learned = train_target(study)
        table, texts, ticket = hide(study, target)
    summary = summarise(study, table, learned) | {"texts": texts}
    for name, content in texts.items():
        print(f"--- {name}\n{content}")
    last = table.groupby("candidates").last().reset_index()  # after the last block
    last["loss_gap"] = last["val_loss_ticket"] - last["val_loss_target"]
    lab.show(last[["candidates", "val_loss_ticket", "loss_gap", "agreement", "error", "certificate"]])
    summary["seconds"] = time.perf_counter() - started
    lab.save(run, table, summary, plots.figures(table, summary), {"ticket.safetensors": ticket.to_bytes()})
    return summary


if __name__ == "__main__":
    lab.launch(ex)
