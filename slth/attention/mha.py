"""Multi-head attention as in arXiv 2511.04217, section 3: no biases, scale 1/sqrt(query width)."""

from __future__ import annotations

import math
from typing import Never

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from slth import kernels
from slth.attention.given import check_known, check_tokens
from slth.kernels.shapes import check_attending, is_of_pairs
from slth.numbers import as_int
from slth.weights import inits, recipes

ROLES = ("query", "key", "value", "output")


def fit_mask(mask: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """The mask with two axes or more. Raises ValueError unless it is bool and broadcasts to (..., queries, keys)."""
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"mask of type {type(mask).__name__}: must be a torch.Tensor of torch.bool, True = attend")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask of dtype {mask.dtype}: must be torch.bool, True = attend")
    mask = mask if mask.dim() > 1 else mask[None]
    if mask.shape[-2] not in (1, queries) or mask.shape[-1] not in (1, keys):
        raise ValueError(f"mask of shape {tuple(mask.shape)}: must end in {(queries, keys)} or broadcast to it")
    return mask


def check_mask(mask: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """The mask with two axes or more. Raises ValueError unless it fits and each query sees something or is padding.

    See `slth.kernels.attention` for how a mask says what is padding; what attends to nothing gets zeros.
    """
    mask = fit_mask(mask, queries, keys)
    if is_of_pairs(mask):
        check_attending(mask, queries, keys)
    return mask


def causal_mask(mask: torch.Tensor | None, queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Mask, or nothing, together with the causal one, where the queries are the last of the keys: bool.

    Query i attends to keys up to keys - queries + i. mask as in `slth.attention.attend`, its errors too.
    """
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if mask is None:
        return causal
    mask = fit_mask(mask, queries, keys)
    joint = mask & causal
    if is_of_pairs(mask):
        check_attending(joint, queries, keys)
    return joint


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False
) -> torch.Tensor:
    """softmax(q k^T; mask) v for heads side by side, the scale already in q.

    q, k (..., heads, T, n), v (..., heads, T, m), heads broadcast where one has a single head; mask bool,
    broadcastable to (..., T, T), the same for all heads; causal: the :func:`causal_mask`, too. Returns (..., heads, T,
    m). Padding (`slth.kernels.attention`) that attends to nothing gets zeros. Raises ValueError for another mask row
    with no True.
    """
    queries, keys = q.shape[-2], k.shape[-2]
    if kernels.takes_triton("attention", q, unfit=kernels.too_wide(q.shape[-1], v.shape[-1])):
        return _attend_by_kernel(q, k, v, mask if mask is None else fit_mask(mask, queries, keys), causal)
    if causal:
        mask = causal_mask(mask, queries, keys, q.device)
    elif mask is not None:
        mask = check_mask(mask, queries, keys)
    batch = _batch(q, k, v, mask)
    rows = math.prod(batch[:-1])
    if mask is not None and mask.dim() > 2:
        mask = mask.expand(*batch[:-1], *mask.shape[-2:]).reshape(rows, 1, *mask.shape[-2:])  # (batch, 1, T, T)
    # torch's fast kernels take four axes exactly
    q, k, v = (t.expand(*batch, *t.shape[-2:]).reshape(rows, batch[-1], *t.shape[-2:]) for t in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)  # (batch, heads, T, m)
    return out.reshape(*batch, *out.shape[-2:])


def _batch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> tuple[int, ...]:
    """The axes (..., heads) of the result; a mask has none of heads."""
    batch: torch.Size = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    if mask is None or mask.dim() == 2:
        return batch
    return (*torch.broadcast_shapes(mask.shape[:-2], batch[:-1]), batch[-1])


def _attend_by_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    """The same by `slth.kernels.attention`, which looks at the mask, and takes k and v with as many heads each."""
    batch, groups = _batch(q, k, v, mask), max(k.shape[-3], v.shape[-3])
    q = q.expand(*batch, *q.shape[-2:])
    k, v = (t.expand(*batch[:-1], groups, *t.shape[-2:]) for t in (k, v))
    if mask is not None and mask.dim() > 2:
        mask = mask.unsqueeze(-3)
    out: torch.Tensor = kernels.attention(q, k, v, mask, causal, scale=1.0)
    return out


def merged_attention(
    x: torch.Tensor, qk: torch.Tensor, vo: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False
) -> torch.Tensor:
    """Attention from merged matrices: sum over heads of softmax(x qk_h x^T; mask) x vo_h.

    x (..., T, d_in); qk (..., heads, d_in, d_in), the scale included; vo (..., heads, d_in, d_out);
    mask bool, broadcastable to (..., T, T); causal: token t attends to tokens up to t only. Returns (..., T, d_out).
    Raises ValueError as :func:`attend` does.
    """
    if qk.dim() == 3 and kernels.takes_triton("merged_attention", x, unfit=kernels.too_wide(x.shape[-1])):
        fitted = None if mask is None else fit_mask(mask, x.shape[-2], x.shape[-2])
        by_head = fitted if fitted is None or fitted.dim() < 3 else fitted.unsqueeze(-3)
        out: torch.Tensor = kernels.merged_attention(x, qk, vo, by_head, causal)
        return out
    x = x.unsqueeze(-3)  # (..., 1, T, d_in), shared by the heads
    return attend(x @ qk, x, x @ vo, mask, causal).sum(dim=-3)


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
