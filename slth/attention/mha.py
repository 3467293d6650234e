"""Multi-head attention as in arXiv 2511.04217, section 3: without biases, with scale 1/sqrt(query width)."""

from __future__ import annotations

import math
from typing import Never

import torch
from torch import nn

from slth.attention.arguments import check_known
from slth.attention.base import Attention
from slth.attention.facts import MULTI_HEAD, Facts
from slth.attention.functional import attend, softmax_head
from slth.numbers import as_int


class MultiHeadAttention(Attention):
    """Multi-head attention without biases: out = sum_h softmax(x W_Q,h (x W_K,h)^T / sqrt(n_K); mask) x W_V,h W_O,h.

    The parameters are `query`, `key` (heads, d_in, hidden_qk), `value` (heads, d_in, hidden_vo) and `output` (heads,
    hidden_vo, d_out); `hidden_qk` and `hidden_vo` default to `hidden`. The buffers `scale_qk`, `scale_vo` (heads,)
    multiply each head's logits and values; they are 1 unless a construction sets them. Other options and errors are
    those of :class:`slth.attention.base.Attention`, without causal, rope and qk_norm. Also raises ValueError for a
    width below 1.
    """

    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    scale_qk: torch.Tensor
    scale_vo: torch.Tensor
    facts = Facts(
        roles=MULTI_HEAD,
        constructible="slth.construct.attention is what finds tickets in it",
        causal=False,
        rope=False,
        qk_norm=False,
    )

    def __init__(
        self,
        d_in: int,
        d_out: int,
        heads: int,
        hidden: int,
        *,
        hidden_qk: int | None = None,
        hidden_vo: int | None = None,
        init: str = "theory",
        seed: int = 0,
        prefix: str = "",
        dtype: torch.dtype = torch.float32,
        **unknown: Never,
    ) -> None:
        check_known(self, unknown, "; slth.attention.ATTENTIONS['mha'] has causal, rope and qk_norm")
        super().__init__(d_in, d_out, heads, hidden, init=init, seed=seed, prefix=prefix, dtype=dtype)
        self.hidden_qk = self.hidden if hidden_qk is None else as_int("hidden_qk", hidden_qk, 1)
        self.hidden_vo = self.hidden if hidden_vo is None else as_int("hidden_vo", hidden_vo, 1)
        for role, width in (("query", self.hidden_qk), ("key", self.hidden_qk), ("value", self.hidden_vo)):
            self._add(role, (self.heads, self.d_in, width))
        self._add("output", (self.heads, self.hidden_vo, self.d_out))
        for name in ("scale_qk", "scale_vo"):
            self.register_buffer(name, torch.ones(self.heads, dtype=dtype, device="cpu"))

    def extra_repr(self) -> str:
        """Return the sizes, for print(module)."""
        return (
            f"d_in={self.d_in}, d_out={self.d_out}, heads={self.heads}, "
            f"hidden_qk={self.hidden_qk}, hidden_vo={self.hidden_vo}"
        )

    def _merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """W_Q W_K^T / sqrt(n_K) and W_V W_O, including the scales."""
        return self._merged_qk(), self._merged_vo()

    def _merged_qk(self) -> torch.Tensor:
        return (self.query @ self.key.mT) * self._logit_scale()

    def _merged_vo(self) -> torch.Tensor:
        return (self.value @ self.output) * self.scale_vo[:, None, None]

    def _logit_scale(self) -> torch.Tensor:
        return (self.scale_qk / math.sqrt(self.hidden_qk))[:, None, None]

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map tokens x (..., T, d_in) to (..., T, d_out); mask: bool broadcastable to (..., T, T), True = attend.

        A pair of factors wider than d_in is merged first: the same function for d_in / hidden of the work. Raises
        ValueError for a mask row without True that is not padding, and inputs of another width or dtype.
        """
        self._check(x)
        x = x.unsqueeze(-3)  # (..., 1, T, d_in)
        if self.hidden_qk > self.d_in:
            q, k = x @ self._merged_qk(), x  # (..., heads, T, d_in), (..., 1, T, d_in)
        else:
            q, k = (x @ self.query) * self._logit_scale(), x @ self.key  # (..., heads, T, hidden_qk)
        if self.hidden_vo > self.d_in:
            return attend(q, k, x @ self._merged_vo(), mask).sum(dim=-3)
        heads = attend(q, k, x @ self.value, mask) * self.scale_vo[:, None, None]  # (..., heads, T, hidden_vo)
        return (heads @ self.output).sum(dim=-3)

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute forward head by head from the formula. Needs O(T^2) memory."""
        self._check(x)
        mask = self._mask(x, mask)
        out = x.new_zeros(self.d_out)
        for head in range(self.heads):
            q = (x @ self.query[head]) * (self.scale_qk[head] / math.sqrt(self.hidden_qk))
            attended = softmax_head(q, x @ self.key[head], x @ self.value[head], mask)
            out = out + (attended * self.scale_vo[head]) @ self.output[head]
        return out
