"""Theorem 9 of arXiv 2511.04217: any multi-head attention, hidden in a random one that is wide enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from slth.attention import Attention, MultiHeadAttention
from slth.construct.certificate import Certificate, Evaluated, Merged, certificate, evaluate, spectral_norm
from slth.construct.checks import (
    ATTENTION,
    check_alike,
    check_alpha,
    check_apart,
    check_attention,
    check_equal,
    check_finite,
    check_kind,
    check_merged,
    check_scales,
    double,
)
from slth.construct.linear import SIDES, LinearTicket, Side, better_side, linear
from slth.construct.pruning import Pruning, digests_of, prune
from slth.construct.rounding import absolute
from slth.construct.subset_sum import BoolArray


@dataclass(frozen=True, repr=False)
class AttentionTicket(Pruning):
    """Masks that turn a random attention into a given one, and how well.

    masks: parameter name ("query", "key", "value", "output", or what a variant has) -> bool tensor of the parameter's
    shape, True = kept. digests: what tells the source from others, see `slth.construct.pruning`.
    side: "input" or "output", which factor of value and output has the structural mask (for side="auto" the one taken).
    candidates_qk, candidates_vo: the fewest products that an entry's subset sum chose from.
    error_max_qk, error_max_vo, error_spectral_qk, error_spectral_vo: (heads,) float64, largest absolute entry and
    spectral norm of source minus target, as achieved. unreachable: entries whose target no subset could meet, of
    entries in total. certificate: bounds on the output error for inputs of norm <= certificate.alpha. merged: W_QK and
    W_VO of the pruned source, float64, with the sizes that their rounding is relative to.
    """

    masks: dict[str, torch.Tensor]
    digests: dict[str, str]
    side: Side
    candidates_qk: int
    candidates_vo: int
    error_max_qk: torch.Tensor
    error_max_vo: torch.Tensor
    error_spectral_qk: torch.Tensor
    error_spectral_vo: torch.Tensor
    unreachable: int
    entries: int
    certificate: Certificate
    merged: Merged

    kinds = (MultiHeadAttention, Attention)
    allowed = ATTENTION

    def _told(self) -> str:
        return f", error at most {self.certificate.bound:.3g} for inputs of norm {self.certificate.alpha:.3g} or less"


def attention(
    target: MultiHeadAttention | Attention,
    source: MultiHeadAttention,
    *,
    side: Side | Literal["auto"] = "auto",
    alpha: float | None = None,
    threads: int | None = None,
) -> AttentionTicket:
    """Find masks under which source computes what target computes.

    For each head, W_Q W_K^T / sqrt(n_K) and W_V W_O are approximated entry by entry (Lemma 7) at the target's merged
    matrices. `side` says which factor of W_V W_O gets the structural mask: "input" (the paper's, n_V / d_in candidates
    per entry), "output" (n_V / d_out) or "auto", the one that leaves more. W_Q W_K^T is square, so its structural
    factor is always W_Q, with n_K / d_in candidates. alpha bounds the norm of the inputs the certificate speaks of, by
    default max(sqrt d_in, sqrt d_out), the least that Theorem 9 allows. The source's recorded scales are taken as they
    are (see `slth.construct.scales`). target may be any attention that merges and is not causal. Neither module is
    changed: see :meth:`AttentionTicket.prune`. Modules of any float dtype and device; computed in float64 on the CPU,
    as the certificate is: evaluating in float32 adds float32's rounding, which grows with the logits (with alpha^2): at
    most certificate.rounding times 2^29.

    Raises TypeError for a target or source that is no such attention. Raises ValueError where they are wrapped, share a
    weight, or differ in d_in, d_out, heads or causal; where hidden is too small; where a weight of target or source is
    not finite, or so large that a merged matrix is not; for another side; for alpha that is no finite number > 0.
    """
    alpha = None if alpha is None else check_alpha(alpha)
    check(target, source)
    if side == "auto":
        side = better_side(source.d_in, source.d_out)
    _check_side(source, side)
    qk = query_key(target, source, threads=threads)
    return assemble(target, source, qk, value_output(target, source, side=side, threads=threads), alpha=alpha)


@torch.no_grad()
def query_key(
    target: MultiHeadAttention | Attention, source: MultiHeadAttention, *, threads: int | None = None
) -> LinearTicket:
    """The half of :func:`attention` for W_Q W_K^T / sqrt(n_K) of each head; W_Q has the structural mask."""
    check(target, source)
    wanted, _ = double(target).merged()
    factors = double(source)
    # the scale 1/sqrt(n_K) goes to the target, so that the candidates are exact products of two float32 weights
    scaled = wanted * (math.sqrt(source.hidden_qk) / factors.scale_qk)[:, None, None]
    return linear(scaled.numpy(), factors.query.numpy(), factors.key.mT.numpy(), threads=threads)


@torch.no_grad()
def value_output(
    target: MultiHeadAttention | Attention, source: MultiHeadAttention, *, side: Side, threads: int | None = None
) -> LinearTicket:
    """The half of :func:`attention` for W_V W_O of each head."""
    check(target, source)
    _check_side(source, side)
    _, wanted = double(target).merged()
    factors = double(source)
    scaled = wanted / factors.scale_vo[:, None, None]
    return linear(scaled.numpy(), factors.value.numpy(), factors.output.numpy(), side=side, threads=threads)


@torch.no_grad()
def assemble(
    target: MultiHeadAttention | Attention,
    source: MultiHeadAttention,
    qk: LinearTicket,
    vo: LinearTicket,
    *,
    alpha: float | None = None,
    length: int = 64,
) -> AttentionTicket:
    """Put the two halves of :func:`attention` together, measure and certify them (for inputs up to `length` tokens)."""
    check(target, source)
    masks = tensors(
        {
            "query": qk.mask_first,
            "key": np.swapaxes(qk.mask_second, -1, -2),
            "value": vo.mask_first,
            "output": vo.mask_second,
        }
    )
    pruned = double(source)
    prune(pruned, masks)
    return measured(evaluate("target", target), pruned, masks, qk, vo, alpha=alpha, length=length)


def measured(
    target: Evaluated,
    pruned: MultiHeadAttention | Attention,
    masks: dict[str, torch.Tensor],
    qk: LinearTicket,
    vo: LinearTicket,
    *,
    alpha: float | None = None,
    length: int = 64,
) -> AttentionTicket:
    """The ticket of a source from its masks, the target's merged matrices and the source itself, pruned, float64."""
    got = evaluate("source", pruned)
    return AttentionTicket(
        masks=masks,
        digests=digests_of(pruned, masks),
        side=vo.side,
        candidates_qk=qk.candidates,
        candidates_vo=vo.candidates,
        unreachable=int(qk.unreachable.sum() + vo.unreachable.sum()),
        entries=qk.unreachable.size + vo.unreachable.size,
        certificate=certificate(target, got, least_alpha(target) if alpha is None else alpha, length=length),
        merged=got,
        **achieved(target, got),
    )


