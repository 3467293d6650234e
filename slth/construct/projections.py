"""Tickets for attentions with RoPE or QK-norm: approximate every projection, through a matrix that all heads share.

With RoPE or a norm between queries and keys, W_Q and W_K do not merge, and each must be approximated on its own. Linear
knocking heads (arXiv 2510.23052) with a `shared_width` n have two factors for each, a projection (d_in, n) and T
(n, hidden), with nothing between them. T, which all heads share, gets the structural mask: each of its n inputs feeds
one of the hidden features. Every entry of W_Q and W_K is then its own subset sum over n / hidden candidates, solved by
the mask of each head's projection. hidden is the target's, and the number of candidates does not depend on d_in.

Values and output merge, so W_V W_O is one matrix. The structural masks of T and the output projection let each of n
units feed one output coordinate, and the mask of the value projection solves the sums, with n / d_out candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from slth.attention import Attention, GroupedQueryAttention, LinearKnockingHeads, MultiHeadAttention
from slth.attention.functional import NORM_EPS, repeat_heads
from slth.construct.certificates import Certificate, Evaluated, Merged, certificate, logit_certificate, spectral_norm
from slth.construct.checks import (
    check_alike,
    check_alpha,
    check_apart,
    check_attention,
    check_equal,
    check_finite,
    check_merged,
    check_threads,
)
from slth.construct.construction import prune
from slth.construct.copies import double
from slth.construct.factors import FactorMasks, blocks, solve, structure, tensors
from slth.construct.multi_head import AttentionConstruction, achieved, least_alpha
from slth.construct.rounding import Sizes, absolute, largest, steps_of


def is_rectangular(source: Attention) -> bool:
    """Tell whether source has knocking heads whose T are not square."""
    mixing = (weight for name, weight in source.named_parameters() if name.startswith("mix_"))
    return isinstance(source, LinearKnockingHeads) and any(weight.shape[0] != weight.shape[1] for weight in mixing)


@torch.no_grad()
def projections(
    target: Attention,
    source: Attention,
    *,
    alpha: float | None = None,
    threads: int | None = None,
) -> AttentionConstruction:
    """Find masks with which every projection of source approximates the target's. Computed in float64.

    Neither module is changed. Without rope and qk_norm the certificate is that of the merged matrices. With rope it
    bounds the logits by alpha^2 |W_Q| |W_K| for every pair of positions. With qk_norm it uses the norm's largest slope,
    which makes it loose, since a query may be as short as the norm's eps.

    The construction's `errors` also have "query" and "key", (heads, d_in, hidden), and its candidates_qk is the number
    of candidates of an entry of either. Its merged matrices and "qk" are those of equal positions, before any norm.

    Args:
        target: grouped-query attention, linear knocking heads or a :class:`slth.attention.MultiHeadAttention`, with the
            source's d_in, d_out, heads, hidden, rope, qk_norm and causal.
        source: linear knocking heads with a shared_width.
        alpha: bound on the norm of the inputs for the certificate, as in :func:`slth.construct.attention`.
        threads: None: all cores.

    Raises ValueError for a target or source of another kind, or that differ in these options; for kv_heads other than
    heads and a mix other than "qkv" (a projection would have no second factor, or serve several heads); for
    hidden < d_out or shared_width < hidden; for a constant identity in T, which cannot be pruned to the structure; for
    weights that are not finite; and for alpha <= 0.
    """
    alpha, threads = None if alpha is None else check_alpha(alpha), check_threads(threads)
    for name, module in (("source", source), ("target", target)):
        check_attention(name, module)
    source = _check_source(source)
    _check_target(target, source)
    check_apart(target, source)
    for name, module in (("target", target), ("source", source)):
        check_finite(name, module)
    check_merged("target", _Projections.of(double(target)).merged())
    wanted = _Projections.of(double(target))
    masks = _structure(source)
    ready = double(source)
    prune(ready, masks)
    found = _solve(wanted, ready, threads)
    masks |= tensors({role: factor.mask_first for role, factor in found.items()})
    prune(ready, masks)
    got = _Projections.of(ready)
    alpha = least_alpha(wanted.merged()) if alpha is None else alpha
    sizes = _sizes_of(double(target), alpha), _sizes_of(ready, alpha)
    return AttentionConstruction(
        source=source,
        masks=masks,
        errors={"query": got.query - wanted.query, "key": got.key - wanted.key}
        | achieved(wanted.merged(), got.merged()),
        side="output",
        candidates=min(factor.candidates for factor in found.values()),
        candidates_qk=min(found["query"].candidates, found["key"].candidates),
        candidates_vo=found["value"].candidates,
        unreachable=sum(int(factor.unreachable.sum()) for factor in found.values()),
        entries=sum(factor.unreachable.size for factor in found.values()),
        certificate=_certificate(wanted, got, ready, sizes, alpha),
        merged=Evaluated(got.merged(), sizes[1]),
    )


@dataclass(frozen=True)
class _Projections:
    """The matrices to approximate: query and key (heads, d_in, hidden) and W_VO (heads, d_in, d_out), float64."""

    query: torch.Tensor
    key: torch.Tensor
    vo: torch.Tensor

    @staticmethod
    def of(module: Attention) -> _Projections:
        """Compute them from a module in float64, including the scales of a MultiHeadAttention."""
        if isinstance(module, MultiHeadAttention):
            return _Projections(module.query * module.scale_qk[:, None, None], module.key, module.merged()[1])
        plain = module.absorb() if isinstance(module, LinearKnockingHeads) else module
        assert isinstance(plain, GroupedQueryAttention)
        key, value = (repeat_heads(weight, plain.heads) for weight in (plain.key, plain.value))
        return _Projections(plain.query, key.expand_as(plain.query), value @ plain.output)

    def merged(self) -> Merged:
        """Return (W_QK at equal positions and before any norm, W_VO)."""
        return self.query @ self.key.mT / math.sqrt(self.query.shape[-1]), self.vo


def _structure(source: LinearKnockingHeads) -> dict[str, torch.Tensor]:
    """Make the structural masks: those of all parameters but the query, key and value projections."""
    width, hidden = source.get_parameter("mix_query").shape
    by_feature = structure(hidden, width).T  # (n, hidden): which of the n units feed a feature
    by_output = np.zeros((width, hidden), np.bool_)  # the same, with the n units split over the outputs first
    for units, features in zip(blocks(width, source.d_out), blocks(hidden, source.d_out), strict=True):
        by_output[units, features] = structure(features.stop - features.start, units.stop - units.start).T
    output = np.broadcast_to(structure(source.d_out, hidden).T, source.output.shape)
    return tensors({"mix_query": by_feature, "mix_key": by_feature, "mix_value": by_output, "output": output})


def _solve(wanted: _Projections, pruned: LinearKnockingHeads, threads: int | None) -> dict[str, FactorMasks]:
    """Solve the subset sums of queries, keys and values of a source with its structural masks applied."""
    mixing = {role: pruned.get_parameter(f"mix_{role}") for role in ("query", "key", "value")}
    seconds = {
        "query": mixing["query"].expand(pruned.heads, -1, -1),  # (heads, n, hidden)
        "key": mixing["key"].expand(pruned.heads, -1, -1),
        "value": mixing["value"] @ pruned.output,  # (heads, n, d_out)
    }
    targets = {"query": wanted.query, "key": wanted.key, "value": wanted.vo}
    return {
        role: solve(
            targets[role].numpy(),
            pruned.get_parameter(role).numpy(),
            second.numpy(),
            side="output",
            threads=threads,
        )
        for role, second in seconds.items()
    }


# ---------------------------------------------------------------- the certificate


def _certificate(
    wanted: _Projections,
    got: _Projections,
    pruned: LinearKnockingHeads,
    sizes: tuple[Sizes, Sizes],
    alpha: float,
    length: int = 64,
) -> Certificate:
    """Certify by the merged matrices, or by bounds on the logits if there is rope or qk_norm between the factors."""
    if not pruned.obstacles():
        target, source = (Evaluated(side.merged(), size) for side, size in zip((wanted, got), sizes, strict=True))
        return certificate(target, source, alpha, length=length)
    moved = _moved(wanted, got, alpha, norm=pruned.qk_norm)
    return logit_certificate(moved, wanted.vo, got.vo, alpha, sizes=sizes, length=length)


def _sizes_of(module: Attention, alpha: float) -> Sizes:
    """Compute the norms that rounding is relative to; they depend on alpha with qk_norm.

    rope multiplies the absolute values of queries and of keys by at most sqrt 2, a norm by at most NORM_EPS^(-1/2).
    """
    if not module.obstacles():
        return Sizes.of(module)
    sizes, most = _Projections.of(absolute(module)), _Projections.of(largest(module))
    query, key = spectral_norm(sizes.query), spectral_norm(sizes.key)
    return Sizes(
        (query + key) * (2.0 / math.sqrt(NORM_EPS) / alpha) if module.qk_norm else 2.0 * query * key,
        spectral_norm(sizes.vo),
        most.query.amax((-2, -1)) * most.key.amax((-2, -1)) / NORM_EPS,
        most.vo.amax((-2, -1)),
        steps_of(module.parameters()),
    )


def _moved(wanted: _Projections, got: _Projections, alpha: float, *, norm: bool) -> torch.Tensor:
    """Bound (heads,) the difference of the logits of source and target at any positions; rotation keeps norms.

    Without a norm, <q', k'> - <q, k> = <q' - q, k'> + <q, k' - k>, or the same with source and target exchanged. A norm
    N(q) = q / (|q|^2 / n + eps)^(1/2) has slope at most eps^(-1/2) and |N| <= sqrt n, with n = hidden.
    """
    hidden = wanted.query.shape[-1]
    query, key = (spectral_norm(a - b) for a, b in ((wanted.query, got.query), (wanted.key, got.key)))
    if norm:
        far = 2.0 * math.sqrt(hidden)  # two vectors of norm sqrt n, and two logits of at most sqrt n
        slope = alpha / math.sqrt(NORM_EPS)
        return ((slope * query).clamp_max(far) + (slope * key).clamp_max(far)).clamp_max(far)
    one = query * spectral_norm(got.key) + spectral_norm(wanted.query) * key
    two = query * spectral_norm(wanted.key) + spectral_norm(got.query) * key
    return alpha**2 * torch.minimum(one, two) / math.sqrt(hidden)


# ---------------------------------------------------------------- checks


def _check_source(source: Attention) -> LinearKnockingHeads:
    """Return source. Raises ValueError unless each projection is a product of two factors, the first one per head."""
    if not isinstance(source, LinearKnockingHeads) or not is_rectangular(source):
        raise ValueError(f"source is {type(source).__name__}: must be linear knocking heads with a shared_width")
    if source.mix != "qkv":
        raise ValueError(f"mix={source.mix!r}: must be 'qkv', a projection needs two factors to be met by itself")
    if source.kv_heads != source.heads:
        raise ValueError(f"kv_heads={source.kv_heads}: must be heads={source.heads}, each head's own are solved for")
    width, hidden = source.get_parameter("mix_query").shape
    if hidden < source.d_out:
        raise ValueError(f"hidden={hidden}: must be >= d_out={source.d_out}, outputs that each need a feature")
    if width < hidden:
        raise ValueError(f"shared_width={width}: must be >= hidden={hidden}, features that each need a unit")
    if any(name.endswith("_start") for name, _ in source.named_buffers()):
        raise ValueError("mixing_init='identity_plus_random': its identity cannot be pruned to the structure of T")
    return source


def _check_target(target: Attention, source: LinearKnockingHeads) -> None:
    """Raise ValueError unless the projections of target fit those of source."""
    check_alike(target, source, ("causal",))
    for name, wanted in _sizes(target).items():
        check_equal(name, wanted, getattr(source, name))


def _sizes(target: Attention) -> dict[str, int]:
    """Return the options that source must share with target. Raises ValueError for a target without projections."""
    names = ("d_in", "d_out", "heads", "hidden", "rope", "qk_norm")
    if isinstance(target, MultiHeadAttention):
        own: dict[str, int] = {"hidden": target.hidden_qk, "rope": False, "qk_norm": False}
        return {name: getattr(target, name) for name in names[:3]} | own
    if not isinstance(target, GroupedQueryAttention) or target.obstacles() != Attention.obstacles(target):
        kinds = "multi-head or grouped-query attention, or linear knocking heads"
        raise ValueError(f"target is {type(target).__name__}: must be {kinds}, which have such projections")
    return {name: getattr(target, name) for name in names}
