"""Blocks and transformers without normalisation: Theorem 11, Lemmas 12 and 13, Theorem 6 = 14.

Width d_in = d_out = d throughout. A block is ``y = Attn(x) + x``, ``Blk(x) = F(y) + y``, with F a feed-forward network
of L layers of width d in the target and 2L layers in the source. Each factor of the target (W_Q, W_K, W_V, W_O of each
head, each layer of F) has spectral norm at most 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from slth.numbers import plainly
from slth.theory.attention import Theorem9Budget, theorem9_budget
from slth.theory.checks import (
    check_count,
    check_epsilon,
    check_layer,
    check_not_negative,
    check_positive,
    exp_or_inf,
    expm1_or_inf,
)
from slth.theory.constants import Constant, least_hidden, relu_constant
from slth.theory.feed_forward import theorem10_accuracy, theorem10_error

# ---------------------------------------------------------------------------------------------------------------------
# One block: Theorem 11
# ---------------------------------------------------------------------------------------------------------------------


class BlockHidden(NamedTuple):
    """Hidden dimensions of a block: per head of its attention, and per pair of its network's layers."""

    hidden_mha: int
    hidden_fc: int


@dataclass(frozen=True)
class Theorem11Budget:
    """How the proof of Theorem 11 divides epsilon. All values are upper bounds.

    ``network_error + 2 attention_error`` is at most epsilon: the attention's error reaches the block's output both
    through the network and through the residual connection.

    Attributes:
        attention: Theorem 9's own budget, at ``epsilon / 4``.
        attention_error: ``epsilon / 4``.
        network_norm: largest norm of an input of the source's network, ``3 alpha heads sqrt(d)``.
        network_epsilon: the epsilon at which Theorem 10 is used, ``epsilon / (6 alpha heads sqrt(d))``.
        network_accuracy: largest error of an entry of the network, ``network_epsilon / (4 layers d^2)``.
        network_error: ``exp(epsilon / 4) - 1``, at most ``epsilon / 2``.
        failure: probability that some entry of the block exceeds its error.
    """

    attention: Theorem9Budget
    attention_error: float
    network_norm: float
    network_epsilon: float
    network_accuracy: float
    network_error: float
    failure: float


@plainly
def theorem11_hidden(d: int, heads: int, layers: int, alpha: float, epsilon: float, constant: Constant) -> BlockHidden:
    """Compute the hidden dimensions that Theorem 11 requires, the least integers with

    - ``n_MHA >= d C log(32 alpha^3 heads d^(3/2) / epsilon)``,
    - ``n_FC >= d C log(24 alpha layers heads d^(5/2) / epsilon)``.

    With them, and with probability at least 1 - epsilon, a random block can be masked so that
    ``max_i ||Blk_S(x_i) - Blk_T(x_i)||_2 <= epsilon`` for all inputs of norm at most alpha and every attention mask.
    The C of n_FC is that of :func:`slth.theory.lemma2_hidden`: a number is used for both, while "measured" is twice as
    large for n_FC.

    Args:
        d, heads, layers: integers >= 1.
        alpha: finite and >= sqrt(d).
        epsilon: in (0, 1).
        constant: C, finite and > 0, or "measured".

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Theorem 11.
    """
    _check_block(d, heads, layers, alpha, epsilon)
    return _block_hidden(d, heads, layers, math.log(alpha), math.log(epsilon), constant)


@plainly
def theorem11_budget(d: int, heads: int, layers: int, alpha: float, epsilon: float) -> Theorem11Budget:
    """Compute the error budget in the proof of Theorem 11.

    The network's input in the source is at most ``epsilon/4 + alpha (heads sqrt(d) + 1) <= 3 alpha heads sqrt(d)``.

    Args:
        d, heads, layers: integers >= 1.
        alpha: finite and >= sqrt(d).
        epsilon: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, proof of Theorem 11.
    """
    _check_block(d, heads, layers, alpha, epsilon)
    attention = theorem9_budget(d, d, heads, alpha, epsilon / 4)
    norm = 3 * alpha * heads * math.sqrt(d)
    network_epsilon = epsilon / (2 * norm)
    return Theorem11Budget(
        attention=attention,
        attention_error=epsilon / 4,
        network_norm=norm,
        network_epsilon=network_epsilon,
        network_accuracy=theorem10_accuracy(d, d, layers, network_epsilon),
        network_error=theorem10_error(norm, network_epsilon),
        failure=attention.failure + network_epsilon / 2,
    )


