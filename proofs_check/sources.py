"""Random sources at a theorem's widths: their widths, and their errors after pruning and spoiling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.nn.functional import normalize

from proofs_check import draws
from proofs_check.search import distance
from slth.construct import pruned

Target = TypeVar("Target", bound=nn.Module)
Source = TypeVar("Source", bound=nn.Module)
Masks = dict[str, torch.Tensor]

#: Most candidates per entry, enough for all accuracies here. The surplus units of a wider source are pruned first,
#: which leaves a source of this width, since its 1/sqrt(n_K) cancels n_K^(1/4) of the init.
ENOUGH = 28


def hidden_for(asked: int, parts: int, width: float) -> int:
    """Return width times the required hidden dimension, with at least one unit and at most ENOUGH for each part."""
    return min(max(parts, round(width * asked)), ENOUGH * parts)


def source_widths(widths: Sequence[int], hidden: Sequence[int], width: float) -> list[int]:
    """Return d_1, n_1, d_2, ..., d_(L+1) of a network's source, with width times the required hidden dimensions.

    A ReLU splits each input in two parts.
    """
    inner = [hidden_for(n, 2 * d, width) for n, d in zip(hidden, widths[:-1], strict=True)]
    return [w for both in zip(widths, inner, strict=False) for w in both] + [widths[-1]]


def leave(source: nn.Module) -> None:
    """Spoil nothing."""


@torch.no_grad()
def errors(
    name: str,
    pairs: Iterable[tuple[Target, Source]],
    construct: Callable[[Target, Source], Masks],
    spoil: Callable[[Source], None],
    *,
    d: int,
    alpha: float,
) -> list[float]:
    """Return the largest error on some inputs (T, d) of norm alpha, for each pair of target and source.

    The source is pruned by the masks of construct(target, source), then changed in place by spoil.
    """
    x = alpha * normalize(draws.normal(name, 500, 4, d), dim=-1)
    found = []
    for target, source in pairs:
        source = pruned(source, construct(target, source))
        spoil(source)
        found.append(distance(source(x), target(x)).max().item())
    return found
