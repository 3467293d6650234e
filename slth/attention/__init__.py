"""Attention mechanisms, for sources and targets; one file each.

:data:`ATTENTIONS` lists them by name. All have the interface of :class:`Attention`, and each declares its
:class:`Facts`. :class:`MultiHeadAttention` is the multi-head attention of the construction, with its own scales and
without causal, rope and qk_norm; the "mha" of the table has the same weights and outputs.

To add a mechanism, write a file here with a class that derives from :class:`Attention`, or from
:class:`SoftmaxAttention` if it ends in softmax(q k^T) v, and declares its facts; then add a line to :data:`ATTENTIONS`.
Constructions, GPT-2, the comparison of attentions and the tests of all mechanisms use these facts.
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
    """Mechanisms by name; the KeyError for an unknown name lists them."""

    def __missing__(self, name: object) -> Never:
        raise KeyError(f"no attention is called {name!r}: must be one of {', '.join(self)}")


#: name -> class (d_in, d_out, heads, hidden, **options), one line per mechanism.
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
    """Find a mechanism by its name in ATTENTIONS, or a user's own class by its place, whose module is executed.

    Args:
        name: such as "mha", "my_file.py:Tempered" or "package.module:Tempered" (`slth.plugins`).
        key: the config key of the name, for errors.

    Raises:
        ValueError: for an unknown name, and for a place without such a class.
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
