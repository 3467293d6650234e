"""Talking-heads attention (Shazeer et al. 2020, arXiv 2003.02436): heads are mixed before and after the softmax."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import nn

from slth.attention.base import Options, eye
from slth.attention.facts import MIXING_INITS, MULTI_HEAD, Facts
from slth.attention.functional import causal_mask, check_mask
from slth.attention.softmax import SoftmaxAttention
from slth.kernels.attention.reference import masked_softmax
from slth.numbers import as_int
from slth.weights import recipes


class TalkingHeadsAttention(SoftmaxAttention):
    """Attention whose logits and weights are mixed across heads.

    With logits J_k = x W_Q,k (x W_K,k)^T / sqrt(hidden) of the logit heads k, softmax heads h and value heads v:

        out = sum_v (sum_h P_w[h, v] softmax(sum_k P_l[k, h] J_k; mask)) x W_V,v W_O,v

    The mask is applied after the mixing of logits. Merged, the attention has the softmax heads, whose query-key
    matrices have ranks up to logit_heads * hidden. The parameters are `query`, `key` (logit_heads, d_in, hidden),
    `value` (value_heads, d_in, hidden), `output` (value_heads, hidden, d_out), `mix_logits` P_l (logit_heads, heads)
    and `mix_weights` P_w (heads, value_heads). See `slth.attention.base.Attention` for the common options.

    Args:
        logit_heads: number of heads of queries and keys; None: `heads`.
        value_heads: number of heads of values; None: `heads`.
        mixing_init: the initialisation of P_l and P_w. "natural" and "random": normal with variance 1 / fan_in, as in
            the paper (which truncates the tails; ours end at 6.4 standard deviations); "identity": torch.eye, which is
            multi-head attention if all numbers of heads are equal; "identity_plus_random": a random matrix is added to
            torch.eye, a constant that is never masked; "theory": uniform on (-1, 1).

    Raises:
        ValueError: as the base class, and for values outside the above.
    """

    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    mix_logits: nn.Parameter
    mix_weights: nn.Parameter
    facts = Facts(
        roles=MULTI_HEAD | {"mix_logits": "heads", "mix_weights": "heads"},
        constructible="the logits and weights of several heads are mixed, so no factor is one head's own",
        mixing_inits=(*MIXING_INITS, "identity"),
    )

    def __init__(
        self,
        d_in: int,
        d_out: int,
        heads: int,
        hidden: int,
        *,
        logit_heads: int | None = None,
        value_heads: int | None = None,
        mixing_init: str = "natural",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(d_in, d_out, heads, hidden, **options)
        self.logit_heads = self.heads if logit_heads is None else as_int("logit_heads", logit_heads, 1)
        self.value_heads = self.heads if value_heads is None else as_int("value_heads", value_heads, 1)
        self._check_mixing_init(mixing_init)
        for role in ("query", "key"):
            self._add(role, (self.logit_heads, self.d_in, self.hidden))
        self._add("value", (self.value_heads, self.d_in, self.hidden))
        self._add("output", (self.value_heads, self.hidden, self.d_out))
        self._add_heads_mixing("mix_logits", self.logit_heads, self.heads, mixing_init)
        self._add_heads_mixing("mix_weights", self.heads, self.value_heads, mixing_init)

    def _add_heads_mixing(self, name: str, rows: int, columns: int, mixing_init: str) -> None:
        start = eye(rows, columns)
        if mixing_init == "identity":
            self._add_mixing(name, start, "natural")
        else:
            natural = recipes.Draw("normal", rows**-0.5, self.seed, self.prefix + name)
            self._add_mixing(name, start, mixing_init, natural)

    def _stored(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._rotated(self._normed(x @ self.key), positions), x @ self.value

    def _keys_values(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = stored  # (..., logit_heads, T, hidden), (..., value_heads, T, hidden)
        return k, v

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool = False
    ) -> torch.Tensor:
        if causal:
            mask = causal_mask(mask, q.shape[-2], k.shape[-2], q.device)
        elif mask is not None:
            mask = check_mask(mask, q.shape[-2], k.shape[-2])
        logits = _across_heads(q @ k.mT, self._mixing("mix_logits"))  # (..., heads, T, T)
        if mask is None:
            weights = logits.softmax(-1)
        else:
            weights = masked_softmax(logits, mask.unsqueeze(-3) if mask.dim() > 2 else mask)  # the same for all heads
        return _across_heads(weights, self._mixing("mix_weights")) @ v  # (..., value_heads, T, hidden)

    def _merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrices of the softmax heads: sums over the logit heads and over the value heads."""
        qk, vo = super()._merged()
        return _across_heads(qk, self._mixing("mix_logits")), _across_heads(vo, self._mixing("mix_weights").mT)

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute forward head by head from the formula. Needs O(heads T^2) memory."""
        self._check(x)
        mask = self._mask(x, mask)
        positions = torch.arange(x.shape[-2], device=x.device)
        logits = []
        for query, key in zip(self.query, self.key, strict=True):
            q, k = (self._rotated(self._normed(x @ weight), positions) for weight in (query, key))
            logits.append(q @ k.mT / math.sqrt(self.hidden))
        p_l, p_w = self._mixing("mix_logits"), self._mixing("mix_weights")
        weights = []
        for h in range(self.heads):
            mixed = sum((p_l[i, h] * logit for i, logit in enumerate(logits)), start=x.new_zeros(()))
            weights.append(mixed.softmax(-1) if mask is None else masked_softmax(mixed, mask))
        out = x.new_zeros(())
        for i, (value, output) in enumerate(zip(self.value, self.output, strict=True)):
            mixed = sum((p_w[h, i] * weight for h, weight in enumerate(weights)), start=x.new_zeros(()))
            out = out + mixed @ x @ value @ output
        return out


def _across_heads(x: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """Mix heads: x (..., heads, a, b), mixing (heads, other heads) -> (..., other heads, a, b)."""
    mixed: torch.Tensor = (mixing.mT @ x.flatten(-2)).unflatten(-1, x.shape[-2:])
    return mixed
