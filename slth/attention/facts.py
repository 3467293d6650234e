"""What a mechanism states of itself: all that drawing, solving for and comparing attentions needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The roles of projections, as `slth.weights.inits.Fan` has them.
PROJECTIONS = ("query", "key", "value", "output")

#: All roles that a parameter may have, as :class:`Facts` explains them.
ROLES = (*PROJECTIONS, "features", "heads", "tokens", "vector")

#: The roles of parameters that constructions have a mask for.
STRUCTURED = (*PROJECTIONS, "features", "heads")

#: The roles of the parameters of multi-head attention, by their names.
MULTI_HEAD = {role: role for role in PROJECTIONS}

#: How tensors that mix heads or features start. "natural": as their paper says (identity, zeros, ...); "random": normal
#: with standard deviation 1 / sqrt(fan_in), a ticket's source like any other weight; "identity_plus_random": what
#: "natural" says stays in place as a constant, and a random tensor is added to it, which alone is a parameter and may
#: be masked, so that an empty mask leaves the paper's start; "theory": uniform on (-1, 1), as the theory draws factors,
#: so that entries on a diagonal, which constructions keep, do not fade with fan_in.
MIXING_INITS = ("natural", "random", "identity_plus_random", "theory")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a mechanism states of itself. Its options are those that its constructor names (:func:`options_of`).

    Attributes:
        roles: of all parameters that it may have, by name: "query", "key", "value" or "output" for a projection;
            "features" for what maps the features of every head, "heads" and "tokens" for what mixes these, "vector"
            for anything else. A projection that is key and value at once is a "key": it is drawn, and scaled by GPT-2's
            qk_scale, for the logits that it makes.
        constructible: True where `slth.construct.variant` solves for tickets in it, unless something stands between
            its factors (`Attention.obstacles`); else why not, in words.
        mask, causal, rope, qk_norm: whether it takes them.
        width_step, rope_step: what divides hidden, without rope and with it.
        norm: the option, and attribute, that switches the norm of each head's output; "" where there is no such norm.
        grouped: whether sharing keys and values among heads is what it is about, so that comparisons set `kv_heads`.
        mixing_inits: values of its option `mixing_init`; () where it has none.
        matrix: whether `effective_matrix` has what tokens attend with, and the mixing study measures it.

    Raises ValueError for a role that is none, or that is not among STRUCTURED where constructible is True.
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
