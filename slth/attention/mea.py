"""Multi-head explicit attention (MEA, arXiv 2601.19611): key and value heads are linear mixtures of component heads.

Head-level linear composition (eq. 10) computes the key and value heads j from component heads a:
K_j = sum_a K'_a W^K_aj and V_j = sum_a V'_a W^V_aj. Then (eq. 12) C_h = softmax(phi(Q_h) phi(K_j)^T / sqrt(hidden)) V_j
with the rotary positions phi, and out = sum_h RMSNorm(C_h) W_O,h. As rotations commute with the composition, the cache
for decoding holds the rotated components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn

from slth.attention.arguments import check_groups
from slth.attention.base import Options
from slth.attention.facts import MIXING_INITS, MULTI_HEAD, Facts
from slth.attention.functional import NORM_EPS, repeat_heads, rms_norm, softmax_head
from slth.attention.softmax import SoftmaxAttention
from slth.numbers import as_int


class MultiheadExplicitAttention(SoftmaxAttention):
    """MEA on grouped-query attention: `components` key and value heads are mixed to `kv_heads` heads.

    The parameters are `query` (heads, d_in, hidden), `key`, `value` (components, d_in, hidden), `mix_key`, `mix_value`
    (components, kv_heads), and `output` (heads, hidden, d_out). A QK-norm is applied after the mixing.

    Args:
        kv_heads: number of key and value heads; None: `heads`.
        components: number of component heads; None: `kv_heads`.
        norm: whether each head's output is normalised to RMS 1 (eps 1e-5, without learned parameters), instead of the
            paper's GroupNorm.
        mixing_init: one of `slth.attention.MIXING_INITS`. The paper does not specify an initialisation; "natural" is
            the identity, repeated along the longer side, so that no row or column is empty.

    Other options and errors are those of :class:`slth.attention.base.Attention`. Also raises ValueError if kv_heads
    does not divide heads, for components below 1, and for another mixing_init.
    """

    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    mix_key: nn.Parameter
    mix_value: nn.Parameter
    facts = Facts(
        roles=MULTI_HEAD | {"mix_key": "heads", "mix_value": "heads"},
        constructible=True,
        norm="norm",
        mixing_inits=MIXING_INITS,
    )

    def __init__(
        self,
        d_in: int,
        d_out: int,
        heads: int,
        hidden: int,
        *,
        kv_heads: int | None = None,
        components: int | None = None,
        norm: bool = True,
        mixing_init: str = "natural",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(d_in, d_out, heads, hidden, **options)
        self.kv_heads = check_groups(self.heads, kv_heads)
        self.components = self.kv_heads if components is None else as_int("components", components, 1)
        self._check_mixing_init(mixing_init)
        self.norm = bool(norm)
        self._add("query", (self.heads, self.d_in, self.hidden))
        self._add("key", (self.components, self.d_in, self.hidden))
        self._add("value", (self.components, self.d_in, self.hidden))
        self._add("output", (self.heads, self.hidden, self.d_out))
        for name in ("mix_key", "mix_value"):
            self._add_mixing(name, _identity(self.components, self.kv_heads), mixing_init)

    def _stored(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = self._rotated(self._project(x, "key"), positions)
        return key, self._project(x, "value")  # (..., components, T, hidden) both

    def _keys_values(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = (
            torch.einsum("...atn,ag->...gtn", component, self._mixing(name))  # (..., kv_heads, T, hidden)
            for component, name in zip(stored, ("mix_key", "mix_value"), strict=True)
        )
        k, v = (repeat_heads(heads, self.heads) for heads in mixed)
        return self._normed(k), v  # after the rotation, which does not change norms

    def _output(self, heads: torch.Tensor) -> torch.Tensor:
        return super()._output(rms_norm(heads) if self.norm else heads)

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute forward head by head from the formula."""
        self._check(x)
        mask = self._mask(x, mask)
        positions = torch.arange(x.shape[-2], device=x.device)
        out = torch.zeros(self.d_out, dtype=x.dtype, device=x.device)
        for head in range(self.heads):
            group = head * self.kv_heads // self.heads
            k, v = torch.zeros_like(x @ self.key[0]), torch.zeros_like(x @ self.value[0])
            for a in range(self.components):
                k = k + (x @ self.key[a]) * self._mixing("mix_key")[a, group]
                v = v + (x @ self.value[a]) * self._mixing("mix_value")[a, group]
            q, k = (self._rotated(self._normed(tokens), positions) for tokens in (x @ self.query[head], k))
            attended = softmax_head(q / math.sqrt(self.hidden), k, v, mask)
            if self.norm:
                attended = attended / (attended.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
            out = out + attended @ self.output[head]
        return out

    # ------------------------------------------------------------ fewer components

    @property
    def cache_bytes(self) -> int:
        """Bytes per token in the cache for decoding."""
        return 2 * self.components * self.hidden * self.output.element_size()

    @torch.no_grad()
    def compress(self, heads: int) -> Compressed:
        """Approximate this attention with fewer component heads, by the SVD of its composite keys and values.

        The weights of the kv_heads composite heads, one column (d_in * hidden,) each, are U S V. The first `heads`
        columns of U become the components, and the first rows of S V their mixing. This approximation is the best in
        the Frobenius norm, and exact if the rank is at most `heads`. If the mixing is the identity, it is the paper's
        method. Raises ValueError unless 1 <= heads <= the number of singular values, which is at most the number of
        components and kv_heads.
        """
        most = min(self.components, self.kv_heads, self.d_in * self.hidden)
        heads = as_int("heads", heads, 1, most, f"for kv_heads={self.kv_heads}")
        module = MultiheadExplicitAttention(
            self.d_in,
            self.d_out,
            self.heads,
            self.hidden,
            kv_heads=self.kv_heads,
            components=heads,
            norm=self.norm,
            **self.options(),
        ).to(self.output.device)
        module.query.copy_(self.query)
        module.output.copy_(self.output)
        lost_key, lost_value = (
            _fewer(getattr(self, role), self._mixing(mix), getattr(module, role), getattr(module, mix))
            for role, mix in (("key", "mix_key"), ("value", "mix_value"))
        )
        return Compressed(module, self.cache_bytes, module.cache_bytes, lost_key, lost_value)

    def extra_repr(self) -> str:
        """Return sizes and options that are on, for print(module)."""
        own = f"kv_heads={self.kv_heads}, components={self.components}, norm={self.norm}"
        return f"{super().extra_repr()}, {own}"


@dataclass(frozen=True)
class Compressed:
    """The result of :meth:`MultiheadExplicitAttention.compress`.

    bytes_before, bytes_after: of the cache, per token. lost_key, lost_value: relative error of the weights of the
    composite heads in the Frobenius norm, in [0, 1].
    """

    module: MultiheadExplicitAttention
    bytes_before: int
    bytes_after: int
    lost_key: float
    lost_value: float


def _identity(components: int, heads: int) -> torch.Tensor:
    """Ones at (a, j) if a = j modulo the shorter side, so that each component is used and each head has one."""
    shorter = min(components, heads)
    component, head = (torch.arange(count, device="cpu") % shorter for count in (components, heads))
    return (component[:, None] == head).float()


def _fewer(weight: torch.Tensor, mixing: torch.Tensor, components: torch.Tensor, mixed_by: torch.Tensor) -> float:
    """Write the best components (r, d_in, hidden) and their mixing (r, kv_heads); return the relative error."""
    columns = weight.double().flatten(1).T @ mixing.double()  # (d_in * hidden, kv_heads)
    u, s, v = torch.linalg.svd(columns, full_matrices=False)
    r = len(components)
    components.copy_(u[:, :r].T.reshape(components.shape))
    mixed_by.copy_(s[:r, None] * v[:r])
    norm = float(torch.linalg.vector_norm(s))
    return float(torch.linalg.vector_norm(s[r:])) / norm if norm else 0.0
