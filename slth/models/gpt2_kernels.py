"""GPT-2's own attention by `slth.kernels` where these take Triton, else torch's: the implementation called "slth"."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from slth import kernels

NAME = "slth"


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Queries (batch, heads, T, n), keys and values (batch, heads, S, n) -> ((batch, T, heads, n), None).

    The signature is that of Hugging Face's attention functions. A mask that is not boolean, dropout and compiling are
    left to torch.
    """
    ours = not dropout and not torch.compiler.is_compiling()
    ours = ours and (attention_mask is None or attention_mask.dtype == torch.bool)
    if not ours or not kernels.takes_triton("attention", query):
        given = {"dropout": dropout, "scaling": scaling, **kwargs}
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return found
    causal = attention_mask is None and query.shape[-2] > 1
    out = kernels.attention(query, key, value, attention_mask, causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
