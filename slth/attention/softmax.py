"""An attention that ends in softmax(q k^T) v: forward pass, decoding and merged matrices from a few small methods."""

from __future__ import annotations

import math

import torch

from slth.attention.base import Attention
from slth.attention.cache import KVCache
from slth.attention.functional import attend, merged_attention, repeat_heads


class SoftmaxAttention(Attention):
    """An attention that ends in softmax(q k^T; mask) v for heads side by side.

    A subclass has parameters `query` (heads, d_in, n) and `output` (heads, m, d_out), and says what of the tokens is
    kept for decoding (:meth:`_stored`) and how that becomes keys and values (:meth:`_keys_values`).
    """

    def _weight(self, role: str) -> torch.Tensor:
        """The matrices (some heads, d_in, n) of a projection."""
        weight: torch.Tensor = getattr(self, role)
        return weight

    def _project(self, x: torch.Tensor, role: str) -> torch.Tensor:
        """X (..., 1, T, d_in) -> (..., some heads, T, n), before norms and positions."""
        return x @ self._weight(role)

    def _queries(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """X (..., 1, T, d_in), positions (T,) -> queries (..., heads, T, n), the scale 1 / sqrt(n) in them."""
        return self._rotated(self._normed(self._project(x, "query")), positions) / math.sqrt(self.hidden)

    def _stored(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """X (..., 1, T, d_in), positions (T,) -> what decoding keeps: tensors (..., some heads, T, width)."""
        raise NotImplementedError

    def _keys_values(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is kept -> keys (..., heads or 1, T, n), values (..., heads or 1, T, m)."""
        k, v = (repeat_heads(tensor, self.heads) for tensor in stored)
        return k, v

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool = False
    ) -> torch.Tensor:
        """Queries, keys, values -> (..., heads, T, m); causal: queries are the last of the keys."""
        return attend(q, k, v, mask, causal)

    def _output(self, heads: torch.Tensor) -> torch.Tensor:
        """Heads (..., heads, T, m) -> (..., T, d_out)."""
        return (heads @ self.output).sum(dim=-3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """X (..., T, d_in), mask bool broadcastable to (..., T, T), True = attend -> (..., T, d_out).

        Factors wider than d_in are merged first where nothing stands between them: the same function for less work.
        Raises ValueError for a mask row with no True (after the causal mask) that is not padding, or inputs of another
        width or dtype.
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
        """An empty cache for :meth:`step`. Raises ValueError unless causal."""
        self._check_decoding()
        return KVCache()

    def step(self, x: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """The next tokens (..., t, d_in), one or more -> (..., t, d_out), as forward has them after those in cache.

        They are added to cache in place. Raises ValueError for inputs of another width or batch.
        """
        self._check(x)
        x = x.unsqueeze(-3)
        new, past = x.shape[-2], cache.length
        positions = torch.arange(past, past + new, device=x.device)
        k, v = self._keys_values(cache.append(self._stored(x, positions)))
        q = self._queries(x, positions)
        return self._output(self._attend(q, k, v, None, causal=new > 1))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(W_Q, W_K, W_V, W_O) of each head, of which :meth:`merged` has the products W_Q W_K^T and W_V W_O.

        W_Q (heads, d_in, n) with 1 / sqrt(n) in it, W_K (heads or 1, d_in, n), W_V (heads or 1, d_in, m), W_O (heads,
        m, d_out): 1 where all heads share one. Where logits or weights of several heads are mixed, the heads are those
        before that. Raises ValueError as merged does.
        """
        self._check_merging()
        x = torch.eye(self.d_in, dtype=self.output.dtype, device=self.output.device)[None]  # all maps are linear in x
        positions = torch.zeros(self.d_in, dtype=torch.long, device=x.device)
        key, value = self._keys_values(self._stored(x, positions))
        return self._queries(x, positions), key, value, self.output

    def _merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value, output = self.factors()
        return query @ key.mT, value @ output
