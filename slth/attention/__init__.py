"""Attention mechanisms, sources and targets alike: one file each.

:data:`ATTENTIONS` has them by name, one interface for all (:class:`Attention`); :data:`SUPPORT` says what each can do.
:class:`MultiHeadAttention` is multi-head attention as the construction has it, with scales of its own and without the
options of the others; the "mha" of the table has the same weights and outputs.
"""

from typing import TypeVar

from slth.attention.base import MIXING_INITS, Attention, Support
from slth.attention.cache import KVCache
from slth.attention.differential import DifferentialAttention
from slth.attention.functional import attend, merged_attention, rms_norm
from slth.attention.gqa import GroupedQueryAttention, MultiQueryAttention
from slth.attention.gta import GroupedTiedAttention
from slth.attention.kha import (
    LinearKnockingHeads,
    MLPKnockingHeads,
    TiedLinearKnockingHeads,
    TiedMLPKnockingHeads,
)
from slth.attention.mea import Compressed, MultiheadExplicitAttention
from slth.attention.mha import MultiHeadAttention
from slth.attention.mhla import MultiHeadLinearAttention
from slth.attention.positions import rope
from slth.attention.softmax import SoftmaxAttention
from slth.attention.talking_heads import TalkingHeadsAttention

Value = TypeVar("Value")


class _ByMechanism(dict[str, Value]):
    """Values by name; another name is told which there are."""

    def __missing__(self, name: object) -> Value:
        raise KeyError(f"no attention is called {name!r}: must be one of {', '.join(self)}")


#: Every mechanism by name: a class (d_in, d_out, heads, hidden, **options).
ATTENTIONS: dict[str, type[Attention]] = _ByMechanism(
    {
        "mha": GroupedQueryAttention,
        "gqa": GroupedQueryAttention,
        "mqa": MultiQueryAttention,
        "gta": GroupedTiedAttention,
        "kha_linear": LinearKnockingHeads,
        "kha_mlp": MLPKnockingHeads,
        "mea": MultiheadExplicitAttention,
        "talking_heads": TalkingHeadsAttention,
        "differential": DifferentialAttention,
        "mhla": MultiHeadLinearAttention,
    }
)

#: What each of them can do, by name.
SUPPORT: dict[str, Support] = _ByMechanism({name: attention.support for name, attention in ATTENTIONS.items()})

__all__ = [
    "ATTENTIONS",
    "MIXING_INITS",
    "SUPPORT",
    "Attention",
    "Compressed",
    "DifferentialAttention",
    "GroupedQueryAttention",
    "GroupedTiedAttention",
    "KVCache",
    "LinearKnockingHeads",
    "MLPKnockingHeads",
    "MultiHeadAttention",
    "MultiHeadLinearAttention",
    "MultiQueryAttention",
    "MultiheadExplicitAttention",
    "SoftmaxAttention",
    "Support",
    "TalkingHeadsAttention",
    "TiedLinearKnockingHeads",
    "TiedMLPKnockingHeads",
    "attend",
    "merged_attention",
    "rms_norm",
    "rope",
]
