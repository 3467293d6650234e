"""Targets and sources of every attention that can be constructed."""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import random_target

from slth.attention import (
    Attention,
    GroupedQueryAttention,
    GroupedTiedAttention,
    LinearKnockingHeads,
    MultiheadExplicitAttention,
    MultiQueryAttention,
    TiedLinearKnockingHeads,
)
from slth.attention.functional import repeat_heads


@dataclass(frozen=True)
class Source:
    """A way to build a source."""

    name: str
    kind: type[Attention]
    options: dict[str, Any] = field(default_factory=dict)
    side: str = "input"

    def build(self, d_in=3, d_out=2, heads=4, hidden=24, **more):
        """Four heads, 3 inputs, 2 outputs unless told otherwise."""
        return self.kind(d_in, d_out, heads, hidden, **self.options | more)


THEORY = {"mixing_init": "theory"}  # mixing tensors from U[-1, 1], as Theorem 9 draws factors
MERGED = [
    Source("mha", GroupedQueryAttention),
    Source("mha, output side", GroupedQueryAttention, side="output"),
    Source("gqa", GroupedQueryAttention, {"kv_heads": 2}),
    Source("mqa", MultiQueryAttention),
    Source("gta", GroupedTiedAttention, {"kv_heads": 2}),
    Source("kha", LinearKnockingHeads, {"kv_heads": 1} | THEORY),
    Source("kha, output side", LinearKnockingHeads, THEORY, side="output"),
    Source("kha, values only", LinearKnockingHeads, {"mix": "v"} | THEORY),
    Source("kha, I + R", LinearKnockingHeads, {"kv_heads": 2, "mixing_init": "identity_plus_random"}),
    Source("kha tied", TiedLinearKnockingHeads, {"kv_heads": 1} | THEORY),
    Source("mea", MultiheadExplicitAttention, {"norm": False, "mixing_init": "random"}),
    Source("mea, 3 to 2", MultiheadExplicitAttention, {"norm": False, "components": 3, "kv_heads": 2} | THEORY),
]
RECTANGULAR = [
    Source(f"shared_width, {name}", LinearKnockingHeads, {"shared_width": 40} | options | THEORY, "output")
    for name, options in {
        "neither": {},
        "rope": {"rope": True},
        "qk_norm": {"qk_norm": True},
        "both": {"rope": True, "qk_norm": True},
    }.items()
]
each_merged = pytest.mark.parametrize("source", MERGED, ids=lambda source: source.name)
each_rectangular = pytest.mark.parametrize("source", RECTANGULAR, ids=lambda source: source.name)
each = pytest.mark.parametrize("source", MERGED + RECTANGULAR, ids=lambda source: source.name)


def pair(source, seed=0, hidden=24, **sizes):
    """A target and a source: hidden 4 for both where the projections are to be met."""
    if "shared_width" in source.options:
        module = source.build(hidden=4, seed=seed, **sizes)
        return gqa_target(module), module
    module = source.build(seed=seed, hidden=hidden, **sizes)
    return random_target(module.d_in, module.d_out, module.heads), module


def gqa_target(source, kv_heads=2, seed=50):
    """A float64 target of the source's options, its factors of spectral norm 1/2."""
    options = {"rope": source.rope, "qk_norm": source.qk_norm, "seed": seed, "dtype": torch.float64}
    sizes = source.d_in, source.d_out, source.heads, source.hidden
    target = GroupedQueryAttention(*sizes, kv_heads=kv_heads, **options)
    with torch.no_grad():
        for weight in target.parameters():
            weight /= 2 * torch.linalg.matrix_norm(weight, ord=2, keepdim=True)
    return target


def pruned(source, ticket):
    copied = copy.deepcopy(source).double()
    ticket.prune(copied)
    return copied


def entry_errors(ticket, target):
    """The absolute errors of all entries of the merged matrices."""
    pairs = zip(ticket.merged, target.merged(), strict=True)
    return torch.cat([(got - wanted).detach().abs().flatten() for got, wanted in pairs])


def of(module, name):
    """A parameter of a float64 copy, the constant it is added to included, as numpy."""
    module = copy.deepcopy(module).double()
    value = module._mixing(name) if name.startswith("mix_") else getattr(module, name)
    return value.detach().numpy()


def by_head(weights, heads):
    return repeat_heads(torch.from_numpy(weights), heads).expand(heads, -1, -1).numpy()