# ---------------------------------------------------------------------------------------------------------------------
# How much a target's outputs change with its inputs: Lemmas 12 and 13, and tighter forms
# ---------------------------------------------------------------------------------------------------------------------


@plainly
def lemma12_attention(drift: float, d: int, heads: int, alpha: float, moved_alpha: float | None = None) -> float:
    """Compute the bound of Lemma 12: ``heads sqrt(d) (alpha (exp(4 alpha drift) - 1) + drift)``.

    It bounds ``max_i ||Attn_T(x_i) - Attn_T(x'_i)||_2`` where ``||x_i - x'_i|| <= drift`` and both have norm at most
    alpha, for every attention mask. If the norm of x' is bounded by moved_alpha instead, a logit changes by up to
    ``(alpha + moved_alpha) drift``, and the exponent is ``2 (alpha + moved_alpha) drift``. Theorem 14 needs this form,
    with moved_alpha = 2 alpha, but uses the printed one.

    Args:
        drift: finite and >= 0.
        d, heads: integers >= 1.
        alpha: bound on the norm of x, finite and > 0.
        moved_alpha: bound on the norm of x', finite and > 0; alpha unless given.

    Returns:
        The bound; ``inf`` where the exponential overflows.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 12.
    """
    exponent = 2 * _logit_change(drift, d, heads, alpha, moved_alpha)
    return heads * math.sqrt(d) * (alpha * expm1_or_inf(exponent) + drift)


@plainly
def lemma13_block(drift: float, d: int, heads: int, alpha: float, moved_alpha: float | None = None) -> float:
    """Compute the bound of Lemma 13, corrected: ``2 heads sqrt(d) (alpha (exp(4 alpha drift) - 1) + 2 drift)``.

    It bounds ``max_i ||Blk_T(x_i) - Blk_T(x'_i)||_2`` under the conditions of :func:`lemma12_attention`, with the same
    moved_alpha. Derivation: with ``y = Attn(x) + x``, Lemma 12 gives ``||y - y'|| <= heads sqrt(d) (alpha (exp(4 alpha
    drift) - 1) + 2 drift)``, and since F does not expand, the block ``F(y) + y`` moves by at most twice that. The
    printed statement lacks the factor 2 of its proof and does not hold for small alpha: at d = heads = T = 1 and all
    weights 1 the block is ``4x`` and moves by 4 drift, while the printed bound is about ``(4 alpha^2 + 2) drift``. For
    ``alpha >= sqrt(d)``, which the paper assumes throughout, and d >= 2 the printed bound holds nevertheless:
    :func:`tanh_block` is at most ``heads (4 alpha^2 + 4) drift <= heads sqrt(d) (4 alpha^2 + 2) drift``.

    Args:
        drift: finite and >= 0.
        d, heads: integers >= 1.
        alpha: bound on the norm of x, finite and > 0.
        moved_alpha: bound on the norm of x', finite and > 0; alpha unless given.

    Returns:
        The bound; ``inf`` where the exponential overflows.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Lemma 13 by its proof.
    """
    return 2 * (lemma12_attention(drift, d, heads, alpha, moved_alpha) + heads * math.sqrt(d) * drift)


