"""Which attentions are compared: those of slth.attention.ATTENTIONS, and the user's own by place."""

from collections.abc import Mapping
from typing import Any

from slth.attention import ATTENTIONS, MIXING_INITS, Attention, find
from slth.experiments.lab.refusals import BadConfig, Refused
from slth.experiments.studies.mixing.verdicts import BASE
from slth.plugins import is_place

LINEAR = "linear"  # MHLA whose M_c stays 1 everywhere: plain linear attention
ALLOWED = f"all, or one or several of {', '.join(ATTENTIONS)}, or of places as my_file.py:Tempered"

#: Values of mixing_init that every attention has which mixes.
STARTS = tuple(
    start
    for start in MIXING_INITS
    if all(start in kind.facts.mixing_inits for kind in ATTENTIONS.values() if kind.facts.mixing_inits)
)


def attention_of(variant: str) -> type[Attention]:
    """The class of a variant."""
    return find("mhla" if variant == LINEAR else variant, "variants")


def variants_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The variants in the order of ATTENTIONS, then the user's own; BASE is always among them. Raises Refused."""
    given = config["variants"]
    names = [given] if isinstance(given, str) else given
    names = list(ATTENTIONS) if given == "all" else names
    for name in names if isinstance(names, list | tuple) else [None]:
        if not isinstance(name, str) or not (name in ATTENTIONS or is_place(name)):
            raise BadConfig("variants", name or given, ALLOWED)
    own = [name for name in dict.fromkeys(names) if name not in ATTENTIONS]
    for name in own:
        _check_own(name, config)
    return (*(name for name in ATTENTIONS if name in names or name == BASE), *own)


def _check_own(name: str, config: Mapping[str, Any]) -> None:
    """Raise Refused for a class of the user's own that cannot be compared."""
    try:
        facts = attention_of(name).facts
    except ValueError as error:
        raise Refused(str(error)) from None
    if not facts.causal:
        raise BadConfig("variants", name, "an attention that can be causal, as its facts say")
    for key in ("mixing_init", "dense_mixing_init"):
        if facts.mixing_inits and config[key] not in facts.mixing_inits:
            raise BadConfig(key, config[key], f"one of {', '.join(facts.mixing_inits)} for {name}")
