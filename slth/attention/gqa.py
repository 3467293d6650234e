"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): several query heads share a key and value head.

With as many key and value heads as query heads this is multi-head attention; with a single key and value head it is
multi-query attention (Shazeer 2019, arXiv 1911.02150).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import nn

from slth.attention.arguments import check_groups
from slth.attention.base import Options
from slth.attention.facts import MULTI_HEAD, Facts
from slth.attention.functional import repeat_heads, softmax_head
from slth.attention.softmax import SoftmaxAttention


class GroupedAttention(SoftmaxAttention):
    """An attention whose `kv_heads` key and value heads each serve a group of neighbouring query heads.

    Args:
        kv_heads: number of key and value heads; None: `heads`.
        widths: the widths of projections by name, default hidden, for a subclass that maps a projection to hidden.

    Other options and errors are those of :class:`slth.attention.base.Attention`. Also raises ValueError if kv_heads
    does not divide heads.
    """

    query: nn.Parameter

    def __init__(
        self,
        d_in: int,
        d_out: int,
        heads: int,
        hidden: int,
        *,
        kv_heads: int | None = None,
        widths: Mapping[str, int] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(d_in, d_out, heads, hidden, **options)
        self.kv_heads = check_groups(self.heads, kv_heads)
        self._draw(widths or {})

    def _draw(self, widths: Mapping[str, int]) -> None:
        """Add the parameters."""
        raise NotImplementedError

    def _group(self, head: int) -> int:
        """The key and value head that serves a query head."""
        return head * self.kv_heads // self.heads

    def _of_head(self, x: torch.Tensor, role: str, head: int) -> torch.Tensor:
        """Project x (..., T, d_in) to (..., T, hidden) for one head, for the reference."""
        weight: torch.Tensor = getattr(self, role)
        return x @ weight[head]

    def extra_repr(self) -> str:
        """Return sizes and options that are on, for print(module)."""
        return f"{super().extra_repr()}, kv_heads={self.kv_heads}"


class GroupedQueryAttention(GroupedAttention):
    """Grouped-query attention: sum_h softmax(q_h k_g^T / sqrt(hidden); mask) v_g W_O,h, g = floor(h kv_heads / heads).

    The parameters are `query` (heads, d_in, hidden), `key`, `value` (kv_heads, d_in, hidden) and `output` (heads,
    hidden, d_out). With kv_heads = heads, the default, parameters and outputs are those of
    :class:`slth.attention.MultiHeadAttention`. Queries and keys are normalised (qk_norm) and then rotated (rope), if
    these options are on. Options and errors are those of :class:`GroupedAttention`.
    """

    key: nn.Parameter
    value: nn.Parameter
    facts = Facts(roles=MULTI_HEAD, constructible=True, grouped=True, matrix=True)

    def _draw(self, widths: Mapping[str, int]) -> None:
        for role, count in (("query", self.heads), ("key", self.kv_heads), ("value", self.kv_heads)):
            self._add(role, (count, self.d_in, widths.get(role, self.hidden)))
        self._add("output", (self.heads, self.hidden, self.d_out))

    def _stored(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = self._rotated(self._normed(self._project(x, "key")), positions)
        return key, self._project(x, "value")  # (..., kv_heads, T, hidden) both

    def effective_matrix(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the attention weights of x (..., T, d_in): (..., heads, T, T), with rows that sum to 1.

        Needs O(T^2) memory. Raises ValueError as forward does, and for a subclass without matrix=True in its facts.
        """
        if not self.facts.matrix:
            raise ValueError(f"{type(self).__name__}.effective_matrix: its facts must have matrix=True")
        self._check(x)
        mask, x, positions = self._mask(x, None), x.unsqueeze(-3), torch.arange(x.shape[-2], device=x.device)
        q, k = (self._rotated(self._normed(self._project(x, role)), positions) for role in ("query", "key"))
        logits = q @ repeat_heads(k, self.heads).mT / math.sqrt(self.hidden)
        return (logits if mask is None else logits.masked_fill(~mask, -math.inf)).softmax(-1)

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute forward head by head from the formula."""
        self._check(x)
        mask = self._mask(x, mask)
        positions = torch.arange(x.shape[-2], device=x.device)
        out = torch.zeros(self.d_out, dtype=x.dtype, device=x.device)
        for head in range(self.heads):
            q = self._rotated(self._normed(self._of_head(x, "query", head)), positions)
            k = self._rotated(self._normed(self._of_head(x, "key", self._group(head))), positions)
            v = self._of_head(x, "value", self._group(head))
            out = out + softmax_head(q / math.sqrt(self.hidden), k, v, mask) @ self.output[head]
        return out


class MultiQueryAttention(GroupedQueryAttention):
    """Grouped-query attention with a single key and value head; other options and errors are the same."""

    facts = replace(GroupedQueryAttention.facts, grouped=False)

    def __init__(self, d_in: int, d_out: int, heads: int, hidden: int, **options: Any) -> None:
        if options.setdefault("kv_heads", 1) != 1:
            raise ValueError(f"kv_heads={options['kv_heads']}: must be 1, which makes it multi-query attention")
        super().__init__(d_in, d_out, heads, hidden, **options)
