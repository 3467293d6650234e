"""Differential attention (Ye et al. 2024, arXiv 2410.05258): each head is the difference of two softmax attentions."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import nn

from slth.attention.base import Options
from slth.attention.facts import MULTI_HEAD, Facts
from slth.attention.functional import attend, rms_norm, softmax_head
from slth.attention.softmax import SoftmaxAttention
from slth.numbers import as_float, as_int
from slth.weights import recipes

VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def lambda_init(depth: int) -> float:
    """Return the initial lambda of layer `depth`, counted from 0: 0.8 - 0.6 exp(-0.3 depth), in [0.2, 0.8)."""
    return 0.8 - 0.6 * math.exp(-0.3 * depth)


class DifferentialAttention(SoftmaxAttention):
    """Attention by (softmax(Q1 K1^T / sqrt(w)) - lambda softmax(Q2 K2^T / sqrt(w))) V, w = hidden / 2.

    Q1 and Q2 are the first and second half of a head's query, K1 and K2 those of its key. Values have width `hidden`,
    so that there are as many weights as in multi-head attention. All heads of a layer share
    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init(depth). The output of each head is
    normalised to RMS 1, without learned parameters, and multiplied by 1 - lambda_init(depth).

    The parameters are `query`, `key`, `value` (heads, d_in, hidden), `output` (heads, hidden, d_out), and four vectors
    `lambda_*` (hidden / 2,), which `slth.wrap` masks only if they are named. See `slth.attention.base.Attention` for
    the common options; rope and qk_norm act on each half.

    Args:
        depth: index of the layer, from 0.
        norm: False omits the norm and its factor. The result is talking-heads attention with 2 * heads softmax heads
            (Kong et al. 2026, arXiv 2601.19611), which can be merged.
        lambda_std: standard deviation of the four vectors; with 0 they are 0, and lambda is exactly lambda_init(depth).

    Raises:
        ValueError: as the base class, for an odd `hidden` (with rope, one that is not divisible by 4), and for values
            outside the above.
    """

    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    lambda_q1: nn.Parameter
    lambda_k1: nn.Parameter
    lambda_q2: nn.Parameter
    lambda_k2: nn.Parameter
    facts = Facts(
        roles=MULTI_HEAD | dict.fromkeys(VECTORS, "vector"),
        constructible="two softmax maps share the values and outputs of a head, so no factor is one map's own",
        width_step=2,  # two halves
        rope_step=4,
        norm="norm",
    )

    def __init__(
        self,
        d_in: int,
        d_out: int,
        heads: int,
        hidden: int,
        *,
        depth: int = 0,
        norm: bool = True,
        lambda_std: float = 0.1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(d_in, d_out, heads, hidden, **options)
        self.depth, self.norm = as_int("depth", depth, 0), bool(norm)
        lambda_std = as_float("lambda_std", lambda_std, "[0, inf)")
        for role in ("query", "key", "value"):
            self._add(role, (self.heads, self.d_in, self.hidden))
        self._add("output", (self.heads, self.hidden, self.d_out))
        for name in VECTORS:
            self._add_vector(name, lambda_std)

    def _add_vector(self, name: str, std: float) -> None:
        shape = (self.hidden // 2,)
        if std == 0:
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=self.dtype, device="cpu")))
        else:
            self._put(name, shape, recipes.Draw("normal", std, self.seed, self.prefix + name))

    def lambda_(self) -> torch.Tensor:
        """Return the layer's lambda, a scalar tensor."""
        first, second = self.lambda_q1 @ self.lambda_k1, self.lambda_q2 @ self.lambda_k2
        return first.exp() - second.exp() + lambda_init(self.depth)

    def _halves(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Split queries or keys (..., heads, T, hidden) to (..., 2 heads, T, hidden / 2): halves of a head in turn."""
        halves = x.unflatten(-1, (2, -1)).movedim(-2, -3).flatten(-4, -3)
        return self._rotated(self._normed(halves), positions)

    def _queries(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._halves(x @ self.query, positions) / math.sqrt(self.hidden // 2)

    def _stored(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._halves(x @ self.key, positions), x @ self.value

    def _keys_values(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = stored  # (..., 2 heads, T, hidden / 2), (..., heads, T, hidden)
        return k, v

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool = False
    ) -> torch.Tensor:
        both = attend(q, k, v.repeat_interleave(2, dim=-3), mask, causal)  # (..., 2 heads, T, hidden)
        return self._after(both[..., 0::2, :, :] - self.lambda_() * both[..., 1::2, :, :])

    def _after(self, head: torch.Tensor) -> torch.Tensor:
        return rms_norm(head) * (1.0 - lambda_init(self.depth)) if self.norm else head

    def _merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrices of 2 * heads softmax heads: for each head W_VO and -lambda W_VO."""
        qk, vo = super()._merged()  # (2 heads, d_in, d_in), (heads, d_in, d_out)
        return qk, torch.stack((vo, -self.lambda_() * vo), dim=1).flatten(0, 1)

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute forward head by head from the formula. Needs O(T^2) memory."""
        self._check(x)
        mask = self._mask(x, mask)
        positions = torch.arange(x.shape[-2], device=x.device)
        out = x.new_zeros(())
        for query, key, value, output in zip(self.query, self.key, self.value, self.output, strict=True):
            v, maps = x @ value, []
            for q, k in zip((x @ query).chunk(2, dim=-1), (x @ key).chunk(2, dim=-1), strict=True):
                q, k = (self._rotated(self._normed(half), positions) for half in (q, k))
                maps.append(softmax_head(q / math.sqrt(self.hidden / 2), k, v, mask))
            out = out + self._after(maps[0] - self.lambda_() * maps[1]) @ output
        return out
