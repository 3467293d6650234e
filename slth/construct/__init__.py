"""Strong lottery tickets by construction: masks found by solving subset sums, with a certificate of the error left.

Each function takes a target and a random source, changes neither, and returns a :class:`Construction`:

    construction = slth.construct.attention(target, source)
    construction.prune(source)

`linear` hides a matrix in two factors given as arrays, `product` in a Product, `encode` in a random map of its own by
a structured :class:`Code`, a few bits a weight; `attention` and `variant` an attention,
`feed_forward` a ReLU network, `transformer` and `language_model` a whole model of `slth.models.transformer`. `module`
makes random products of its own for the linear maps of any nn.Module, a trained checkpoint say, and `merge` writes what
its ticket holds into another instance.
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