@plainly
def tanh_attention(drift: float, heads: int, alpha: float, moved_alpha: float | None = None) -> float:
    """Compute a tighter bound for Lemma 12: ``heads (2 alpha tanh(alpha drift) + drift)``, without d.

    It follows from :func:`slth.theory.tanh_softmax` with logits that change by ``(alpha + moved_alpha) drift``, which
    is ``2 alpha drift`` by default; the averaged vectors themselves move by drift. W_QK is assumed to have norm 1; for
    d_K > 1 its norm is at most 1/sqrt(d_K), which is not used here.

    Arguments and errors are those of :func:`lemma12_attention`.

    Source: derived here; a sharper form of Lemma 12 of arXiv 2511.04217.
    """
    change = _logit_change(drift, 1, heads, alpha, moved_alpha)
    return heads * (2 * alpha * math.tanh(change / 2) + drift)


@plainly
def tanh_block(drift: float, heads: int, alpha: float, moved_alpha: float | None = None) -> float:
    """Compute a tighter bound for Lemma 13, by :func:`tanh_attention`.

    It is ``2 (heads (2 alpha tanh(alpha drift) + drift) + drift)``. Arguments and errors are those of
    :func:`lemma12_attention`.

    Source: derived here; a sharper form of Lemma 13 of arXiv 2511.04217.
    """
    return 2 * (tanh_attention(drift, heads, alpha, moved_alpha) + drift)


# ---------------------------------------------------------------------------------------------------------------------
# Many blocks: Theorem 6 = 14
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theorem14Block:
    """Norms and errors of one block in the proof of Theorem 14.

    Attributes:
        input_norm: beta_b, bound on the norms of the target's inputs: ``alpha (4 heads sqrt(d))^(b-1)``.
        source_norm: bound on the norms of the source's inputs: alpha for the first block, then ``2 beta_b``.
        growth: P_b, the product of ``16 heads sqrt(d) beta_j^2`` over all later blocks j.
        drift: A_b, largest distance of source and target after this block: ``epsilon / (2^(B-b) P_b)``.
        error: E_b, largest distance of the two blocks on the same input of norm source_norm: A_b for the first block,
            then ``A_b / 2``; the other half is for the error of the block's inputs.
    """

    input_norm: float
    source_norm: float
    growth: float
    drift: float
    error: float


@plainly
def theorem14_budget(d: int, heads: int, alpha: float, epsilon: float, blocks: int) -> tuple[Theorem14Block, ...]:
    """Compute the recursion in the proof of Theorem 14, block by block.

    It closes with the corrected Lemma 13: source inputs are within ``e = A_(b-1) = r / (16 heads sqrt(d) beta_b^2)`` of
    the target's, with ``r = A_b / 2``, so they have norm at most ``beta_b + e <= 2 beta_b``. Then block b of the target
    turns e into at most

        2 heads sqrt(d) (beta_b (exp(6 beta_b e) - 1) + 2e) <= 0.79 r,

    since ``beta_b >= 4`` and r <= 1/2 for b >= 2. The paper has half of the left side with exponent 4, and bounds it by
    a step that fails after the correction; the widths remain valid.

    Args:
        d, heads, blocks: integers >= 1; one block is Theorem 11.
        alpha: finite and >= sqrt(d).
        epsilon: in (0, 1).

    Returns:
        One entry per block. Values that overflow are ``inf``, those that underflow 0.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, proof of Theorem 14, corrected.
    """
    _check_block(d, heads, 1, alpha, epsilon)
    check_count("blocks", blocks)
    budget = []
    for step in _steps(d, heads, alpha, blocks):
        input_norm = alpha * exp_or_inf(step.log_widening)
        drift = epsilon * 2.0**-step.halvings * math.exp(-step.log_growth)
        norm_factor = 2 if step.inherits else 1
        budget.append(
            Theorem14Block(
                input_norm=input_norm,
                source_norm=norm_factor * input_norm,
                growth=exp_or_inf(step.log_growth),
                drift=drift,
                error=drift / norm_factor,
            )
        )
    return tuple(budget)


