"""The attentions to compare: those of slth.attention.ATTENTIONS, and the user's own by place."""

from collections.abc import Sequence
from typing import Any

from slth.attention import ATTENTIONS, MIXING_INITS, Attention, find
from slth.experiments.lab.options import as_list
from slth.experiments.lab.refusals import BadConfig, Refused
from slth.experiments.studies.mixing.verdicts import BASE
from slth.plugins import is_place

LINEAR = "linear"  # MHLA whose M_c stays 1 everywhere: plain linear attention
ALLOWED = f"all, or one or several of {', '.join(ATTENTIONS)}, or of places as my_file.py:Tempered"

#: Values of mixing_init that all mixing attentions support.
STARTS = tuple(
    start
    for start in MIXING_INITS
    if all(start in kind.facts.mixing_inits for kind in ATTENTIONS.values() if kind.facts.mixing_inits)
)


def attention_of(variant: str) -> type[Attention]:
    """Return the class of a variant."""
    return find("mhla" if variant == LINEAR else variant, "variants")


def has_matrix(variant: str) -> bool:
    """Tell whether a variant's facts state that it has an attention matrix."""
    return attention_of(variant).facts.matrix


def read(key: str, value: Any) -> tuple[str, ...]:
    """Return the variants in the order of ATTENTIONS, then the user's own; BASE is always included. Raises Refused."""
    names = list(ATTENTIONS) if value == "all" else as_list(value)
    for name in names or [None]:
        if not isinstance(name, str) or not (name in ATTENTIONS or is_place(name)):
            raise BadConfig(key, name or value, ALLOWED)
    own = [name for name in dict.fromkeys(names) if name not in ATTENTIONS]
    for name in own:
        try:
            facts = attention_of(name).facts
        except ValueError as error:
            raise Refused(str(error)) from None
        if not facts.causal:
            raise BadConfig(key, name, "an attention that can be causal, as its facts say")
    return (*(name for name in ATTENTIONS if name in names or name == BASE), *own)


def require_start(variants: Sequence[str], key: str, start: str) -> None:
    """Raise BadConfig if one of the user's own variants does not support this mixing_init."""
    for name in variants:
        inits = attention_of(name).facts.mixing_inits
        if name not in ATTENTIONS and inits and start not in inits:
            raise BadConfig(key, start, f"one of {', '.join(inits)} for {name}")
