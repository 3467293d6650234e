"""Modules of torch as slth's: the same outputs, or a bias that is named."""

import pytest
import torch
from torch import nn

from slth.convert import from_torch
from slth.weights import inits

X = inits.normal((2, 5, 12), 1.0, seed=0, name="x")
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


def drawn(module, *, biases=()):
    """The module with other weights, norm scales and named biases, in eval mode."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 2 or (name.startswith("norm") and name.endswith("weight")) or name in biases:
                p.copy_(inits.normal(p.shape, 0.5, seed=1, name=name))
    return module.eval()


def attention(**options):
    return drawn(nn.MultiheadAttention(12, 3, batch_first=True, **options))


@pytest.mark.parametrize("bias", [True, False])
def test_attention(bias):
    module = attention(bias=bias).double()
    if bias:  # of keys, which the softmax drops; of a value, which that of the output cancels
        with torch.no_grad():
            module.in_proj_bias[12:24] = inits.normal((12,), 1.0, seed=2, name="bias")
            module.in_proj_bias[24 + 5] = 1.0
            module.out_proj.bias.copy_(-module.out_proj.weight[:, 5])
    x, made = X.double(), from_torch(module)
    for mask in (None, CAUSAL):
        wanted, _ = module(x, x, x, attn_mask=None if mask is None else ~mask)
        torch.testing.assert_close(made(x, mask), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encoder_layer(dtype):
    layer = drawn(nn.TransformerEncoderLayer(12, 3, 20, norm_first=True, batch_first=True)).to(dtype)
    with torch.no_grad():
        layer.linear1.bias.zero_()
        layer.linear2.bias.zero_()
    made, x = from_torch(layer), X.to(dtype)
    for mask in (None, CAUSAL):
        wanted = layer(x, src_mask=None if mask is None else ~mask)
        torch.testing.assert_close(made(x, mask), wanted, rtol=1e-6, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_what_has_no_form_is_named():
    module = attention()
    module.in_proj_bias.data[0] = 1.0
    for refused, message in (
        (nn.Linear(2, 2), "module=Linear: must be nn.MultiheadAttention or"),
        (module, "in_proj_bias of the query: cannot be folded"),
        (attention(add_zero_attn=True), "must be without kdim, vdim, add_bias_kv and add_zero_attn"),
        (nn.TransformerEncoderLayer(12, 3, 20), "must have norm_first=True and activation relu"),
        (nn.TransformerEncoderLayer(12, 3, 20, norm_first=True), "linear1.bias: cannot be folded"),
        (nn.TransformerEncoderLayer(12, 3, 20, norm_first=True, layer_norm_eps=1e-3), "norm1: eps=0.001, must be"),
    ):
        with pytest.raises(ValueError) as caught:
            from_torch(refused)
        assert message in str(caught.value)
