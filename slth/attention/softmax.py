"""Attentions that end in softmax(q k^T) v: forward pass, decoding and merged matrices from a few small methods."""

from __future__ import annotations

import math

import torch

from slth.attention.base import Attention
from slth.attention.cache import KVCache
from slth.attention.functional import attend, merged_attention, repeat_heads


class SoftmaxAttention(Attention):
    """An attention that ends in softmax(q k^T; mask) v for several heads.

    A subclass has parameters `query` (heads, d_in, n) and `output` (heads, m, d_out). It defines the tensors cached for
    decoding (:meth:`_stored`) and computes keys and values from them (:meth:`_keys_values`).
    """

    def _weight(self, role: str) -> torch.Tensor:
        """The matrices (h, d_in, n) of a projection, h its number of heads."""
        weight: torch.Tensor = getattr(self, role)
        return weight

    def _project(self, x: torch.Tensor, role: str) -> torch.Tensor:
        """Project x (..., 1, T, d_in) to (..., h, T, n), before norms and positions; h: heads of the projection."""
        return x @ self._weight(role)

    def _queries(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Compute queries (..., heads, T, n), including 1 / sqrt(n), from x (..., 1, T, d_in) and positions (T,)."""
        return self._rotated(self._normed(self._project(x, "query")), positions) / math.sqrt(self.hidden)

    def _stored(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the cached tensors (..., h, T, width), of any h, from x (..., 1, T, d_in) and positions (T,)."""
        raise NotImplementedError

    def _keys_values(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute keys (..., heads or 1, T, n) and values (..., heads or 1, T, m) from the cached tensors."""
        k, v = (repeat_heads(tensor, self.heads) for tensor in stored)
        return k, v

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool = False
    ) -> torch.Tensor:
        """Attend: returns (..., heads, T, m). If causal, the queries are the last of the tokens."""
        return attend(q, k, v, mask, causal)

    def _output(self, heads: torch.Tensor) -> torch.Tensor:
        """Map heads (..., heads, T, m) to (..., T, d_out)."""
        return (heads @ self.output).sum(dim=-3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map tokens x (..., T, d_in) to (..., T, d_out); mask: bool broadcastable to (..., T, T), True = attend.

        Factors wider than d_in are merged first if possible: the same function for less work. Raises ValueError for a
        mask row without True (after the causal mask) that is not padding, and inputs of another width or dtype.
        """
        self._check(x)
        if self.hidden > self.d_in and not self.obstacles():
            return merged_attention(x, *self.merged(), mask, self.causal)
        x = x.unsqueeze(-3)  # (..., 1, T, d_in), shared by the heads
        positions = torch.arange(x.shape[-2], device=x.device)
        k, v = self._keys_values(self._stored(x, positions))
        q = self._queries(x, positions)
        return self._output(self._attend(q, k, v, mask, self.causal))

    def start(self) -> KVCache:
        """Return an empty cache for :meth:`step`. Raises ValueError unless causal."""
        self._check_decoding()
        return KVCache()

    def step(self, x: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Map the next t tokens (..., t, d_in) to their outputs (..., t, d_out), and add them to the cache in place.

        Raises ValueError for inputs of another width or batch shape.
        """
        self._check(x)
        x = x.unsqueeze(-3)
        new, past = x.shape[-2], cache.length
        positions = torch.arange(past, past + new, device=x.device)
        k, v = self._keys_values(cache.append(self._stored(x, positions)))
        q = self._queries(x, positions)
        return self._output(self._attend(q, k, v, None, causal=new > 1))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the factors (W_Q, W_K, W_V, W_O), whose products W_Q W_K^T and W_V W_O :meth:`merged` returns.

        They are W_Q (heads, d_in, n), including 1 / sqrt(n), W_K (heads or 1, d_in, n), W_V (heads or 1, d_in, m) and
        W_O (heads, m, d_out), with 1 if all heads share a factor. In a mechanism that mixes logits or weights of
        several heads, the heads are those before the mixing. Raises ValueError as merged does.
        """
        self._check_merging()
        x = torch.eye(self.d_in, dtype=self.output.dtype, device=self.output.device)[None]  # all maps are linear in x
        positions = torch.zeros(self.d_in, dtype=torch.long, device=x.device)
        key, value = self._keys_values(self._stored(x, positions))
        return self._queries(x, positions), key, value, self.output

    def _merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value, output = self.factors()
        return query @ key.mT, value @ output
