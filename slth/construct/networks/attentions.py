"""Merge the attentions of any module, so that their output errors can be certified.

An attention with biases equals one without biases on tokens (x, 1): its logits are (x, 1) QK (y, 1)^T with
QK = [W_Q; b_Q] [W_K; b_K]^T / sqrt(d_head), and its values are (x, 1) [W_V; b_V] W_O. So the certificate of
`slth.construct.certificates` holds for tokens of norm sqrt(alpha^2 + 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from slth.construct.rounding import Merged

_ROLES = ("query", "key", "value")


def attentions(net: nn.Module) -> Iterator[tuple[str, Merged]]:
    """Yield (name, (QK (heads, d + 1, d + 1), VO (heads, d + 1, d_out))) of each attention with bilinear logits.

    These are torch's nn.MultiheadAttention, with one width for query, key and value, and modules with layers query, key
    and value as in BERT, up to the concatenated outputs of their heads. Attentions with positions in their logits,
    grouped heads or norms are left out.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            if module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn:
                yield name, _of_torch(module)
        elif _is_plain(module):
            layers = [getattr(module, role) for role in _ROLES]
            sides = [_augmented(layer.weight, layer.bias) for layer in layers]
            yield name, _merged(sides, int(module.num_attention_heads), None)


def _is_plain(module: nn.Module) -> bool:
    layers = [getattr(module, role, None) for role in _ROLES]
    if not all(isinstance(layer, nn.Linear) for layer in layers) or not hasattr(module, "num_attention_heads"):
        return False
    shapes = {layer.weight.shape for layer in layers if layer is not None}
    return len(shapes) == 1 and getattr(module, "position_embedding_type", None) in (None, "absolute")


def _of_torch(module: nn.MultiheadAttention) -> Merged:
    biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    sides = [_augmented(w, b) for w, b in zip(module.in_proj_weight.chunk(3), biases, strict=True)]
    return _merged(sides, module.num_heads, module.out_proj.weight.detach().to("cpu", torch.float64).T)


def _augmented(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Append the bias to the weight as a row: [W; b] (d + 1, out), float64."""
    last = torch.zeros_like(weight[:, 0]) if bias is None else bias
    return torch.cat([weight.T, last[None]]).detach().to("cpu", torch.float64)


def _merged(sides: list[torch.Tensor], heads: int, output: torch.Tensor | None) -> Merged:
    query, key, value = (side.unflatten(1, (heads, -1)).movedim(1, 0) for side in sides)  # (heads, d + 1, width)
    width = query.shape[-1]
    rows = torch.eye(heads * width, dtype=torch.float64) if output is None else output
    return query @ key.mT / width**0.5, value @ rows.unflatten(0, (heads, -1))
