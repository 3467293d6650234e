"""Theorem 9 of arXiv 2511.04217: any multi-head attention, hidden in a random one that is wide enough."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import nn

from slth.attention import MultiHeadAttention
from slth.construct.certificate import Certificate, Merged, certificate, spectral_norm
from slth.construct.linear import SIDES, LinearTicket, Side, better_side, linear
from slth.construct.subset_sum import BoolArray

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class AttentionTicket:
    """Masks that turn a random attention into a given one, and how well.

    masks: parameter name ("query", "key", "value", "output", or what a variant has) -> bool tensor of the parameter's
    shape, True = kept.
    side: "input" or "output", which factor of value and output has the structural mask (for side="auto" the one taken).
    candidates_qk, candidates_vo: the fewest products that an entry's subset sum chose from.
    error_max_qk, error_max_vo, error_spectral_qk, error_spectral_vo: (heads,) float64, largest absolute entry and
    spectral norm of source minus target, as achieved. unreachable: entries whose target no subset could meet, of
    entries in total. certificate: bounds on the output error for inputs of norm <= certificate.alpha. merged: W_QK and
    W_VO of the pruned source, float64.
    """

    masks: dict[str, torch.Tensor]
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
    merged: tuple[torch.Tensor, torch.Tensor]

    @property
    def keep(self) -> float:
        """Share of all the source's weights that are kept."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return kept / sum(mask.numel() for mask in self.masks.values())

    def prune(self, source: nn.Module) -> None:
        """Set the weights of source that are not kept to exactly 0, in place; the others keep every bit.

        Raises ValueError for a source of other shapes.
        """
        for role, mask in self.masks.items():
            if getattr(source, role).shape != mask.shape:
                given = tuple(getattr(source, role).shape)
                raise ValueError(f"source weight {role!r} of shape {given}: must be {tuple(mask.shape)}, the mask's")
        prune(source, self.masks)


def attention(
    target: MultiHeadAttention,
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
    are (see `slth.construct.scales`). Neither module is changed: see :meth:`AttentionTicket.prune`. In float64, as the
    certificate is: evaluating in float32 adds float32's rounding, some 1e-6 of the outputs.

    Raises ValueError where target and source differ in d_in, d_out or heads, where hidden is too small, where a weight
    of target or source is not finite, for another side, or for alpha <= 0.
    """
    if side == "auto":
        side = better_side(target.d_in, target.d_out)
    _check_side(source, side)
    check_alpha(alpha)
    qk = query_key(target, source, threads=threads)
    return assemble(target, source, qk, value_output(target, source, side=side, threads=threads), alpha=alpha)


@torch.no_grad()
def query_key(target: MultiHeadAttention, source: MultiHeadAttention, *, threads: int | None = None) -> LinearTicket:
    """The half of :func:`attention` for W_Q W_K^T / sqrt(n_K) of each head; W_Q has the structural mask."""
    check(target, source)
    wanted, _ = double(target).merged()
    factors = double(source)
    # the scale 1/sqrt(n_K) goes to the target, so that the candidates are exact products of two float32 weights
    scaled = wanted * (math.sqrt(source.hidden_qk) / factors.scale_qk)[:, None, None]
    return linear(scaled.numpy(), factors.query.numpy(), factors.key.mT.numpy(), threads=threads)


@torch.no_grad()
def value_output(
    target: MultiHeadAttention, source: MultiHeadAttention, *, side: Side, threads: int | None = None
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
    target: MultiHeadAttention,
    source: MultiHeadAttention,
    qk: LinearTicket,
    vo: LinearTicket,
    *,
    alpha: float | None = None,
    length: int = 64,
) -> AttentionTicket:
    """Put the two halves of :func:`attention` together, measure and certify them (for inputs up to `length` tokens)."""
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
    return measured(double(target).merged(), pruned.merged(), masks, qk, vo, alpha=alpha, length=length)


def measured(
    want: Merged,
    got: Merged,
    masks: dict[str, torch.Tensor],
    qk: LinearTicket,
    vo: LinearTicket,
    *,
    alpha: float | None = None,
    length: int = 64,
) -> AttentionTicket:
    """The ticket of a source from its masks and, float64, the target's merged matrices and those it has itself."""
    return AttentionTicket(
        masks=masks,
        side=vo.side,
        candidates_qk=qk.candidates,
        candidates_vo=vo.candidates,
        unreachable=int(qk.unreachable.sum() + vo.unreachable.sum()),
        entries=qk.unreachable.size + vo.unreachable.size,
        certificate=certificate(want, got, alpha or least_alpha(want), length=length),
        merged=got,
        **achieved(want, got),
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


def double(module: Module) -> Module:
    """A float64 copy."""
    return copy.deepcopy(module).double()


def tensors(masks: dict[str, BoolArray]) -> dict[str, torch.Tensor]:
    """The same as tensors of their own."""
    return {name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in masks.items()}


@torch.no_grad()
def prune(module: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    """Set the weights that masks, by parameter name, do not keep to exactly 0, in place."""
    for name, mask in masks.items():
        module.get_parameter(name).masked_fill_(~mask, 0.0)


def check_alpha(alpha: float | None) -> None:
    """Raise ValueError unless alpha is None or finite and > 0."""
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha={alpha}: must be a finite number > 0, the largest norm of an input token")


def check_finite(target: nn.Module, source: nn.Module) -> None:
    """Raise ValueError unless all weights of both are finite."""
    for label, module in (("target", target), ("source", source)):
        for name, weight in module.named_parameters():
            if not torch.isfinite(weight).all():
                raise ValueError(f"{label} weight {name!r} holds NaN or infinite values: all must be finite")


def check(target: MultiHeadAttention, source: MultiHeadAttention) -> None:
    """Raise ValueError unless source can hold target: the same d_in, d_out, heads, wide enough, all values finite."""
    for name in ("d_in", "d_out", "heads"):
        wanted, given = getattr(target, name), getattr(source, name)
        if wanted != given:
            raise ValueError(f"{name}: target has {wanted}, source {given}; they must be equal")
    if source.hidden_qk < source.d_in:
        raise ValueError(f"hidden_qk={source.hidden_qk}: must be >= d_in={source.d_in}")
    check_finite(target, source)


def _check_side(source: MultiHeadAttention, side: str) -> None:
    if side not in SIDES:
        raise ValueError(f"side={side!r}: must be one of {', '.join(SIDES)} or auto")
    name = "d_in" if side == "input" else "d_out"
    if source.hidden_vo < getattr(source, name):
        raise ValueError(f"hidden_vo={source.hidden_vo}: must be >= {name}={getattr(source, name)} for side={side}")
