"""Knocking-heads attention (KHA, arXiv 2510.23052): all heads of a layer share matrices that mix a head's features.

Linear form: q_h = x W_Q,h T_Q, k_g = x W_K,g T_K, v_g = x W_V,g T_V, where each of the three T is optional. MLP form:
only values are mixed, v -> 2 ((v W_up) * sigmoid(v W_gate)) W_down. The order is projection, T, QK-norm, rotary
positions, attention. The paper initialises the T, W_up and W_down to the identity and W_gate to 0, for which KHA equals
the plain attention.

Both forms exist for grouped-query attention (multi-head with kv_heads = heads) and for grouped-tied attention. For the
latter the paper does not define the mixing. Here T_V, or the MLP, acts on the tied projection before its first half
becomes a key, so that keys and values remain tied and the cache for decoding does not grow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from torch import nn

from slth.attention.base import Options, eye
from slth.attention.facts import MIXING_INITS
from slth.attention.gqa import GroupedAttention, GroupedQueryAttention
from slth.attention.gta import GroupedTiedAttention
from slth.numbers import as_int

_NOT_LINEAR = "the MLP on values is not linear"
_MLP_ROLES = dict.fromkeys(("mlp_up", "mlp_gate", "mlp_down"), "features")
_MIXED_BY = {"query": "mix_query", "key": "mix_key", "value": "mix_value", "key_value": "mix_value"}


class _Linear(GroupedAttention):
    """The linear form of `plain`, the attention that follows in the method resolution order."""

    plain: ClassVar[type[GroupedAttention]]
    letters: ClassVar[str]

    def __init__(
        self,
        d_in: int,
        d_out: int,
        heads: int,
        hidden: int,
        *,
        mix: Iterable[str] | None = None,
        shared_width: int | None = None,
        mixing_init: str = "natural",
        kv_heads: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        chosen = tuple(self.letters if mix is None else mix)
        if any(letter not in tuple(self.letters) for letter in chosen):
            raise ValueError(f"mix={mix!r}: must be made of {', '.join(self.letters)}")
        width = as_int("hidden", hidden, 1) if shared_width is None else as_int("shared_width", shared_width, 1)
        self._check_mixing_init(mixing_init)
        mixed = {role: name for role, name in _MIXED_BY.items() if name[len("mix_")] in chosen}
        widths = dict.fromkeys(mixed, width)
        super().__init__(d_in, d_out, heads, hidden, kv_heads=kv_heads, widths=widths, **options)
        self.mix = "".join(letter for letter in self.letters if letter in chosen)
        self._mixed = mixed  # projection -> name of its T
        for name in dict.fromkeys(mixed.values()):
            self._add_mixing(name, eye(width, self.hidden), mixing_init)

    def _weight(self, role: str) -> torch.Tensor:
        weight = super()._weight(role)
        return weight @ self._mixing(self._mixed[role]) if role in self._mixed else weight

    def _of_head(self, x: torch.Tensor, role: str, head: int) -> torch.Tensor:
        projected = super()._of_head(x, role, head)
        return projected @ self._mixing(self._mixed[role]) if role in self._mixed else projected

    @torch.no_grad()
    def absorb(self) -> GroupedAttention:
        """Return an equal attention without mixing: each T is multiplied into its projections, in the same dtype."""
        folded = self.plain(self.d_in, self.d_out, self.heads, self.hidden, kv_heads=self.kv_heads, **self.options())
        for name, parameter in folded.named_parameters():
            parameter.copy_(self._weight(name))
        return folded.to(self.output.device)

    def extra_repr(self) -> str:
        """Return sizes and options that are on, for print(module)."""
        return f"{super().extra_repr()}, mix={self.mix!r}"


class LinearKnockingHeads(_Linear, GroupedQueryAttention):
    """Linear KHA on grouped-query attention, to which `absorb` converts it.

    The parameters are those of :class:`slth.attention.GroupedQueryAttention`, and `mix_query`, `mix_key`, `mix_value`
    (hidden, hidden) for the letters of mix.

    Args:
        mix: which of queries, keys and values are mixed: letters of "qkv", as a string or tuple; None: all.
        shared_width: the width n of mixed projections, with T (n, hidden); None: hidden. The random projections of all
            heads share the map to hidden, which directly follows them, with or without rope.
        mixing_init: one of `slth.attention.MIXING_INITS`; use "theory" for constructions.

    Other options and errors are those of GroupedQueryAttention. Also raises ValueError for another letter or
    mixing_init, and a shared_width below 1.
    """

    plain = GroupedQueryAttention
    letters = "qkv"
    facts = replace(
        GroupedQueryAttention.facts,
        roles=GroupedQueryAttention.facts.roles | dict.fromkeys(("mix_query", "mix_key", "mix_value"), "features"),
        grouped=False,
        mixing_inits=MIXING_INITS,
        matrix=False,
    )


class TiedLinearKnockingHeads(_Linear, GroupedTiedAttention):
    """Linear KHA on grouped-tied attention: `mix_query` for queries, `mix_value` for the tied projection.

    mix: letters of "qv", by default both. Other parameters are those of :class:`slth.attention.GroupedTiedAttention`,
    to which `absorb` converts it; other options and errors are those of :class:`LinearKnockingHeads`.
    """

    plain = GroupedTiedAttention
    letters = "qv"
    facts = replace(
        GroupedTiedAttention.facts,
        roles=GroupedTiedAttention.facts.roles | dict.fromkeys(("mix_query", "mix_value"), "features"),
        grouped=False,
        mixing_inits=MIXING_INITS,
    )


class _MLP(GroupedAttention):
    """The MLP form of the attention that follows in the method resolution order."""

    mlp_up: nn.Parameter
    mlp_gate: nn.Parameter
    mlp_down: nn.Parameter

    def __init__(
        self,
        d_in: int,
        d_out: int,
        heads: int,
        hidden: int,
        *,
        mixing_init: str = "natural",
        kv_heads: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._check_mixing_init(mixing_init)
        super().__init__(d_in, d_out, heads, hidden, kv_heads=kv_heads, **options)
        identity = eye(self.hidden, self.hidden)
        for name, start in (("mlp_up", identity), ("mlp_gate", torch.zeros_like(identity)), ("mlp_down", identity)):
            self._add_mixing(name, start.clone(), mixing_init)

    def _knock(self, v: torch.Tensor) -> torch.Tensor:
        """Apply the MLP to values (..., hidden) of any head."""
        up, gate, down = (self._mixing(name) for name in ("mlp_up", "mlp_gate", "mlp_down"))
        return 2.0 * ((v @ up) * torch.sigmoid(v @ gate)) @ down

    def _project(self, x: torch.Tensor, role: str) -> torch.Tensor:
        projected = super()._project(x, role)
        return self._knock(projected) if role in ("value", "key_value") else projected

    def _of_head(self, x: torch.Tensor, role: str, head: int) -> torch.Tensor:
        projected = super()._of_head(x, role, head)
        if role not in ("value", "key_value"):
            return projected
        gate = 1 / (1 + torch.exp(-projected @ self._mixing("mlp_gate")))
        return 2 * (gate * (projected @ self._mixing("mlp_up"))) @ self._mixing("mlp_down")

    def obstacles(self) -> list[str]:
        """List the reasons why its pairs of factors cannot be merged."""
        return [*super().obstacles(), _NOT_LINEAR]


class MLPKnockingHeads(_MLP, GroupedQueryAttention):
    """KHA with an MLP on the values of grouped-query attention.

    The parameters are those of :class:`slth.attention.GroupedQueryAttention`, and `mlp_up`, `mlp_gate`, `mlp_down`
    (hidden, hidden). mixing_init: one of `slth.attention.MIXING_INITS`. The cache for decoding holds the outputs of the
    MLP. Other options and errors are those of GroupedQueryAttention. Also raises ValueError for another mixing_init.
    """

    facts = replace(
        GroupedQueryAttention.facts,
        roles=GroupedQueryAttention.facts.roles | _MLP_ROLES,
        constructible=_NOT_LINEAR,
        grouped=False,
        mixing_inits=MIXING_INITS,
        matrix=False,
    )


class TiedMLPKnockingHeads(_MLP, GroupedTiedAttention):
    """KHA with an MLP on the tied projection of grouped-tied attention.

    Other parameters, options and errors are those of :class:`slth.attention.GroupedTiedAttention` and
    :class:`MLPKnockingHeads`.
    """

    facts = replace(
        GroupedTiedAttention.facts,
        roles=GroupedTiedAttention.facts.roles | _MLP_ROLES,
        constructible=_NOT_LINEAR,
        grouped=False,
        mixing_inits=MIXING_INITS,
    )
