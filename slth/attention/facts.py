"""The facts that a mechanism declares, for the code that initialises, constructs and compares attentions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The roles of projections, as in `slth.weights.inits.Fan`.
PROJECTIONS = ("query", "key", "value", "output")

#: All roles of parameters; see :class:`Facts`.
ROLES = (*PROJECTIONS, "features", "heads", "tokens", "vector")

#: The roles of parameters that constructions can mask.
STRUCTURED = (*PROJECTIONS, "features", "heads")

#: parameter name -> role, for multi-head attention.
MULTI_HEAD = {role: role for role in PROJECTIONS}

#: The initialisations of tensors that mix heads or features. "natural": that of the mechanism's paper (identity, zeros,
#: ...); "random": normal with standard deviation 1 / sqrt(fan_in), random like any other weight of a source;
#: "identity_plus_random": the "natural" value is kept as a constant buffer. A random tensor, the only parameter, is
#: added to it, so that masking everything restores the paper's initialisation; "theory": uniform on (-1, 1), as in the
#: theory, so that diagonal entries, which constructions keep, do not shrink with fan_in.
MIXING_INITS = ("natural", "random", "identity_plus_random", "theory")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about a mechanism. Its options are the keywords of its constructor (:func:`options_of`).

    Attributes:
        roles: parameter name -> role, for all parameters that it may have: "query", "key", "value" or "output" for a
            projection; "features" for a tensor that maps the features of every head; "heads" or "tokens" for a tensor
            that mixes these; "vector" for any other. A projection that is both key and value is a "key": it is
            initialised, and scaled by GPT-2's qk_scale, like the other factor of the logits.
        constructible: True if `slth.construct.variant` can construct tickets in it, unless its factors cannot be merged
            (`Attention.obstacles`); else the reason why not.
        mask, causal, rope, qk_norm: whether it supports these.
        width_step, rope_step: a divisor that hidden must have, without rope and with it.
        norm: the name of the option, and attribute, for the norm of each head's output; "" if there is no such norm.
        grouped: whether its purpose is to share keys and values among heads, so that comparisons set `kv_heads`.
        mixing_inits: the values of its option `mixing_init`; () without this option.
        matrix: whether it has `effective_matrix`, so that the mixing study can measure it.

    Raises:
        ValueError: for an unknown role, or one that is not in STRUCTURED if constructible is True.
    """

    roles: dict[str, str]
    constructible: Literal[True] | str
    mask: bool = True
    causal: bool = True
    rope: bool = True
    qk_norm: bool = True
    width_step: int = 1
    rope_step: int = 2
    norm: str = ""
    grouped: bool = False
    mixing_inits: tuple[str, ...] = ()
    matrix: bool = False

    def __post_init__(self) -> None:
        for name, role in self.roles.items():
            if role not in ROLES:
                raise ValueError(f"roles[{name!r}]={role!r}: must be one of {', '.join(ROLES)}")
            if self.constructible is True and role not in STRUCTURED:
                allowed = f"one of {', '.join(STRUCTURED)} where constructible=True"
                raise ValueError(f"roles[{name!r}]={role!r}: must be {allowed}")
