"""Theorems 11 and 14 of arXiv 2511.04217: hide a transformer or a language model in a random one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from slth.construct.checks import check_alike, check_apart, check_equal, check_kind
from slth.construct.construction import Construction
from slth.construct.factors import better_side
from slth.construct.multi_head import AttentionConstruction, attention
from slth.construct.multi_head import check as check_attention
from slth.construct.products import check_product, product
from slth.construct.propagation import BlockErrors, block_norms, propagate, recursion
from slth.construct.relu import FeedForwardConstruction, feed_forward
from slth.construct.relu import check as check_feed_forward
from slth.construct.scales import record_attention_scales, record_feed_forward_scales, record_product_scale
from slth.models.transformer import Block, LanguageModel, Product, Transformer

_TABLES = ("embedding", "positions", "head")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TransformerConstruction(Construction):
    """Masks of every random weight of a source transformer, made of the constructions of its parts.

    parts: name of an attention, feed-forward network or product of the source -> its construction, in order.
    """

    parts: dict[str, Construction]

    kinds = (Transformer, LanguageModel)
    allowed = "a Transformer or LanguageModel of slth.models.transformer"

    @classmethod
    def of(cls, source: nn.Module, parts: Mapping[str, Construction]) -> TransformerConstruction:
        """Combine the constructions of a source's parts."""
        return cls(
            source=source,
            parts=dict(parts),
            masks={f"{where}.{name}": mask for where, part in parts.items() for name, mask in part.masks.items()},
            errors={f"{where}.{name}": error for where, part in parts.items() for name, error in part.errors.items()},
            unreachable=sum(part.unreachable for part in parts.values()),
            entries=sum(part.entries for part in parts.values()),
            candidates=min(part.candidates for part in parts.values()),
        )

    @property
    def blocks(self) -> list[BlockErrors]:
        """The errors of each block, as :func:`certify` needs them."""
        attentions = [part for part in self.parts.values() if isinstance(part, AttentionConstruction)]
        networks = [part for part in self.parts.values() if isinstance(part, FeedForwardConstruction)]
        return [
            BlockErrors(attn.merged, list(network.errors.values()), network.roundings)
            for attn, network in zip(attentions, networks, strict=True)
        ]


@dataclass(frozen=True)
class TransformerCertificate:
    """Bounds on max_i |x_S,i - x_T,i| after each block.

    blocks: from the target's activations; recursion: by the paper's recursion, see `slth.construct.propagation`.
    """

    blocks: list[float]
    recursion: list[float]


def record_scales(target: nn.Module, source: nn.Module) -> None:
    """Fit every recorded scale of source to target, in place; both are a Transformer or both a LanguageModel.

    Raises ValueError, before any change, if they do not fit together or hold values that are not finite.
    """
    if isinstance(target, LanguageModel) and isinstance(source, LanguageModel):
        _check_language_model(target, source)
        for name in _TABLES:
            random = getattr(source, name)
            if isinstance(random, Product):
                matrix = getattr(target, name).matrix()
                record_product_scale(matrix, random, better_side(*matrix.shape))
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


def transformer(target: Transformer, source: Transformer, *, threads: int | None = None) -> TransformerConstruction:
    """Find masks with which source approximates target (Theorem 14), block by block (Theorem 11).

    Attentions are solved by Theorem 9 and feed-forward networks by Theorem 10; residuals and normalisation are the same
    in both. Recorded scales stay as they are. Raises ValueError if target and source do not fit together or hold values
    that are not finite.
    """
    _check(target, source)
    parts: dict[str, Construction] = {}
    for b, (wanted, block) in enumerate(zip(target.blocks, source.blocks, strict=True)):
        assert isinstance(wanted, Block)
        assert isinstance(block, Block)
        parts[f"blocks.{b}.attention"] = attention(wanted.attention, block.attention, side="input", threads=threads)
        parts[f"blocks.{b}.feed_forward"] = feed_forward(wanted.feed_forward, block.feed_forward, threads=threads)
    return TransformerConstruction.of(source, parts)


def language_model(
    target: LanguageModel, source: LanguageModel, *, threads: int | None = None
) -> TransformerConstruction:
    """Find masks of all random weights of source, with which it approximates target.

    These are its transformer, and its embedding, positions and head where these are a Product (Lemma 7, on the side
    with more candidates). A Table of the source counts as shared with the target and is left alone. Raises ValueError
    as :func:`transformer` does.
    """
    _check_language_model(target, source)
    inner = transformer(target.transformer, source.transformer, threads=threads)
    parts = {f"transformer.{where}": part for where, part in inner.parts.items()}
    for name in _TABLES:
        random = getattr(source, name)
        if isinstance(random, Product):
            parts[name] = product(getattr(target, name).matrix(), random, threads=threads)
    return TransformerConstruction.of(source, parts)


@torch.no_grad()
def certify(
    target: Transformer,
    construction: TransformerConstruction,
    x: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    drift: float = 0.0,
) -> TransformerCertificate:
    """Bound the drift between source and target after each block, for the target's inputs x (..., T, d), float64.

    drift: bound on the norm by which the source's inputs differ from x, as they do with another embedding. See
    `slth.construct.propagation`. Raises ValueError for drift that is not >= 0 and for inputs that are not finite.
    """
    if not drift >= 0.0:
        raise ValueError(f"drift={drift}: must be a number >= 0")
    alpha = torch.linalg.vector_norm(x, dim=-1).max().item()
    if not math.isfinite(alpha):
        raise ValueError(f"alpha={alpha}: the largest norm of the inputs must be finite")
    bounds, e, blocks = [], drift, construction.blocks
    for block, norms, errors in zip(target.blocks, block_norms(target, x, mask), blocks, strict=True):
        assert isinstance(block, Block)
        e = propagate(e, block, norms, errors)
        bounds.append(e)
    return TransformerCertificate(bounds, recursion(target, alpha, blocks))


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
    for name in _TABLES:
        matrix, random = getattr(target, name).matrix(), getattr(source, name)
        if not isinstance(random, Product):
            continue
        check_product(matrix, random, f"source {name}")
        if not torch.isfinite(matrix).all():
            raise ValueError(f"target {name} holds NaN or infinite values: all must be finite")
        check_apart(target, random)
