"""Random sources at a theorem's widths: how wide, and how wrong once pruned and spoiled."""

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

#: Candidates an entry chooses from, at most: enough for every accuracy asked for here. The surplus units of a wider
#: source are pruned at once, which leaves a source of this width: its 1/sqrt(n_K) undoes n_K^(1/4) in the init.
ENOUGH = 28


def hidden_for(asked: int, parts: int, width: float) -> int:
    """Width times the hidden dimension asked for, at least one unit for each of parts and at most ENOUGH."""
    return min(max(parts, round(width * asked)), ENOUGH * parts)


def source_widths(widths: Sequence[int], hidden: Sequence[int], width: float) -> list[int]:
    """d_1, n_1, d_2, ..., d_(L+1) of a network's source: hidden dimensions at width times what is asked for.

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
    """The largest error on some inputs (T, d) of norm alpha, for each pair of target and source.

    The source is pruned by the masks that construct(target, source) finds, then changed in place by spoil.
    """
    x = alpha * normalize(draws.normal(name, 500, 4, d), dim=-1)
    found = []
    for target, source in pairs:
        source = pruned(source, construct(target, source))
        spoil(source)
        found.append(distance(source(x), target(x)).max().item())
    return found