def achieved(want: Merged, got: Merged) -> dict[str, torch.Tensor]:
    """The errors of an :class:`AttentionTicket`, by the names of its fields."""
    d_qk, d_vo = (g - w for g, w in zip(got, want, strict=True))
    return {
        "error_max_qk": d_qk.abs().amax((-2, -1)),
        "error_max_vo": d_vo.abs().amax((-2, -1)),
        "error_spectral_qk": spectral_norm(d_qk),
        "error_spectral_vo": spectral_norm(d_vo),
    }


def least_alpha(merged: Merged) -> float:
    """The least norm of inputs that Theorem 9 allows to speak of: max(sqrt d_in, sqrt d_out)."""
    return math.sqrt(max(merged[1].shape[-2:]))


def tensors(masks: dict[str, BoolArray]) -> dict[str, torch.Tensor]:
    """The same as tensors of their own."""
    return {name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in masks.items()}


def check(target: MultiHeadAttention | Attention, source: MultiHeadAttention) -> None:
    """Raise an error as :func:`attention` does unless source can hold target, its side apart."""
    check_attention("target", target)
    check_kind("source", source, MultiHeadAttention, "a slth.attention.MultiHeadAttention (others: construct.variant)")
    check_pair(target, source)
    check_merged("source", absolute(double(source)).merged())  # so that no product of its weights overflows
    if source.hidden_qk < source.d_in:
        raise ValueError(f"hidden_qk={source.hidden_qk}: must be >= d_in={source.d_in}")


def check_pair(target: MultiHeadAttention | Attention, source: MultiHeadAttention | Attention) -> Merged:
    """The target's merged matrices. Raises ValueError unless both go together, whatever the source's mechanism."""
    for name in ("d_in", "d_out"):
        check_equal(name, getattr(target, name), getattr(source, name))
    check_alike(target, source, ("causal",))
    check_apart(target, source)
    for label, module in (("target", target), ("source", source)):
        check_finite(label, module)
    check_scales("source", source)
    try:
        merged = double(target).merged()
    except ValueError as error:
        raise ValueError(f"target: {error}") from None
    check_equal("heads", len(merged[1]), source.heads)
    return check_merged("target", merged)


def _check_side(source: MultiHeadAttention, side: Any) -> None:
    if side not in SIDES:
        raise ValueError(f"side={side!r}: must be one of {', '.join(SIDES)} or auto")
    name = "d_in" if side == "input" else "d_out"
    if source.hidden_vo < getattr(source, name):
        raise ValueError(f"hidden_vo={source.hidden_vo}: must be >= {name}={getattr(source, name)} for side={side}")
