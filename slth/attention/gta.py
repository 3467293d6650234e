"""Grouped-tied attention (GTA, arXiv 2505.21487): one projection is key and value at once, shared by a group of heads.

With rotary positions, these turn but half of a query's columns; the other factor there is a key of its own, of one
head for all. Without them the whole tied projection is key and value. The published code gives the rotary key's
projection a bias; here is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from slth.attention.facts import Facts
from slth.attention.functional import repeat_heads, softmax_head
from slth.attention.gqa import GroupedAttention
from slth.attention.positions import rope


class GroupedTiedAttention(GroupedAttention):
    """out = sum_h softmax(q_h k_g^T / sqrt(hidden); mask) v_g W_O,h with g = floor(h kv_heads / heads), v_g = x W_KV,g.

    Without rope k_g = v_g; with it q_h = [first half | RoPE(second half)] of x W_Q,h and
    k_g = [first half of v_g | RoPE(x W_R)]. Parameters `query` (heads, d_in, hidden), `key_value`
    (kv_heads, d_in, hidden), with rope `key_rope` (d_in, hidden / 2), and `output` (heads, hidden, d_out). An init that
    tells queries and keys from values takes the tied ones for keys. A decoder keeps v_g and the turned x W_R. Options
    and errors as in :class:`slth.attention.gqa.GroupedAttention`; ValueError as well where hidden is not divisible by
    4 with rope.
    """

    key_value: nn.Parameter
    key_rope: nn.Parameter
    facts = Facts(
        roles={"query": "query", "key_value": "key", "key_rope": "key", "output": "output"},
        constructible=True,
        qk_norm=False,
        rope_step=4,  # positions turn pairs of one half
        grouped=True,
    )

    def _draw(self, widths: Mapping[str, int]) -> None:
        self._add("query", (self.heads, self.d_in, widths.get("query", self.hidden)))
        self._add("key_value", (self.kv_heads, self.d_in, widths.get("key_value", self.hidden)))
        if self.rope:
            self._add("key_rope", (self.d_in, self.hidden // 2))
        self._add("output", (self.heads, self.hidden, self.d_out))

    def _rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Queries (..., T, hidden), their second half turned by positions (T,) where rope says so."""
        if not self.rope:
            return x
        still, turned = x.chunk(2, dim=-1)
        return torch.cat((still, rope(turned, positions)), dim=-1)

    def _stored(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tied = self._project(x, "key_value")  # (..., kv_heads, T, hidden)
        if not self.rope:
            return (tied,)
        return tied, rope(self._project(x, "key_rope"), positions)  # the second (..., 1, T, hidden / 2)

    def _keys_values(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        v = repeat_heads(stored[0], self.heads)
        if not self.rope:
            return v, v
        still, turned = v.chunk(2, dim=-1)[0], stored[1]
        return torch.cat((still, turned.expand(still.shape)), dim=-1), v

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """What forward computes, head by head as the formula has it."""
        self._check(x)
        mask = self._mask(x, mask)
        positions = torch.arange(x.shape[-2], device=x.device)
        half = self.hidden // 2
        out = torch.zeros(self.d_out, dtype=x.dtype, device=x.device)
        for head in range(self.heads):
            q = self._of_head(x, "query", head)
            k = v = self._of_head(x, "key_value", self._group(head))
            if self.rope:
                q = torch.cat((q[..., :half], rope(q[..., half:], positions)), dim=-1)
                k = torch.cat((v[..., :half], rope(x @ self.key_rope, positions)), dim=-1)
            out = out + softmax_head(q / math.sqrt(self.hidden), k, v, mask) @ self.output[head]
        return out
