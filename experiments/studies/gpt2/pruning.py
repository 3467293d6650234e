"""Search settings of tickets in GPT-2: the method, the shares to keep, and the masks of blocks and embeddings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import slth
from slth.masking import choices
from slth.masking.forms import Form
from slth.masking.kinds import PRUNE, Kind
from slth.masking.parameters import parameters_of
from slth.masking.scales import scale_of
from slth.search import Search as Method

BLOCKS = "*.h.*.c_*.weight"  # the weight matrices of the blocks, by parameter name
TABLES = ("*.wte.weight", "*.wpe.weight")  # the embeddings, of tokens and positions


@dataclass(frozen=True)
class Masks:
    """The kinds of masks of the blocks, and of the embeddings if these differ."""

    kind: Kind
    scale: str | None = None
    embedding_kind: Kind | None = None
    embedding_keep: float | None = None


PLAIN = Masks(PRUNE)


@dataclass(frozen=True)
class Pruning:
    """The search settings of a ticket."""

    method: Method
    keep: float
    policy: str
    masked: str  # all, or blocks
    scores: str
    seed: int
    masks: Masks = PLAIN

    @property
    def plain(self) -> "Pruning":
        """Return the same search with masks that only prune."""
        return replace(self, masks=PLAIN)

    @property
    def patterns(self) -> list[str] | None:
        """Shell patterns of the masked weights; None for all weights."""
        return None if self.masked == "all" else [BLOCKS]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap the model."""
        return slth.wrap(
            model,
            self.keeps,
            self.policy,
            self.patterns,
            scores=self.scores,
            seed=self.seed,
            kind=self.kinds,
            scale=self.masks.scale,
        )

    def check(self, config: GPT2Config) -> None:
        """Raise ValueError if the method or a weight of this model does not support the masks. No weight is created."""
        for form, _ in self._forms(config):
            self.method.require_form(form)

    def bits(self, config: GPT2Config) -> float:
        """Return the bits per masked weight: those of masks by their kinds, and 32 for each learned scale factor."""
        forms = self._forms(config)
        sizes = [math.prod(form.shape) for form, _ in forms]
        masks = math.fsum(size * form.kind.bits(keep) for size, (form, keep) in zip(sizes, forms, strict=True))
        return (masks + sum(32 * form.scale.count for form, _ in forms if form.scale)) / sum(sizes)

    def _forms(self, config: GPT2Config) -> list[tuple[Form, float]]:
        """Return the form and the kept share of each weight's mask. Raises ValueError for one that does not fit."""
        with torch.device("meta"):
            params = [param for param in parameters_of(GPT2LMHeadModel(config)) if param.is_weight]
        if self.masked == "blocks":
            params = [param for param in params if fnmatchcase(param.path, BLOCKS)]
        plan = choices.plan(params, self.keeps, self.policy, None, self.kinds, self.seed)
        scales = {p.path: scale_of(p, self.masks.scale) for p in params}
        forms = [Form(tuple(p.tensor.shape), plan.kinds[p.path], p.axes, scales[p.path]) for p in params]
        return [(form, plan.keeps[p.path]) for form, p in zip(forms, params, strict=True)]

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds of masks, by pattern of parameter names."""
        own = self.masks.embedding_kind or self.masks.kind
        return dict.fromkeys(self._tables, own) | {"*": self.masks.kind}

    @property
    def keeps(self) -> float | dict[str, float]:
        """The shares to keep, by pattern of parameter names if they differ."""
        own = self.masks.embedding_keep or self.keep
        return self.keep if own == self.keep else dict.fromkeys(self._tables, own) | {"*": self.keep}

    @property
    def _tables(self) -> Sequence[str]:
        return () if self.masked == "blocks" else TABLES
