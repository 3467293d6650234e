"""Multi-head attention as in arXiv 2511.04217, section 3: no biases, scale 1/sqrt(query width)."""

from __future__ import annotations

import math
from typing import Never

import torch
from torch import nn

from slth.attention.arguments import check_known, check_tokens
from slth.attention.functional import attend
from slth.numbers import as_int
from slth.weights import inits, recipes

ROLES = ("query", "key", "value", "output")


class MultiHeadAttention(nn.Module):
    """Multi-head attention without biases: out = sum_h softmax(x W_Q,h (x W_K,h)^T / sqrt(n_K); mask) x W_V,h W_O,h.

    Parameters `query`, `key` (heads, d_in, hidden_qk), `value` (heads, d_in, hidden_vo), `output`
    (heads, hidden_vo, d_out) come from `slth.weights.inits` under the names prefix + role; `hidden_qk` and `hidden_vo`
    default to `hidden`. They are drawn in float32 and widened where dtype is float64. Buffers `scale_qk`, `scale_vo`
    (heads,) multiply each head's logits and values: 1 unless a construction records other scales. Raises ValueError for
    a dimension below 1, an unknown init or option, or a dtype other than float32 and float64.
    """

    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    output: nn.Parameter
    scale_qk: torch.Tensor
    scale_vo: torch.Tensor
    inputs_first = True  # weights are (heads, in, out)

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
        super().__init__()
        check_known(self, unknown, "; slth.attention.ATTENTIONS['mha'] has causal, rope and qk_norm")
        self.d_in, self.d_out, self.heads = (
            as_int("d_in", d_in, 1),
            as_int("d_out", d_out, 1),
            as_int("heads", heads, 1),
        )
        hidden = as_int("hidden", hidden, 1)
        self.hidden_qk = hidden if hidden_qk is None else as_int("hidden_qk", hidden_qk, 1)
        self.hidden_vo = hidden if hidden_vo is None else as_int("hidden_vo", hidden_vo, 1)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: must be torch.float32 or torch.float64")
        for role in ROLES:
            recipe = self._recipe(role, init, seed, prefix)
            setattr(self, role, nn.Parameter(recipe.tensor(self._shape(role)).to(dtype)))
            recipes.remember(self, role, recipe)
        for name in ("scale_qk", "scale_vo"):
            self.register_buffer(name, torch.ones(self.heads, dtype=dtype, device="cpu"))

    def _shape(self, role: str) -> tuple[int, int, int]:
        width = self.hidden_qk if role in ("query", "key") else self.hidden_vo
        rows, columns = (width, self.d_out) if role == "output" else (self.d_in, width)
        return self.heads, rows, columns

    def _recipe(self, role: str, init: str, seed: int, prefix: str) -> recipes.Recipe:
        _, rows, columns = self._shape(role)
        width = rows if role == "output" else columns
        fan = inits.Fan(fan_in=rows, fan_out=columns, width=width, role=role)
        return recipes.Recipe((recipes.draw(init, fan, seed=seed, name=prefix + role),))

    def extra_repr(self) -> str:
        """Dimensions, for print(module)."""
        return (
            f"d_in={self.d_in}, d_out={self.d_out}, heads={self.heads}, "
            f"hidden_qk={self.hidden_qk}, hidden_vo={self.hidden_vo}"
        )

    def merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(W_QK, W_VO): W_Q W_K^T / sqrt(n_K) (heads, d_in, d_in) and W_V W_O (heads, d_in, d_out), with the scales."""
        return self._merged_qk(), self._merged_vo()

    def _merged_qk(self) -> torch.Tensor:
        return (self.query @ self.key.mT) * self._logit_scale()

    def _merged_vo(self) -> torch.Tensor:
        return (self.value @ self.output) * self.scale_vo[:, None, None]

    def _logit_scale(self) -> torch.Tensor:
        return (self.scale_qk / math.sqrt(self.hidden_qk))[:, None, None]

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """X (..., T, d_in), mask bool broadcastable to (..., T, T), True = attend -> (..., T, d_out).

        A pair of factors wider than d_in is merged first: the same function at 1 / (hidden / d_in) of the work.
        Raises ValueError for a mask row with no True that is not padding, or inputs of another width or dtype.
        """
        check_tokens(self, x, self.d_in)
        x = x.unsqueeze(-3)  # (..., 1, T, d_in)
        if self.hidden_qk > self.d_in:
            q, k = x @ self._merged_qk(), x  # (..., heads, T, d_in), (..., 1, T, d_in)
        else:
            q, k = (x @ self.query) * self._logit_scale(), x @ self.key  # (..., heads, T, hidden_qk)
        if self.hidden_vo > self.d_in:
            return attend(q, k, x @ self._merged_vo(), mask).sum(dim=-3)
        heads = attend(q, k, x @ self.value, mask) * self.scale_vo[:, None, None]  # (..., heads, T, hidden_vo)
        return (heads @ self.output).sum(dim=-3)
