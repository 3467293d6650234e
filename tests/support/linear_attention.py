"""Small multi-head linear attentions."""

import torch

from slth.attention import MultiHeadLinearAttention

exactly = {"rtol": 1e-12, "atol": 1e-12}


def build(*, mixing=None, **options):
    """A float64 module with M_c as given."""
    sizes = {"d_in": 5, "d_out": 3, "heads": 2, "hidden": 4, "length": 12, "block": 4}
    own = {"init": "xavier_uniform", "dtype": torch.float64, "mixing_init": "random"}
    module = MultiHeadLinearAttention(**sizes | own | options)
    if mixing is not None:
        with torch.no_grad():
            module.mixing.copy_(torch.as_tensor(mixing))
    return module
