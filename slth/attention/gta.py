"""Grouped-tied attention (GTA, arXiv 2505.21487): one projection, shared by a group of heads, is both key and value.

With rope, only the second half of a query is rotated; its counterpart is a separate rotary key, one head shared by all.
Without rope the whole tied projection is key and value. In the published code the projection of the rotary key has a
bias; here it has none.
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
    """Grouped-tied attention: sum_h softmax(q_h k_g^T / sqrt(hidden); mask) v_g W_O,h.

    Here g = floor(h kv_heads / heads) and v_g = x W_KV,g. Without rope k_g = v_g. With rope
    q_h = [first half | RoPE(second half)] of x W_Q,h and k_g = [first half of v_g | RoPE(x W_R)].

    The parameters are `query` (heads, d_in, hidden), `key_value` (kv_heads, d_in, hidden), with rope `key_rope`
    (d_in, hidden / 2), and `output` (heads, hidden, d_out). Inits that differ for keys and values treat `key_value` as
    a key. The cache for decoding holds v_g and the rotated x W_R.

    Options and errors are those of :class:`slth.attention.gqa.GroupedAttention`. Also raises ValueError if hidden is
    not divisible by 4 with rope.
    """

    key_value: nn.Parameter
    key_rope: nn.Parameter
    facts = Facts(
        roles={"query": "query", "key_value": "key", "key_rope": "key", "output": "output"},
        constructible=True,
        qk_norm=False,
        rope_step=4,  # rope rotates pairs of columns in one half
        grouped=True,
    )

    def _draw(self, widths: Mapping[str, int]) -> None:
        self._add("query", (self.heads, self.d_in, widths.get("query", self.hidden)))
        self._add("key_value", (self.kv_heads, self.d_in, widths.get("key_value", self.hidden)))
        if self.rope:
            self._add("key_rope", (self.d_in, self.hidden // 2))
        self._add("output", (self.heads, self.hidden, self.d_out))

    def _rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotate the second half of queries (..., T, hidden) by positions (T,) if `rope`."""
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
        """Compute forward head by head from the formula."""
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
