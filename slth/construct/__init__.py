"""Strong lottery tickets by construction: masks from subset sums, with a certificate of the remaining error.

Each function takes a target and a random source, changes neither, and returns a :class:`Construction`:

    construction = slth.construct.attention(target, source)
    construction.prune(source)

- `linear` hides a matrix in two factors given as arrays, `product` in a Product. `encode` hides it in a random map that
  it generates itself, with a structured :class:`Code` of a few bits per weight.
- `attention` and `variant` hide an attention, `feed_forward` a ReLU network, `transformer` and `language_model` a whole
  model of `slth.models.transformer`.
- `module` generates random products for the linear maps of any nn.Module, such as a trained checkpoint. `merge` writes
  the weights of its ticket into another instance.
"""

from slth.construct.certificates import Certificate, certificate
from slth.construct.codes import BlockProduct, Code, CodeConstruction, block_product, encode
from slth.construct.construction import Construction, pruned
from slth.construct.models import TransformerConstruction, certify, language_model, record_scales, transformer
from slth.construct.multi_head import AttentionConstruction, attention
from slth.construct.networks import ModuleConstruction, merge, module
from slth.construct.products import LinearConstruction, linear, product
from slth.construct.relu import FeedForwardConstruction, feed_forward
from slth.construct.variants import variant

__all__ = [
    "AttentionConstruction",
    "BlockProduct",
    "Certificate",
    "Code",
    "CodeConstruction",
    "Construction",
    "FeedForwardConstruction",
    "LinearConstruction",
    "ModuleConstruction",
    "TransformerConstruction",
    "attention",
    "block_product",
    "certificate",
    "certify",
    "encode",
    "feed_forward",
    "language_model",
    "linear",
    "merge",
    "module",
    "product",
    "pruned",
    "record_scales",
    "transformer",
    "variant",
]
