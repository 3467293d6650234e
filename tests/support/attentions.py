"""Every attention with its options, and the formulas they are held against."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from slth.attention import (
    ATTENTIONS,
    MIXING_INITS,
    Attention,
    Facts,
    LinearKnockingHeads,
    MultiHeadAttention,
    MultiheadExplicitAttention,
    MultiHeadLinearAttention,
    SoftmaxAttention,
    TiedLinearKnockingHeads,
    TiedMLPKnockingHeads,
)

T = 6
exactly = {"rtol": 1e-12, "atol": 1e-12}


@dataclass(frozen=True)
class Variant:
    """A way to build an attention; sizes by default such that no axis has length 1."""

    name: str
    kind: type[Attention]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> Facts:
        return self.kind.facts

    @property
    def causal(self) -> dict[str, bool]:
        return {"causal": True} if self.facts.causal else {}

    @property
    def positioned(self) -> dict[str, bool]:
        """rope and qk_norm, as far as it has them."""
        return {option: True for option in ("rope", "qk_norm") if getattr(self.facts, option)}

    @property
    def mixes(self) -> bool:
        """Whether it has tensors that start by MIXING_INITS."""
        return set(MIXING_INITS) <= set(self.facts.mixing_inits)

    def build(self, **more: Any) -> Attention:
        """A float64 module with random mixing, options that more says."""
        own = {"d_in": 9, "d_out": 3, "heads": 4, "hidden": 8, "init": "xavier_uniform", "dtype": torch.float64}
        mixing = {"mixing_init": "random"} if self.facts.mixing_inits else {}
        return self.kind(**own | mixing | self.options | more)

    def settings(self) -> list[dict[str, Any]]:
        """Widths on both sides of d_in, plain and with what it has of positions and norms."""
        return [{**size, **more} for size in ({}, {"d_in": 5}) for more in ({}, self.positioned)]


BLOCKS = {"length": 9, "block": 4, "normalise": False}
#: Options of attentions of the registry, where other than their defaults test more.
OPTIONS = {
    "gqa": {"kv_heads": 2},
    "gta": {"kv_heads": 2},
    "kha_linear": {"kv_heads": 2},
    "kha_mlp": {"kv_heads": 2},
    "mea": {"kv_heads": 2, "components": 3},
    "talking_heads": {"logit_heads": 3, "value_heads": 2},
    "mhla": BLOCKS,
}
VARIANTS = [
    *(Variant(name, kind, OPTIONS.get(name, {})) for name, kind in ATTENTIONS.items()),
    Variant("of the construction", MultiHeadAttention, {"hidden_vo": 10}),
    Variant("kha_linear, queries and values", LinearKnockingHeads, {"mix": ("q", "v")}),
    Variant("kha_linear, wide", LinearKnockingHeads, {"shared_width": 11}),
    Variant("kha_linear, tied", TiedLinearKnockingHeads, {"kv_heads": 2}),
    Variant("kha_mlp, tied", TiedMLPKnockingHeads, {"kv_heads": 2}),
    Variant("mea, no norm", MultiheadExplicitAttention, {"norm": False}),
    Variant("mhla, added to its start", MultiHeadLinearAttention, BLOCKS | {"mixing_init": "identity_plus_random"}),
]


def each(variants):
    return pytest.mark.parametrize("variant", variants, ids=lambda variant: variant.name)


every = each(VARIANTS)
causal = each([v for v in VARIANTS if v.facts.causal])
masked = each([v for v in VARIANTS if v.facts.mask])
mixed = each([v for v in VARIANTS if v.mixes])
softmax = each([v for v in VARIANTS if issubclass(v.kind, SoftmaxAttention)])
