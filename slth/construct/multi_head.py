"""Theorem 9 of arXiv 2511.04217: hide any multi-head attention in a random one that is wide enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from slth.attention import Attention, MultiHeadAttention
from slth.construct.certificates import Certificate, Evaluated, Merged, certificate, evaluate
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
)
from slth.construct.construction import Construction, prune
from slth.construct.copies import double
from slth.construct.factors import SIDES, FactorMasks, Side, better_side, solve, tensors
from slth.construct.rounding import absolute


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttentionConstruction(Construction):
    """Masks with which a random attention approximates a target, and the errors "qk" and "vo".

    The errors have shapes (heads, d_in, d_in) and (heads, d_in, d_out).

    Attributes:
        side: the factor of W_V W_O with the structural mask, "input" (values) or "output"; also where "auto" chose it.
        candidates_qk: the fewest candidates of an entry of W_Q W_K^T.
        candidates_vo: the fewest candidates of an entry of W_V W_O.
        certificate: bounds on the output error for inputs of norm <= certificate.alpha.
        merged: W_QK and W_VO of the pruned source, float64, with the sizes that their rounding is relative to.
    """

    side: Side
    candidates_qk: int
    candidates_vo: int
    certificate: Certificate
    merged: Merged

    kinds = (Attention,)
    allowed = ATTENTION

    def _more(self) -> str:
        return f", error at most {self.certificate.bound:.3g} for inputs of norm {self.certificate.alpha:.3g} or less"


def attention(
    target: Attention,
    source: MultiHeadAttention,
    *,
    side: Side | Literal["auto"] = "auto",
    alpha: float | None = None,
    threads: int | None = None,
) -> AttentionConstruction:
    """Find masks with which source approximates target (Theorem 9).

    For each head, W_Q W_K^T / sqrt(n_K) and W_V W_O of the source approximate the target's merged matrices entry by
    entry (Lemma 7). Neither module is changed; see :meth:`Construction.prune`. Modules may have any float dtype and
    device; masks and certificate are computed in float64 on the CPU. Evaluation in float32 adds rounding errors of at
    most 2^29 times certificate.rounding, which grow with the logits (with alpha^2).

    Args:
        target: any attention that merges and is not causal.
        source: its recorded scales stay as they are (see `slth.construct.scales`).
        side: the factor of W_V W_O with the structural mask: "input" (the paper's, n_V / d_in candidates per entry),
            "output" (n_V / d_out), or "auto", the one with more candidates. W_Q W_K^T is square, so its structural
            factor is always W_Q, with n_K / d_in candidates.
        alpha: bound on the norm of the inputs for the certificate. None: max(sqrt d_in, sqrt d_out), the least that
            Theorem 9 allows.
        threads: None: all cores.

    Raises TypeError for a target or source of another class. Raises ValueError if they are wrapped, share a weight, or
    differ in d_in, d_out, heads or causal; if hidden is too small; if weights or merged matrices are not finite; for
    another side; and for an alpha that is no finite number > 0.
    """
    alpha = None if alpha is None else check_alpha(alpha)
    pair = Pair.of(target, source)
    if side == "auto":
        side = better_side(source.d_in, source.d_out)
    _check_side(source, side)
    qk = pair.query_key(threads=threads)
    return pair.assemble(qk, pair.value_output(side=side, threads=threads), alpha=alpha)


@dataclass(frozen=True)
class Pair:
    """The checked problem of :func:`attention`, whose halves, query-key and value-output, are solved independently.

    target: merged matrices of the target. factors: a float64 copy of source.
    """

    target: Evaluated
    source: MultiHeadAttention
    factors: MultiHeadAttention

    @staticmethod
    @torch.no_grad()
    def of(target: Attention, source: MultiHeadAttention) -> Pair:
        """State the problem. Raises as :func:`attention` does, but does not check the side."""
        check(target, source)
        return Pair(evaluate("target", target), source, double(source))

    @torch.no_grad()
    def query_key(self, *, threads: int | None = None) -> FactorMasks:
        """Solve for W_Q W_K^T / sqrt(n_K) of each head; W_Q has the structural mask."""
        factors = self.factors
        # the target is multiplied by sqrt(n_K), so that the candidates are exact products of two float32 weights
        scaled = self.target[0] * (math.sqrt(factors.hidden_qk) / factors.scale_qk)[:, None, None]
        return solve(scaled.numpy(), factors.query.numpy(), factors.key.mT.numpy(), threads=threads)

    @torch.no_grad()
    def value_output(self, *, side: Side, threads: int | None = None) -> FactorMasks:
        """Solve for W_V W_O of each head."""
        factors = self.factors
        _check_side(factors, side)
        scaled = self.target[1] / factors.scale_vo[:, None, None]
        return solve(scaled.numpy(), factors.value.numpy(), factors.output.numpy(), side=side, threads=threads)

    @torch.no_grad()
    def assemble(
        self, qk: FactorMasks, vo: FactorMasks, *, alpha: float | None = None, length: int = 64
    ) -> AttentionConstruction:
        """Combine the two halves, measure their errors and certify them for inputs of up to `length` tokens."""
        masks = tensors(
            {
                "query": qk.mask_first,
                "key": np.swapaxes(qk.mask_second, -1, -2),
                "value": vo.mask_first,
                "output": vo.mask_second,
            }
        )
        ready = double(self.factors)
        prune(ready, masks)
        return measured(self.target, self.source, ready, masks, qk, vo, alpha=alpha, length=length)


def measured(
    target: Evaluated,
    source: Attention,
    ready: Attention,
    masks: dict[str, torch.Tensor],
    qk: FactorMasks,
    vo: FactorMasks,
    *,
    alpha: float | None = None,
    length: int = 64,
) -> AttentionConstruction:
    """Measure and certify a pruned copy of source, `ready` (float64), against the target's merged matrices."""
    got = evaluate("source", ready)
    return AttentionConstruction(
        source=source,
        masks=masks,
        errors=achieved(target, got),
        side=vo.side,
        candidates=min(qk.candidates, vo.candidates),
        candidates_qk=qk.candidates,
        candidates_vo=vo.candidates,
        unreachable=int(qk.unreachable.sum() + vo.unreachable.sum()),
        entries=qk.unreachable.size + vo.unreachable.size,
        certificate=certificate(target, got, least_alpha(target) if alpha is None else alpha, length=length),
        merged=got,
    )


def achieved(want: Merged, got: Merged) -> dict[str, torch.Tensor]:
    """Compute the errors "qk" and "vo" of merged matrices."""
    return {name: g - w for name, g, w in zip(("qk", "vo"), got, want, strict=True)}


def least_alpha(merged: Merged) -> float:
    """Return the least alpha that Theorem 9 allows: max(sqrt d_in, sqrt d_out)."""
    return math.sqrt(max(merged[1].shape[-2:]))


def check(target: Attention, source: MultiHeadAttention) -> None:
    """Raise as :func:`attention` does unless source can hold target; the side is not checked."""
    check_attention("target", target)
    check_kind("source", source, MultiHeadAttention, "a slth.attention.MultiHeadAttention (others: construct.variant)")
    check_pair(target, source)
    check_merged("source", absolute(double(source)).merged())  # so that no product of its weights overflows
    if source.hidden_qk < source.d_in:
        raise ValueError(f"hidden_qk={source.hidden_qk}: must be >= d_in={source.d_in}")


def check_pair(target: Attention, source: Attention) -> Merged:
    """Return the target's merged matrices. Raises ValueError unless target and source fit, for any mechanism."""
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
