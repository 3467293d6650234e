"""The paper's bounds as plain functions of its quantities.

Paper: Otsuka et al., "The Strong Lottery Ticket Hypothesis for Multi-Head Attention Mechanisms", arXiv 2511.04217.
Functions are named after the paper's statements; its appendix proves Lemmas 4, 5 and Theorems 3, 6 as Lemmas 7, 8 and
Theorems 9, 14.

All arguments are dimensionless scalars; logarithms are natural. Names of the paper's symbols:

===========  ==========  ================================================================================
paper        here        meaning
===========  ==========  ================================================================================
d1, d2       d_in,       input and output width of the layer; d where they are equal
             d_out
H            heads       number of heads
L            layers      layers of the target's feed-forward network; the source's has 2L
B            blocks      number of blocks of a transformer
n_K, n_V     hidden_qk,  key and value dimension per head of the random source; hidden_mha for both in a block
             hidden_vo
n_FC         hidden_fc   width of the source's feed-forward network between the two layers of a pair
alpha        alpha       bound on the norm of each input x_i (length d_in)
epsilon      epsilon     bound on both the error, max_i ||.||_2, and the failure probability
C            constant,   the universal constant of the subset-sum theorem; its value is not known, and "measured"
             C           stands for an estimate, :data:`MEASURED_CONSTANT`
===========  ==========  ================================================================================

No bound depends on the length T of the sequence.

There is one file per subject, in the paper's order: linear layers, feed-forward networks, softmax, attention,
transformers. Two further subjects are not in the paper: attentions with shared heads, and bits per weight against
error.
"""

from slth.theory.attention import (
    Theorem9Budget,
    Theorem9Hidden,
    reachable_epsilon,
    required_hidden,
    theorem9_budget,
    theorem9_failure,
    theorem9_hidden,
)
from slth.theory.constants import MEASURED_CONSTANT, Constant
from slth.theory.feed_forward import (
    lemma2_accuracy,
    lemma2_hidden,
    theorem10_accuracy,
    theorem10_error,
    theorem10_hidden,
)
from slth.theory.linear import lemma7_accuracy, lemma7_hidden
from slth.theory.rate import above_limit, code_candidates, code_variance, random_code, rate_limit
from slth.theory.softmax import exp_softmax, lemma5_softmax, lemma8_softmax, tanh_softmax
from slth.theory.transformer import (
    BlockHidden,
    Theorem11Budget,
    Theorem14Block,
    lemma12_attention,
    lemma13_block,
    tanh_attention,
    tanh_block,
    theorem11_budget,
    theorem11_hidden,
    theorem14_budget,
    theorem14_failure,
    theorem14_hidden,
)
from slth.theory.variants import (
    chain_constant,
    chain_hidden,
    explicit_hidden,
    explicit_rank,
    grouped_hidden,
    knocking_hidden,
    normal_part,
    product_density,
    projection_accuracy,
    projection_width,
    talking_rank,
    tied_hidden,
    uniform_part,
)

__all__ = [
    "MEASURED_CONSTANT",
    "BlockHidden",
    "Constant",
    "Theorem9Budget",
    "Theorem9Hidden",
    "Theorem11Budget",
    "Theorem14Block",
    "above_limit",
    "chain_constant",
    "chain_hidden",
    "code_candidates",
    "code_variance",
    "exp_softmax",
    "explicit_hidden",
    "explicit_rank",
    "grouped_hidden",
    "knocking_hidden",
    "lemma2_accuracy",
    "lemma2_hidden",
    "lemma5_softmax",
    "lemma7_accuracy",
    "lemma7_hidden",
    "lemma8_softmax",
    "lemma12_attention",
    "lemma13_block",
    "normal_part",
    "product_density",
    "projection_accuracy",
    "projection_width",
    "random_code",
    "rate_limit",
    "reachable_epsilon",
    "required_hidden",
    "talking_rank",
    "tanh_attention",
    "tanh_block",
    "tanh_softmax",
    "theorem9_budget",
    "theorem9_failure",
    "theorem9_hidden",
    "theorem10_accuracy",
    "theorem10_error",
    "theorem10_hidden",
    "theorem11_budget",
    "theorem11_hidden",
    "theorem14_budget",
    "theorem14_failure",
    "theorem14_hidden",
    "tied_hidden",
    "uniform_part",
]
