"""Attention mechanisms, sources and targets alike: one file each.

:data:`ATTENTIONS` has them by name, one interface for all (:class:`Attention`); each states its :class:`Facts`.
:class:`MultiHeadAttention` is multi-head attention as the construction has it, with scales of its own and without
causal, rope and qk_norm; the "mha" of the table has the same weights and outputs.

To add one: a file here with a class that derives from :class:`Attention`, or from :class:`SoftmaxAttention` where it
ends in softmax(q k^T) v, and states its facts; and a line in :data:`ATTENTIONS`. What constructions, GPT-2, the
comparison of attentions and the tests of all mechanisms do with it follows from its facts.
"""

from typing import Never

from slth import plugins
from slth.attention.arguments import options_of
from slth.attention.base import Attention
from slth.attention.cache import KVCache
from slth.attention.differential import DifferentialAttention
from slth.attention.facts import MIXING_INITS, MULTI_HEAD, Facts
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


class _Mechanisms(dict[str, type[Attention]]):
    """Mechanisms by name; another name is told which there are."""

    def __missing__(self, name: object) -> Never:
        raise KeyError(f"no attention is called {name!r}: must be one of {', '.join(self)}")


#: Every mechanism by name: a class (d_in, d_out, heads, hidden, **options).
ATTENTIONS: dict[str, type[Attention]] = _Mechanisms(
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


def find(name: str, key: str = "attention") -> type[Attention]:
    """The mechanism of a name in ATTENTIONS, or a class of the user's own by its place, whose module is executed.

    Args:
        name: as "mha", "my_file.py:Tempered" or "package.module:Tempered" (`slth.plugins`).
        key: what the name was given as, for errors.

    Raises ValueError for another name, and for a place without such a class.
    """
    if plugins.is_place(name):
        return plugins.load(key, name, Attention)
    if name not in ATTENTIONS:
        raise ValueError(f"{key}={name!r}: must be one of {', '.join(ATTENTIONS)}, or a place as my_file.py:Tempered")
    return ATTENTIONS[name]


__all__ = [
    "ATTENTIONS",
    "MIXING_INITS",
    "MULTI_HEAD",
    "Attention",
    "Compressed",
    "DifferentialAttention",
    "Facts",
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
    "TalkingHeadsAttention",
    "TiedLinearKnockingHeads",
    "TiedMLPKnockingHeads",
    "attend",
    "find",
    "merged_attention",
    "options_of",
    "rms_norm",
    "rope",
]
