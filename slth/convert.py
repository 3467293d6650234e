"""Convert torch's attentions and encoder layers to those of slth, which have no biases."""

from __future__ import annotations

from typing import overload

import torch
from torch import nn
from torch.nn.functional import relu

from slth.attention import MultiHeadAttention
from slth.models.transformer import Block, FeedForward


@overload
def from_torch(module: nn.MultiheadAttention) -> MultiHeadAttention: ...


@overload
def from_torch(module: nn.TransformerEncoderLayer) -> Block: ...


@torch.no_grad()
def from_torch(module: nn.Module) -> MultiHeadAttention | Block:
    """Convert a module of torch to one of slth that computes the same function of X (..., T, d) in eval mode.

    Key biases do not change an attention and are dropped. Biases of value and output are accepted where they cancel. A
    norm's scale is multiplied into the weights that follow it. Note that slth's masks are True where a token is
    attended to, torch's bool masks False.

    Args:
        module: an attention, or an encoder layer with norm_first=True, ReLU and eps=1e-5.

    Returns:
        The converted module on the CPU, in the module's dtype.

    Raises:
        ValueError: for another type of module, one without a counterpart in slth (other key widths, add_zero_attn,
            bias_k, norm_first=False, another activation or eps), or a bias that cannot be dropped, which is named.
    """
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module, torch.ones(module.embed_dim))
    if isinstance(module, nn.TransformerEncoderLayer):
        return _block(module)
    raise ValueError(f"module={type(module).__name__}: must be nn.MultiheadAttention or nn.TransformerEncoderLayer")


def _attention(module: nn.MultiheadAttention, scale: torch.Tensor) -> MultiHeadAttention:
    """Convert an attention whose inputs are multiplied by scale (d,)."""
    if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        raise ValueError("MultiheadAttention: must be without kdim, vdim, add_bias_kv and add_zero_attn")
    d, heads, dtype = module.embed_dim, module.num_heads, module.in_proj_weight.dtype
    query, key, value = (w.cpu().view(heads, -1, d).mT * scale.cpu()[:, None] for w in module.in_proj_weight.split(d))
    output = module.out_proj.weight.cpu().mT
    if module.in_proj_bias is not None:
        of_query, _, of_value = module.in_proj_bias.cpu().split(d)
        _require_none("in_proj_bias of the query", of_query)
        _require_none("in_proj_bias of the value with out_proj.bias", of_value @ output + module.out_proj.bias.cpu())
    converted = MultiHeadAttention(d, d, heads, d // heads, dtype=dtype)
    for name, weight in (("query", query), ("key", key), ("value", value), ("output", output.view(heads, -1, d))):
        converted.get_parameter(name).copy_(weight)
    return converted


def _block(layer: nn.TransformerEncoderLayer) -> Block:
    if not layer.norm_first or not (layer.activation is relu or isinstance(layer.activation, nn.ReLU)):
        raise ValueError("TransformerEncoderLayer: must have norm_first=True and activation relu")
    for name in ("norm1", "norm2"):
        norm = getattr(layer, name)
        if norm.eps != 1e-5:
            raise ValueError(f"{name}: eps={norm.eps}, must be 1e-05")
        _require_none(f"{name}.bias", norm.bias)
    for name in ("linear1", "linear2"):
        _require_none(f"{name}.bias", getattr(layer, name).bias)
    attention = _attention(layer.self_attn, layer.norm1.weight)
    first, second = layer.linear1.weight.cpu().mT * layer.norm2.weight.cpu()[:, None], layer.linear2.weight.cpu().mT
    network = FeedForward((len(first), len(second), second.shape[1]), dtype=first.dtype)
    for parameter, weight in zip(network.layers, (first, second), strict=True):
        parameter.copy_(weight)
    return Block(attention, network, norm=True)


def _require_none(name: str, bias: torch.Tensor | None) -> None:
    if bias is not None and bool(bias.any()):
        raise ValueError(f"{name}: cannot be folded, as slth has no biases; must be 0")
