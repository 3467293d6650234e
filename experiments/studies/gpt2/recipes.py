"""Ablations of search recipes: a base recipe, recipes that differ from it in one choice, and dense training.

Every recipe is run with the same seeds, that is the same batches, and the same weights if inits are equal.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from transformers import GPT2Config

from slth import plugins
from slth.experiments import lab
from slth.experiments.studies.comparing import compared, correct, student
from slth.experiments.studies.gpt2.data import Data
from slth.experiments.studies.gpt2.prune import recovered
from slth.experiments.studies.gpt2.pruning import Masks, Pruning
from slth.experiments.studies.gpt2.training import Source, Training, trained
from slth.masking.kinds import as_kind
from slth.models import gpt2
from slth.numbers import as_float
from slth.search import method as as_method

DENSE = "dense"  # prefix of the names of recipes that train weights


@dataclass(frozen=True)
class Recipe:
    """The choices of a search, or of dense training: inits, masks and optimiser.

    Raises ValueError for values that are not allowed.
    """

    init: str = "signed"
    base_std: float = 0.11
    embedding_std: float = 0.09
    position_std: float = 0.09
    kind: str = "prune"
    keep: float = 0.33
    embedding_kind: str = "signed(levels=2)"
    embedding_keep: float = 0.8
    scale: str | None = None
    method: str = "edge_popup"
    lr: float = 0.0045
    beta1: float = 0.8
    beta2: float = 0.99

    def __post_init__(self) -> None:
        for name in ("base_std", "embedding_std", "position_std", "lr"):
            as_float(name, getattr(self, name), "(0, inf)")
        for name in ("keep", "embedding_keep"):
            as_float(name, getattr(self, name), "(0, 1]")
        for name in ("beta1", "beta2"):
            as_float(name, getattr(self, name), "[0, 1)")
        if self.init not in gpt2.INITS:
            raise ValueError(f"init={self.init!r}: must be one of {', '.join(gpt2.INITS)}")
        _ = self.masks, as_method(self.method)

    @property
    def masks(self) -> Masks:
        """The masks of blocks and embeddings."""
        return Masks(as_kind(self.kind), self.scale, as_kind(self.embedding_kind), self.embedding_keep)

    def search(self, seed: int) -> Pruning:
        """Return the search settings."""
        return Pruning(as_method(self.method), self.keep, "layer", "all", "kaiming_uniform", seed, self.masks)

    def bits(self, config: GPT2Config) -> float:
        """Return the bits per weight of masks and learned scale factors for this model."""
        return self.search(0).bits(config)


_DENSE = {"init": "gpt2", "base_std": 0.07, "position_std": 0.12, "embedding_std": 0.15, "lr": 0.006}
_FINER = {"embedding_kind": "signed(levels=3)", "embedding_keep": 0.85, "embedding_std": 0.06, "position_std": 0.06}
#: Name of a recipe -> its differences from the base. "dense ..." train weights, with their own inits.
RECIPES: dict[str, dict[str, Any]] = {
    "base": {},
    "a factor a matrix": {"scale": "matrix"},
    "plain": {"keep": 0.5, "base_std": 0.09, "embedding_kind": "prune", "embedding_keep": 0.5}
    | {"embedding_std": 0.15, "position_std": 0.12},
    "beta 0.9, 0.999": {"beta1": 0.9, "beta2": 0.999},
    "signed": {"kind": "signed", "keep": 0.5, "base_std": 0.085} | _FINER,
    "signed, 2 levels": {"kind": "signed(levels=2)", "keep": 0.475, "base_std": 0.055} | _FINER,
    "dense": _DENSE,
}


def recipe_of(text: str) -> Recipe:
    """Return the recipe of a name of RECIPES, with changes in parentheses: recipe_of("base(keep=0.4)").

    Raises ValueError for an unknown name or field, and as :class:`Recipe` does.
    """
    name, differs = plugins.split(text)
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}")
    known = [each.name for each in fields(Recipe)]
    if odd := [field for field in differs if field not in known]:
        raise ValueError(f"no field {odd[0]!r}, must be one of {', '.join(known)}")
    return Recipe(**(RECIPES[name] | differs))


@dataclass(frozen=True)
class Study:
    """The settings of the measurement."""

    model: GPT2Config
    recipes: dict[str, Recipe]  # the first is the base
    seeds: Sequence[int]
    how: Training
    data: Data


def measure(study: Study) -> pd.DataFrame:
    """Return one row for each recipe and seed; the loss of a training that diverges is infinite."""
    points = [(seed, name) for seed in study.seeds for name in study.recipes]
    return pd.DataFrame([row_of(study, *point) for point in lab.progress(points, "recipes")])


def row_of(study: Study, seed: int, name: str) -> dict[str, Any]:
    """Return the row of one training."""
    recipe, is_dense = study.recipes[name], name.startswith(DENSE)
    source = Source(study.model, recipe.init, recipe.embedding_std, recipe.position_std, 1.0, seed)
    how = replace(study.how, seed=seed, betas=(recipe.beta1, recipe.beta2))
    search, point = None if is_dense else recipe.search(seed), (recipe.lr, recipe.base_std)
    try:
        loss = trained(source, search, study.data, how, point, how.steps, f"{name} seed={seed}").val_loss
    except FloatingPointError:
        loss = math.inf
    bits = 32.0 if is_dense else recipe.bits(study.model)
    return {"recipe": name, "seed": seed, "val_loss": loss, "bits_per_weight": bits, "steps": how.steps}


def summarise(study: Study, table: pd.DataFrame) -> dict[str, Any]:
    """Summarise losses and shares of dense training's gain by recipe, and Holm-corrected paired differences to base."""
    base, *others = study.recipes
    losses = table.pivot(index="seed", columns="recipe", values="val_loss")  # (seeds, recipes)
    dense = losses[[name for name in study.recipes if name.startswith(DENSE)]]
    best = str(dense.mean().idxmin()) if dense.shape[1] else None
    found: dict[str, dict[str, Any]] = {}
    for name in study.recipes:
        rows = table[table["recipe"] == name]
        found[name] = {
            "val_loss": float(losses[name].mean()),
            "bits_per_weight": float(cast("float", rows["bits_per_weight"].iloc[0])),
            **({} if best is None else shares(study.data.unigram, losses[best], losses[name])),
        }
    differences = {name: compared(losses[name] - losses[base], study.how.seed) for name in others if _is_search(name)}
    correct(differences)
    return {
        "recipes": {name: one | differences.get(name, {}) for name, one in found.items()},
        "dense": best,
        "seeds": list(study.seeds),
        "steps": study.how.steps,
        "val_loss_unigram": study.data.unigram,
        "val_loss_bigram": study.data.bigram,
    }