@plainly
def theorem14_hidden(
    d: int, heads: int, layers: int, alpha: float, epsilon: float, blocks: int, constant: Constant
) -> tuple[BlockHidden, ...]:
    """Compute the hidden dimensions of Theorem 14, block by block: Theorem 11 at ``error`` and ``source_norm``.

    With them, and with probability at least 1 - epsilon, a random transformer can be masked so that
    ``max_i ||x_S,i - x_T,i||_2 <= epsilon`` after the last block, for all inputs of norm at most alpha and every
    attention mask. Theorem 6 is the case layers = 1. The widths grow as ``d C blocks^2 log(4 heads sqrt(d))``.

    Args:
        d, heads, layers, blocks: integers >= 1.
        alpha: finite and >= sqrt(d).
        epsilon: in (0, 1).
        constant: C, finite and > 0, or "measured".

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, Theorem 14 (Theorem 6 in the main text).
    """
    _check_block(d, heads, layers, alpha, epsilon)
    check_count("blocks", blocks)
    hidden = []
    for step in _steps(d, heads, alpha, blocks):
        double = math.log(2) if step.inherits else 0.0
        log_norm = math.log(alpha) + step.log_widening + double
        log_error = math.log(epsilon) - step.halvings * math.log(2) - step.log_growth - double
        hidden.append(_block_hidden(d, heads, layers, log_norm, log_error, constant))
    return tuple(hidden)


@plainly
def theorem14_failure(d: int, heads: int, alpha: float, epsilon: float, blocks: int) -> float:
    """Compute the failure probability of Theorem 14: the sum of the blocks' E_b, the epsilons for Theorem 11.

    For two blocks or more it is at most ``1055/1984 epsilon``, as in the paper.

    Args:
        d, heads, blocks: integers >= 1.
        alpha: finite and >= sqrt(d).
        epsilon: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, proof of Theorem 14.
    """
    return math.fsum(block.error for block in theorem14_budget(d, heads, alpha, epsilon, blocks))


class _Step(NamedTuple):
    """The quantities of one block of the recursion, as logarithms, since the numbers themselves overflow.

    log_widening: log(beta_b / alpha); log_growth: log P_b; halvings: B - b; inherits: whether there is a block before
    it, so that its inputs have an error and up to twice the norm, and only half of A_b is left for its own error.
    """

    log_widening: float
    log_growth: float
    halvings: int
    inherits: bool


def _steps(d: int, heads: int, alpha: float, blocks: int) -> list[_Step]:
    log_root = math.log(heads) + math.log(d) / 2  # heads sqrt(d)
    steps, log_growth = [], 0.0
    for b in reversed(range(blocks)):
        log_widening = b * (math.log(4) + log_root)
        steps.append(_Step(log_widening, log_growth, blocks - 1 - b, b > 0))
        log_growth += math.log(16) + log_root + 2 * (math.log(alpha) + log_widening)
    return steps[::-1]


def _block_hidden(
    d: int, heads: int, layers: int, log_alpha: float, log_epsilon: float, constant: Constant
) -> BlockHidden:
    mha = math.log(32 * heads) + 3 * log_alpha + 1.5 * math.log(d) - log_epsilon
    fc = math.log(24 * heads * layers) + log_alpha + 2.5 * math.log(d) - log_epsilon
    return BlockHidden(least_hidden(d, mha, constant), least_hidden(d, fc, relu_constant(constant)))


def _logit_change(drift: float, d: int, heads: int, alpha: float, moved_alpha: float | None) -> float:
    check_not_negative("drift", drift)
    check_count("d", d)
    check_count("heads", heads)
    check_positive("alpha", alpha)
    if moved_alpha is None:
        moved_alpha = alpha
    check_positive("moved_alpha", moved_alpha)
    return (alpha + moved_alpha) * drift


def _check_block(d: int, heads: int, layers: int, alpha: float, epsilon: float) -> None:
    check_count("d", d)
    check_layer(d, d, heads, alpha)
    check_epsilon(epsilon)
    check_count("layers", layers)
