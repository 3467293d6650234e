"""Theorems 11 and 14 of arXiv 2511.04217: a whole transformer, and a language model, hidden in a random one."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import nn

from slth.construct.attention import attention
from slth.construct.attention import check as check_attention
from slth.construct.certificate import Merged
from slth.construct.checks import check_alike, check_apart, check_equal, check_finite, check_kind, check_scales, double
from slth.construct.feed_forward import check as check_feed_forward
from slth.construct.feed_forward import feed_forward
from slth.construct.linear import better_side, linear
from slth.construct.propagation import block_norms, propagate, recursion
from slth.construct.pruning import Pruning, digests_of, prune
from slth.construct.scales import record_attention_scales, record_feed_forward_scales, record_product_scale
from slth.models.transformer import Block, LanguageModel, Product, Transformer

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, repr=False)
class TransformerTicket(Pruning):
    """Masks for every random weight of a source transformer, and what is needed to certify it.

    masks: parameter name -> bool tensor. merged, layer_errors and layer_roundings: of each block, the pruned source's
    merged attention, the errors of its feed-forward layers, and what float64 may add to these. unreachable of entries
    subset sums had a target that no subset could meet; candidates: the fewest that any had. digests: what tells the
    source from others, see `slth.construct.pruning`.
    """

    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    merged: list[Merged] = field(default_factory=list)
    layer_errors: list[list[torch.Tensor]] = field(default_factory=list)
    layer_roundings: list[list[float]] = field(default_factory=list)
    unreachable: int = 0
    entries: int = 0
    candidates: int = 1 << 30
    digests: dict[str, str] = field(default_factory=dict)

    kinds = (Transformer, LanguageModel)
    allowed = "a Transformer or LanguageModel of slth.models.transformer"


@dataclass(frozen=True)
class TransformerCertificate:
    """Bounds on max_i |x_S,i - x_T,i| after each block: from the target's activations, and by the paper's recursion."""

    blocks: list[float]
    recursion: list[float]


def record_scales(target: nn.Module, source: nn.Module) -> None:
    """Set every recorded scale of source to fit target; both are a Transformer or both a LanguageModel.

    Raises ValueError, before any change, where they do not fit together or hold values that are not finite.
    """
    if isinstance(target, LanguageModel) and isinstance(source, LanguageModel):
        _check_language_model(target, source)
        for name in ("embedding", "positions", "head"):
            product = getattr(source, name)
            if isinstance(product, Product):
                wanted = getattr(target, name).matrix()
                record_product_scale(wanted, product, better_side(*wanted.shape))
        record_scales(target.transformer, source.transformer)
        return
    if not (isinstance(target, Transformer) and isinstance(source, Transformer)):
        given = f"target {type(target).__name__} and source {type(source).__name__}"
        raise ValueError(f"{given}: must be both Transformer or both LanguageModel")
    _check(target, source)
    for wanted_block, block in zip(target.blocks, source.blocks, strict=True):
        assert isinstance(wanted_block, Block)
        assert isinstance(block, Block)
        record_attention_scales(wanted_block.attention, block.attention)
        record_feed_forward_scales(wanted_block.feed_forward, block.feed_forward)


def transformer(target: Transformer, source: Transformer, *, threads: int | None = None) -> TransformerTicket:
    """Theorem 14: find masks under which source computes what target computes, block by block (Theorem 11).

    Attention by Theorem 9, feed-forward networks by Theorem 10; residuals and normalisation are the target's own.
    Recorded scales are taken as they are. Raises ValueError where target and source do not fit together or hold values
    that are not finite.
    """
    _check(target, source)
    masks: dict[str, torch.Tensor] = {}
    merged, layer_errors, layer_roundings, unreachable, entries, candidates = [], [], [], 0, 0, []
    for b, (wanted, block) in enumerate(zip(target.blocks, source.blocks, strict=True)):
        assert isinstance(wanted, Block)
        assert isinstance(block, Block)
        attn = attention(wanted.attention, block.attention, side="input", threads=threads)
        network = feed_forward(wanted.feed_forward, block.feed_forward, threads=threads)
        masks |= {f"blocks.{b}.attention.{role}": mask for role, mask in attn.masks.items()}
        masks |= {f"blocks.{b}.feed_forward.{name}": mask for name, mask in network.masks.items()}
        merged.append(attn.merged)
        layer_errors.append(network.errors)
        layer_roundings.append(network.roundings)
        unreachable += attn.unreachable + network.unreachable
        entries += attn.entries + network.entries
        candidates += [attn.candidates_qk, attn.candidates_vo, network.candidates]
    digests, least = digests_of(source, masks), min(candidates)
    return TransformerTicket(masks, merged, layer_errors, layer_roundings, unreachable, entries, least, digests)


def language_model(target: LanguageModel, source: LanguageModel, *, threads: int | None = None) -> TransformerTicket:
    """Find masks for everything random in source: its transformer, and its embedding, positions and head where these
    are a Product (Lemma 7; the side with more candidates). A Table of the source is taken to be shared, and left alone.
    """
    _check_language_model(target, source)
    inner = transformer(target.transformer, source.transformer, threads=threads)
    masks = {f"transformer.{name}": mask for name, mask in inner.masks.items()}
    unreachable, entries, candidates = inner.unreachable, inner.entries, [inner.candidates]
    for name in ("embedding", "positions", "head"):
        product = getattr(source, name)
        if not isinstance(product, Product):
            continue
        product, wanted = double(product), getattr(target, name).matrix().detach().to("cpu", torch.float64)
        found = linear(
            (wanted / product.scale).numpy(),
            product.first.detach().numpy(),
            product.second.detach().numpy(),
            side=better_side(*wanted.shape),
            threads=threads,
        )
        masks[f"{name}.first"] = torch.from_numpy(found.mask_first.copy())
        masks[f"{name}.second"] = torch.from_numpy(found.mask_second.copy())
        unreachable, entries = unreachable + int(found.unreachable.sum()), entries + found.unreachable.size
        candidates.append(found.candidates)
    return replace(
        inner,
        masks=masks,
        unreachable=unreachable,
        entries=entries,
        candidates=min(candidates),
        digests=digests_of(source, masks),
    )


def pruned(source: Module, masks: dict[str, torch.Tensor]) -> Module:
    """A copy of source in which the weights that masks do not keep are exactly 0 and all others keep every bit."""
    twin = copy.deepcopy(source)
    prune(twin, masks)
    return twin


@torch.no_grad()
def certify(
    target: Transformer,
    ticket: TransformerTicket,
    x: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    drift: float = 0.0,
) -> TransformerCertificate:
    """Carry a certificate through the blocks for inputs x (..., T, d) of the target, float64.

    drift bounds how far the source's inputs lie from x (other embeddings). See `slth.construct.propagation`.
    Raises ValueError for drift that is not >= 0 and for inputs that are not finite.
    """
    if not drift >= 0.0:
        raise ValueError(f"drift={drift}: must be a number >= 0")
    alpha = torch.linalg.vector_norm(x, dim=-1).max().item()
    if not math.isfinite(alpha):
        raise ValueError(f"alpha={alpha}: the largest norm of the inputs must be finite")
    norms = block_norms(target, x, mask)
    bounds, e = [], drift
    for block, norm, merged, errors, roundings in zip(
        target.blocks, norms, ticket.merged, ticket.layer_errors, ticket.layer_roundings, strict=True
    ):
        assert isinstance(block, Block)
        e = propagate(e, block, norm, merged, errors, roundings)
        bounds.append(e)
    return TransformerCertificate(bounds, recursion(target, alpha, ticket.merged, ticket.layer_errors))


def _check(target: Transformer, source: Transformer) -> None:
    for label, model in (("target", target), ("source", source)):
        check_kind(label, model, Transformer, "a slth.models.transformer.Transformer")
    check_alike(target, source, ("d", "norm"))
    check_equal("blocks", len(target.blocks), len(source.blocks))
    for wanted_block, block in zip(target.blocks, source.blocks, strict=True):
        assert isinstance(wanted_block, Block)
        assert isinstance(block, Block)
        check_attention(wanted_block.attention, block.attention)
        check_feed_forward(wanted_block.feed_forward, block.feed_forward)


def _check_language_model(target: LanguageModel, source: LanguageModel) -> None:
    for label, model in (("target", target), ("source", source)):
        check_kind(label, model, LanguageModel, "a slth.models.transformer.LanguageModel")
    _check(target.transformer, source.transformer)
    for name in ("embedding", "positions", "head"):
        wanted, product = getattr(target, name).matrix(), getattr(source, name)
        if not isinstance(product, Product):
            continue
        given = (product.first.shape[0], product.second.shape[1])
        if given != tuple(wanted.shape):
            raise ValueError(f"source {name} is {given}: must be {tuple(wanted.shape)}")
        for label, matrix in (("target", wanted), ("source", product.first), ("source", product.second)):
            if not torch.isfinite(matrix).all():
                raise ValueError(f"{label} {name} holds NaN or infinite values: all must be finite")
        check_apart(target, product)
        check_finite(f"source {name}", product)
        check_scales(f"source {name}", product)