def shares(unigram: float, dense: "pd.Series[float]", losses: "pd.Series[float]") -> dict[str, Any]:
    """Return the share of dense training's gain over unigrams by seed, and its mean with a 95 % interval (Student)."""
    values = np.array([recovered(unigram, d, loss) for d, loss in zip(dense, losses, strict=True)])
    low, high, _ = student(values)
    return {
        "recovered": float(values.mean()),
        "recovered_low": low,
        "recovered_high": high,
        "recovered_by_seed": values.tolist(),
    }


def in_words(name: str, found: Mapping[str, Any], base: str) -> str:
    """Describe the results of a recipe in one line."""
    line = f"{name}: {found['bits_per_weight']:.3f} bits a weight, loss {found['val_loss']:.4f}"
    if "recovered" in found:
        low, high = found["recovered_low"], found["recovered_high"]
        line += f", {found['recovered']:.1%} of dense training's gain ({low:.1%} to {high:.1%})"
    if "difference" in found:
        low, high = found["student_low"], found["student_high"]
        line += (
            f"; {found['difference']:+.4f} nat to {base} ({low:+.4f} to {high:+.4f}; Holm p {found['p_corrected']:.2g})"
        )
    return line


def _is_search(name: str) -> bool:
    return not name.startswith(DENSE)
