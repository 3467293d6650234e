"""Ablate the recipe of a search: tickets in a random GPT-2 by recipes that differ in one choice, on paired seeds.

A recipe consists of the kinds of masks of blocks and embeddings, the shares that they keep, the inits, the method and
the optimiser (`slth.experiments.studies.gpt2.recipes`). Each recipe, and dense training, is run with every seed. The
results are the loss against bits per weight, the share of dense training's gain over a unigram model, and differences
to the first recipe with 95 % intervals and Holm's correction for multiple comparisons. With a folder `checkpoints`, an
interrupted run can be resumed.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slth import plots
from slth.experiments import lab
from slth.experiments.lab import BadConfig
from slth.experiments.lab.options import several, where
from slth.experiments.studies.gpt2 import keys
from slth.experiments.studies.gpt2.options import GPT2Training
from slth.experiments.studies.gpt2.recipes import RECIPES, Recipe, Study, in_words, measure, recipe_of, summarise


@dataclass(frozen=True)
class Config(GPT2Training):
    """The recipes, the model and the training."""

    recipes: list[str] = lab.key(
        list(RECIPES),
        several(where(lambda value: isinstance(value, str), "a recipe")),
        help=f"recipes to compare: {', '.join(RECIPES)}, with changes in parentheses, as in base(keep=0.4); all are "
        "compared with the first one; those whose name begins with dense train weights",
    )
    seeds: int = lab.seeds(3, help="each has its own weights, scores and batches, the same with every recipe")
    size: str = keys.size("tiny")
    data: str = keys.data()
    vocabulary: str = keys.vocabulary()
    length: int = keys.length(128)
    steps: int = keys.steps(400)
    batch: int = keys.batch(16)
    warmup: float = keys.warmup()
    clip: float = keys.clip()
    windows: int = keys.windows()
    checkpoints: str | None = keys.checkpoints()
    saves: int = keys.saves()
    device: str = keys.device()
    seed: int = lab.seed()

    def check_keys(self) -> None:
        """Check the seeds, and that recipes fit the model."""
        lab.seeds_from(self.seed, self.seeds)
        model = self.model(self.size, 256)
        for name, recipe in self.chosen.items():
            try:
                recipe.search(self.seed).check(model)
            except ValueError as error:
                raise BadConfig("recipes", name, f"a recipe that fits ({error})") from error

    @cached_property
    def chosen(self) -> dict[str, Recipe]:
        """Return the recipes by name. Raises BadConfig."""
        chosen = {}
        for name in self.recipes:
            try:
                chosen[name] = recipe_of(name)
            except (ValueError, TypeError) as error:
                raise BadConfig(
                    "recipes", name, f"one of {', '.join(RECIPES)}, or as base(keep=0.4) ({error})"
                ) from error
        return chosen

    @cached_property
    def study(self) -> Study:
        """Return the study."""
        return Study(
            model=self.model(self.size, self.tokens.vocabulary),
            recipes=self.chosen,
            seeds=lab.seeds_from(self.seed, self.seeds),
            how=self.training(self.steps),
            data=self.tokens,
        )


ex = lab.experiment("recipe", Config)
ex.add_named_config(
    "smoke",
    recipes=["base", "signed", "dense"],
    size="tiny*0.25",
    seeds=2,
    length=32,
    steps=5,
    batch=4,
    windows=8,
)


@ex.main
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Train with every recipe and compare."""
    started = time.perf_counter()
    study = config.study
    config.resumable.begin()
    table = measure(study)
    summary = summarise(study, table) | {"seconds": time.perf_counter() - started}
    base = next(iter(study.recipes))
    for name, found in summary["recipes"].items():
        print(in_words(name, found, base))
    lab.save(run, table, summary, plots.figures(table, summary))
    return summary


if __name__ == "__main__":
    lab.launch(ex)
