"""GPT-2's own attention computed by `slth.kernels`, registered in transformers as the implementation "slth"."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slth import kernels
from slth.extras import extra

with extra("gpt2"):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

NAME = "slth"


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Map queries (batch, heads, T, n), keys and values (batch, heads, S, n) to (outputs (batch, T, heads, n), None).

    The signature is that of transformers' attention functions, and the rule for causal attention too: without a mask,
    several queries are causal if `is_causal`, or by default the module's own flag, is true; query t then attends to
    keys up to t. The output is 0 for queries whose mask has no True, which are padding. Masks that are not boolean and
    dropout are passed to torch. A mask without entries counts as no mask.
    """
    attention_mask = entries_of(attention_mask)
    if dropout or (attention_mask is not None and attention_mask.dtype != torch.bool):
        given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return found
    queries = query.shape[-2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and queries > 1
    if causal:  # queries and keys start at the same token
        key, value = key[..., :queries, :], value[..., :queries, :]
    out = kernels.attention(query, key, value, attention_mask, causal, scale=scaling, padded=True)
    return out.transpose(1, 2).contiguous(), None


def entries_of(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return a mask unchanged, but None for one without entries, which :func:`make_no_mask` passes if it is causal."""
    return None if mask is None or mask.numel() == 0 else mask


def make_no_mask(model: nn.Module) -> None:
    """Make a GPT2Model skip its causal mask for inputs of tokens only, without positions, padding or a cache.

    transformers skips the mask as well, but first waits for the GPU to check that positions show no packed sequences.
    In a CUDA graph and in torch.compile it cannot check, so it makes a mask, and the attention is not known to be
    causal.
    """
    model.register_forward_pre_hook(_without_mask, with_kwargs=True)


def _without_mask(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    config: Any = model.config
    cached = config.use_cache if kwargs.get("use_cache") is None else kwargs["use_cache"]
    given = ("past_key_values", "attention_mask", "position_ids", "encoder_hidden_states")
    if cached or len(args) > 1 or any(kwargs.get(name) is not None for name in given):
        return None
    if config._attn_implementation != NAME:
        return None
    tokens = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
    if tokens is None:  # the model raises an error
        return None
    return args, kwargs | {"attention_mask": torch.empty((1, 1, 0, 0), dtype=torch.bool, device=tokens.device)}


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
